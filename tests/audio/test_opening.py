"""Files that cannot be opened, and what is said of them."""

import errno
import io
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from asda_core.audio import opening
from asda_core.audio.opening import length_and_rate
from asda_core.audio.reading import read_audio
from asda_core.audio_files.digests import ends_digest
from asda_core.errors import AudioError, FileAccessError
from tests.audio.test_reading import tone


def bad_file(folder: Path, kind: str) -> Path:
    file = folder / f"{kind}.wav"
    if kind == "empty":
        file.touch()
    elif kind == "text":
        file.write_text("this is not audio")
    elif kind == "nan":
        soundfile.write(file, np.array([0.0, np.nan, 0.5]), 16_000, subtype="FLOAT")
    elif kind == "silent_header":
        soundfile.write(file, np.zeros(0), 16_000)
    elif kind == "folder":
        file.mkdir()
    elif kind == "truncated":
        soundfile.write(folder / "whole.flac", tone(16_000), 16_000)
        file.write_bytes((folder / "whole.flac").read_bytes()[:40])
    return file


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", r"cannot read .*empty.wav: it is empty \(0 bytes\)"),
        ("text", r"cannot read .*text.wav: it is damaged, or not an audio format that libsndfile supports"),
        ("nan", r"cannot use .*nan.wav: 1 samples are NaN or infinite, the first at index \[1\]"),
        ("silent_header", "no samples"),
        ("folder", "it is a folder"),
        ("truncated", "damaged"),
        ("missing", "it does not exist"),
    ],
)
def test_bad_files(tmp_path: Path, kind: str, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        read_audio(bad_file(tmp_path, kind), 16_000)


@pytest.mark.parametrize(("suffix", "detail"), [("mp3", ""), ("wav", " (Format not recognised.)")])
def test_the_reason_states_the_cause_alone(tmp_path: Path, suffix: str, detail: str) -> None:
    """libsndfile says of a text file called `.mp3` that it does not exist; soundfile adds the path as bytes."""
    file = tmp_path / f"text.{suffix}"
    file.write_text("hello world\n" * 100)
    with pytest.raises(AudioError) as told:
        read_audio(file, 16_000)
    reason = f"it is damaged, or not an audio format that libsndfile supports{detail}."
    assert str(told.value) == f"cannot read {file}: {reason}"


@pytest.mark.parametrize("kind", ["empty", "text", "folder", "truncated", "missing"])
def test_only_a_file_that_is_missing_may_come_back(tmp_path: Path, kind: str) -> None:
    with pytest.raises(AudioError) as caught:
        read_audio(bad_file(tmp_path, kind), 16_000)
    assert isinstance(caught.value, FileAccessError) == (kind == "missing")


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file whose first byte the system does not read")
def test_a_disk_that_fails_is_no_damaged_file() -> None:
    with pytest.raises(FileAccessError, match="cannot read /proc/self/mem: Input/output error"):
        read_audio("/proc/self/mem", 16_000)


@pytest.mark.parametrize("length_unknown", [False, True])
def test_a_disk_that_fails_in_the_middle_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length_unknown: bool
) -> None:
    """libsndfile sees a damaged file, or an Ogg without its last page, which states the length."""
    file = tmp_path / "a.flac"
    soundfile.write(file, np.random.default_rng(0).normal(size=64_000) / 10, 16_000)
    os.truncate(file, 8_000)
    if length_unknown:
        monkeypatch.setattr(soundfile.SoundFile, "__len__", lambda _: opening.UNKNOWN_FRAMES)
    with pytest.raises(AudioError) as damaged:
        read_audio(file, 16_000)
    assert not isinstance(damaged.value, FileAccessError)

    class FailsAtTheEnd(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if content := super().read(size):
                return content
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "open", lambda self, *_, **__: FailsAtTheEnd(self))
    with pytest.raises(FileAccessError, match=f"cannot read {file}: Input/output error"):
        read_audio(file, 16_000)


def test_a_failure_that_is_over_when_it_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "good.wav", tone(16_000), 16_000)

    def fails(*_: object) -> None:
        raise soundfile.LibsndfileError(opening.SYSTEM_ERROR)

    monkeypatch.setattr(soundfile, "SoundFile", fails)
    with pytest.raises(FileAccessError, match="System error"):
        read_audio(tmp_path / "good.wav", 16_000)


def test_an_error_code_that_another_thread_has_reset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """libsndfile issue 610: the code of a failed opening is one variable for all threads."""
    (tmp_path / "text.wav").write_text("no audio " * 100)
    with pytest.raises(AudioError) as known:
        read_audio(tmp_path / "text.wav", 16_000)
    real, codes = soundfile.SoundFile, [0, 0]

    def opened(*given: Any) -> soundfile.SoundFile:
        if codes:
            raise soundfile.LibsndfileError(codes.pop())
        return real(*given)

    monkeypatch.setattr(soundfile, "SoundFile", opened)
    with pytest.raises(AudioError) as told:
        read_audio(tmp_path / "text.wav", 16_000)
    assert str(told.value) == str(known.value)


def test_a_streamed_file_does_not_tell_its_length(tmp_path: Path) -> None:
    """A FLAC from a pipe has 0 in its header for the number of samples."""
    file = tmp_path / "stream.flac"
    soundfile.write(file, tone(16_000), 16_000)
    content = bytearray(file.read_bytes())
    content[21] &= 0xF0  # the low 36 bits of bytes 18 to 25 count the samples
    content[22:26] = bytes(4)
    file.write_bytes(content)
    for ask in (length_and_rate, lambda name: read_audio(name, 16_000)):
        with pytest.raises(AudioError, match="its header does not state its length"):
            ask(file)


def test_a_header_that_tells_too_much(tmp_path: Path) -> None:
    """A FLAC whose header claims 2^35 samples is an audio error like any other."""
    file = tmp_path / "a.flac"
    soundfile.write(file, np.zeros(1000), 16_000)
    damaged = bytearray(file.read_bytes())
    damaged[21] |= 0x0F  # the upper four of the 36 bits of STREAMINFO's number of samples
    file.write_bytes(bytes(damaged))
    assert length_and_rate(file)[0] >= 1 << 35
    with pytest.raises(AudioError, match="its header states .* samples, too many for memory|damaged"):
        read_audio(file, 16_000)


def test_a_rate_that_no_audio_has(tmp_path: Path) -> None:
    file = tmp_path / "fast.wav"
    for rate in (7, 100_000_000):
        soundfile.write(file, tone(16_000), rate)
        with pytest.raises(AudioError, match=f"states a sample rate of {rate} Hz"):
            read_audio(file, 16_000)


def test_a_name_that_is_no_utf_8(tmp_path: Path) -> None:
    """Of an old archive, say."""
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav"))
    soundfile.write(tmp_path / "x.wav", 0.1 * np.ones(800), 16_000)
    (tmp_path / "x.wav").rename(file)
    assert len(read_audio(file, 16_000)) == 800


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "a.wav"
    os.mkfifo(pipe)
    with pytest.raises(AudioError, match="it is not a regular file, but a pipe or a device"):
        read_audio(pipe, 16_000)
    assert ends_digest(pipe) == ""
