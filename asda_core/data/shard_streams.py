"""Shards that are read sequentially: pipes, and tars too remote for random access.

A stream yields the same clips every time it is read: a command that fails is run again and the clips it has already
given are skipped; a truncated tar yields its complete members.
"""

import os
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import IO, NamedTuple

from asda_core.audio_files.sources import PIPE_PREFIX, ShardStream
from asda_core.audio_files.tar_headers import LINKED_OR_SPARSE, TRAILING_DATA, ZERO, StrictHeader, is_audio, plain_name
from asda_core.errors import AudioError

ATTEMPTS = 3
"""Number of times a command is run before its stream is given up: connections break."""
RETRY_SECONDS, BACKOFF_FACTOR = 1.0, 4
"""Seconds before the first retry of a command, and factor for each later one: a server needs time."""
DRAIN_BYTES = 1 << 16


class StreamMember(NamedTuple):
    """An undecoded audio file from a stream."""

    file: Path
    content: bytes


class CommandFailedError(Exception):
    """The command of a stream ended with an error; running it again may help."""


class TruncatedTarError(CommandFailedError):
    """The command succeeded but printed a truncated tar or none: the first of two joined by `|` may have failed."""


class RunningCommands:
    """Running commands whose streams are read; a caller that waits for a stalled one can abort them all.

    None is retried after that.
    """

    def __init__(self) -> None:
        self._ended = Event()
        self._running: set[subprocess.Popen[bytes]] = set()

    @property
    def is_aborted(self) -> bool:
        """Whether `abort` was called."""
        return self._ended.is_set()

    def abort(self) -> None:
        """Kill all commands and the processes that they have started."""
        self._ended.set()
        for process in list(self._running):
            kill(process)

    def wait(self, seconds: float) -> bool:
        """Wait for this time, or until `abort` is called; return whether it was."""
        return self._ended.wait(seconds)

    @contextmanager
    def running(self, command: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a shell command in its own session: Ctrl-C reaches only this process, which ends its step first."""
        process = subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, start_new_session=True)
        self._running.add(process)
        try:
            if self.is_aborted:  # in the meantime
                kill(process)
            yield process
        finally:
            self._running.discard(process)


def kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill a command and all processes that it has started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def read_stream(
    shard: ShardStream, problems: list[tuple[Path, str]], commands: RunningCommands
) -> Iterator[StreamMember]:
    """Yield the audio files of a shard in order; of several with the same name, the first.

    Args:
        shard: the shard to read.
        problems: receives (file, message) if the shard yields less than it should.
        commands: registers the command of the shard while it runs.

    Raises:
        AudioError: the file does not exist, the command fails repeatedly, or the commands were ended.
    """
    passed = 0
    for attempt in range(1, ATTEMPTS + 1):
        try:
            for number, member in enumerate(_read_once(shard, problems, commands)):
                if number >= passed:
                    passed += 1
                    yield member
            return
        except CommandFailedError as error:
            if commands.is_aborted or (
                attempt < ATTEMPTS and commands.wait(RETRY_SECONDS * BACKOFF_FACTOR ** (attempt - 1))
            ):
                raise AudioError("the stream was closed.") from None
            if attempt == ATTEMPTS and isinstance(error, TruncatedTarError) and passed:
                where = Path(shard.address)  # every attempt gave the same: use the complete members, as of a file
                problems.append(
                    (where, f"{shard.address}: {error}; only the files before that point are used ({passed}).")
                )
            elif attempt == ATTEMPTS:
                raise AudioError(
                    f"{shard.address}: {error} ({ATTEMPTS} attempts); stopped after {passed} clips."
                ) from None


def _read_once(
    shard: ShardStream, problems: list[tuple[Path, str]], commands: RunningCommands
) -> Iterator[StreamMember]:
    where = Path(shard.address if shard.file is None else shard.file)
    names: set[str] = set()
    unsupported = 0
    with _bytes_of(shard, commands) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r|", tarinfo=StrictHeader) as tar:
                while (info := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # otherwise it grows with the shard
                    name = plain_name(info.name)
                    unsupported += is_audio(name) and (info.islnk() or info.issparse())
                    usable = info.isfile() and not info.issparse() and is_audio(name) and name not in names
                    content = tar.extractfile(info) if usable else None
                    if content is not None:
                        member = StreamMember(where / name, content.read())
                        names.add(name)
                        yield member
            problem = ""
        except tarfile.ReadError as error:
            problem = f"is truncated or not a tar ({error})"
        while block := stream.read(DRAIN_BYTES):  # so that a command can finish
            if not problem and block.strip(ZERO):
                problem = TRAILING_DATA
    if problem and shard.file is None:
        raise TruncatedTarError(f"the output of the command {problem}")
    if problem:
        problems.append(
            (where, f"{shard.address} {problem}; only the files before that point are used ({len(names)}).")
        )
    if unsupported:
        problems.append((where, f"{shard.address} has {unsupported} {LINKED_OR_SPARSE}"))


@contextmanager
def _bytes_of(shard: ShardStream, commands: RunningCommands) -> Iterator[IO[bytes]]:
    """Open the bytes of a file, or of the output of a command.

    Raises:
        CommandFailedError: the command failed, whatever it printed before.
    """
    if shard.file is not None:
        try:
            file = shard.file.open("rb")
        except OSError as error:
            raise AudioError(f"cannot read the shard {shard.file}: {error.strerror}.") from None
        with file:
            yield file
        return
    with commands.running(shard.address.removeprefix(PIPE_PREFIX)) as process:
        assert process.stdout is not None
        try:
            yield process.stdout
        except BaseException:  # the reader has failed, or reads no further
            kill(process)
            raise
        finally:
            process.stdout.close()
            status = process.wait()
    if status:
        raise CommandFailedError(f"the command failed with status {status}")
