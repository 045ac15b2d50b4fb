"""Several processes for one task: how it is divided, how they are started, and that none outlives its parent."""

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from tqdm import tqdm

from asda_core.errors import ConfigError
from asda_core.system.command_line import EXIT_ERROR

THREADS_VARIABLE = "OMP_NUM_THREADS"
"""Variable that sets torch's number of threads; each of N processes gets an N-th of the processors unless it is set."""
DIE_WITH_PARENT = 1
"""`PR_SET_PDEATHSIG` of Linux's prctl."""
TAIL_LINES = 5
"""Lines at the end of a process's log that an error quotes."""
POLL_SECONDS = 1.0
"""Interval between two checks of the progress of other processes."""
Worker = subprocess.Popen[bytes]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Shard:
    """Part `index` (from 1) of `count`."""

    index: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise ConfigError(f"a shard must be one of 1/{self.count} to {self.count}/{self.count}, not {self.index}.")

    def of(self, items: Sequence[Item]) -> list[Item]:
        """Every `count`-th item."""
        return list(items[self.index - 1 :: self.count])

    def split(self, parts: int) -> list["Shard"]:
        """Split this shard into smaller ones."""
        return [Shard(self.index + part * self.count, self.count * parts) for part in range(parts)]


def parse_shard(text: str) -> Shard:
    """Parse a shard: "2/5" is the second of five parts."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form I/N, such as 2/5.")
    try:
        return Shard(int(index), int(count))
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def with_options(arguments: Sequence[str], options: Sequence[str]) -> list[str]:
    """Add options to a command line, which override existing ones: at its end, or before a "--" with what follows."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    rest = arguments[end:] if len(arguments) > end + 1 else []
    return [*arguments[:end], *options, *rest]


def start_worker(command: Sequence[str], log: Path, threads: int) -> Worker:
    """Start a Python module as a process whose output goes to a file.

    Args:
        command: what follows `python -m`.
        log: the file.
        threads: number of torch threads, unless the environment sets it.
    """
    variables = {THREADS_VARIABLE: os.environ.get(THREADS_VARIABLE) or str(threads)}
    with log.open("w", encoding="utf-8") as opened:
        return subprocess.Popen(
            [sys.executable, "-m", *command], stdout=opened, stderr=opened, env={**os.environ, **variables},
            start_new_session=True,  # Ctrl-C reaches it once, through this process
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )  # fmt: skip


@dataclass(frozen=True)
class WorkerResults:
    """Processes that have ended.

    Attributes:
        exit_codes: their exit codes, as in `subprocess.Popen.returncode`.
        logs: files with the output of each.
    """

    exit_codes: Sequence[int]
    logs: Sequence[Path]

    def failure_message(self) -> str:
        """Message of an error: exit codes, whether the same command resumes, last lines of the logs."""
        last_lines = log_tails(self.logs)
        rejected = set(self.exit_codes) == {EXIT_ERROR} and "error: " in last_lines  # the same command would fail again
        advice = "" if rejected else "; run the same command again to resume"
        return f"the processes exited with codes {list(self.exit_codes)}{advice}. {last_lines}"


def run_workers(
    commands: Sequence[Sequence[str]], log_folder: Path, threads: int, bar: "tqdm[Any]", count_done: Callable[[], int]
) -> WorkerResults:
    """Start processes and wait until all have ended; Ctrl-C and SIGTERM stop them all.

    Args:
        commands: for each, what follows `python -m`.
        log_folder: folder of their output.
        threads: number of torch threads in each, unless the environment sets it.
        bar: progress bar that is updated meanwhile.
        count_done: returns how much is done.
    """
    log_folder.mkdir(parents=True, exist_ok=True)
    files = [log_folder / f"{os.getpid()}-{number}.log" for number in range(1, len(commands) + 1)]
    workers: list[Worker] = []
    try:
        with signals_as_interrupt():
            workers.extend(start_worker(command, file, threads) for command, file in zip(commands, files, strict=True))
            show_progress(bar, count_done, lambda: any(worker.poll() is None for worker in workers))
    finally:
        stop_workers(workers)
    return WorkerResults([worker.returncode for worker in workers], files)


def show_progress(bar: "tqdm[Any]", count_done: Callable[[], int], is_running: Callable[[], bool]) -> None:
    """Update a progress bar with what other processes have done, until none is running."""
    with bar:
        while True:
            alive = is_running()
            bar.update(count_done() - bar.n)
            if not alive:
                return
            time.sleep(POLL_SECONDS)


def threads_per_job(jobs: int) -> int:
    """Number of threads for each of `jobs` processes."""
    return max(1, (os.cpu_count() or 1) // jobs)


def _die_with_parent() -> None:
    """Request, in a worker before it starts, a SIGTERM if its parent ends in a way that cannot be caught."""
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGTERM)


@contextmanager
def signals_as_interrupt() -> Iterator[None]:
    """Let SIGTERM, and the closing of the terminal, end the block as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_workers(workers: Sequence[Worker]) -> None:
    """Ask the workers that are still running to stop, and wait: a training saves its step first."""
    for worker in workers:
        if worker.poll() is None:
            worker.send_signal(signal.SIGTERM)
    for worker in workers:
        worker.wait()


def log_tails(logs: Sequence[Path]) -> str:
    """The last lines of logs; identical ones are given once."""
    texts = [log.read_text(encoding="utf-8", errors="replace") for log in logs if log.exists()]
    last_lines = [" ".join(text.splitlines()[-TAIL_LINES:]) for text in texts]
    return " | ".join(dict.fromkeys(last_lines))
