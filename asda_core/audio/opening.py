"""Open audio files, and describe what is wrong with those that cannot be opened."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import soundfile

from asda_core.audio.mp3 import lost_samples, open_bytes
from asda_core.audio_files.tars import member_bytes, num_bytes, split_member
from asda_core.errors import AudioError, FileAccessError, MissingFileError, error_message

UNKNOWN_FRAMES = 1 << 48
"""libsndfile reports near 2**63 frames for a stream; no file has this many."""
SYSTEM_ERROR = 2
"""libsndfile's code for a file that the system did not open or read."""
MIN_RATE, MAX_RATE = 100, 10_000_000
"""Sample rates in Hz that are taken for real ones; ultrasound is recorded at up to a few MHz."""
BLOCK_BYTES = 1 << 20
"""Number of bytes that are read at once where they are only read to see whether the disk fails."""
ATTEMPTS = 10
"""Times that a file is opened again to learn why it could not be."""
NO_FILE_CODE = 7
"""Error of libsndfile for a file that does not exist, but also for an `.mp3` without MPEG audio. **Source**: its
SFE_BAD_FILE."""


@contextmanager
def open_audio(file: str | Path, content: bytes | None = None) -> Iterator[soundfile.SoundFile]:
    """Open an audio file for reading and check that it has samples.

    Args:
        file: its path, which may point into a tar shard.
        content: its bytes, if they have been read already.

    Raises:
        FileAccessError: the file is missing, or its disk or network fails.
        AudioError: it is empty, not audio or damaged, also if this is found only while reading.
    """
    member = split_member(Path(file)) if content is None else None
    if member is not None:
        content = member_bytes(*member)
    if content is None and not os.path.isfile(file) and os.path.exists(file) and not os.path.isdir(file):
        raise AudioError(f"cannot read {file}: it is not a regular file, but a pipe or a device.")
    try:
        with _open(Path(file), content) as sound:
            if content is None and len(sound) >= UNKNOWN_FRAMES:
                _read_bytes(Path(file))
            _check_header(Path(file), len(sound), sound.samplerate)
            if lost := lost_samples(sound, Path(file), content):
                raise AudioError(
                    f"cannot use {file}: it does not state its length, and {lost} of its {len(sound) + lost} samples "
                    "would not be read; rewrite it, as with `ffmpeg -i OLD -codec copy NEW`."
                )
            yield sound
    except (OSError, soundfile.SoundFileError) as error:
        raise _read_error(Path(file), content, error) from None


def length_and_rate(file: str | Path) -> tuple[int, int]:
    """Number of samples per channel, and sample rate in Hz, from the header alone.

    Raises:
        AudioError: the header cannot be read or states no samples.
    """
    with open_audio(file) as sound:
        return len(sound), int(sound.samplerate)


def _check_header(file: Path, num_frames: int, rate: int) -> None:
    if num_frames <= 0:
        raise AudioError(f"cannot use {file}: it holds no samples.")
    if num_frames >= UNKNOWN_FRAMES:
        raise AudioError(f"cannot use {file}: its header does not state its length, as in a stream; rewrite it.")
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError(f"cannot use {file}: its header states a sample rate of {rate} Hz; is it damaged?")


def _open(file: Path, content: bytes | None) -> soundfile.SoundFile:
    return soundfile.SoundFile(os.fsencode(file)) if content is None else open_bytes(file, content)


def _known_error(file: Path, content: bytes | None, error: Exception) -> Exception:
    """The error with its code: libsndfile keeps one for all threads, which is 0 if another has just opened a file."""
    for _ in range(ATTEMPTS):
        if getattr(error, "code", None) != 0:
            break
        try:
            _open(file, content).close()
        except (OSError, soundfile.SoundFileError) as again:
            error = again
    return error


def _read_bytes(file: Path) -> None:
    """Read a file from beginning to end, to tell a disk that fails from a file that is damaged.

    Raises:
        OSError: the disk or network fails.
    """
    with file.open("rb", buffering=0) as opened:
        while opened.read(BLOCK_BYTES):
            pass


def _read_error(file: Path, content: bytes | None, error: Exception) -> AudioError:
    """Return the error to raise; libsndfile reports a disk that fails as a format that it does not recognise."""
    try:
        if content is None and not file.is_dir():
            _read_bytes(file)
    except OSError as failure:
        if isinstance(failure, FileNotFoundError | NotADirectoryError):
            return MissingFileError(f"cannot read {file}: it does not exist.")
        return FileAccessError(f"cannot read {file}: {failure.strerror}.")
    error = _known_error(file, content, error)
    kind = FileAccessError if getattr(error, "code", 0) == SYSTEM_ERROR else AudioError  # it may be over by now
    return kind(f"cannot read {file}: {_reason(file, content, error)}")


def _reason(file: Path, content: bytes | None, error: Exception) -> str:
    if content is None and file.is_dir():
        return "it is a folder."
    if (num_bytes(file) if content is None else len(content)) == 0:
        return "it is empty (0 bytes)."
    detail = error_message(error)
    if isinstance(error, soundfile.LibsndfileError):  # its message has the path too, as bytes
        detail = error.error_string if error.code != NO_FILE_CODE else ""
    return f"it is damaged, or not an audio format that libsndfile supports{detail and f' ({detail})'}."
