"""Files to waveforms, and what is said of bad ones."""

import errno
import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio.functional

from asda_core.audio import reading
from asda_core.audio.reading import crop_or_pad, length_and_rate, read_audio
from asda_core.audio_files.digests import ends_digest
from asda_core.audio_files.sources import find_audio
from asda_core.errors import AudioError, FileAccessError


def tone(rate: int, seconds: float = 1.0, hertz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_any_format_and_rate(tmp_path: Path, suffix: str, rate: int) -> None:
    file = tmp_path / f"tone.{suffix}"
    soundfile.write(file, tone(rate), rate)
    audio = read_audio(file, 16_000)
    assert audio.dtype == torch.float32
    assert abs(len(audio) - 16_000) <= 1
    spectrum = torch.fft.rfft(audio[:16_000]).abs()
    assert int(spectrum.argmax()) == 440
    num_frames, rate = length_and_rate(file)
    assert num_frames / rate == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(("suffix", "subtype"), [("wav", "GSM610"), ("au", "G721_32")])
def test_a_stretch_of_what_cannot_be_sought_in(
    tmp_path: Path, suffix: str, subtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BLOCK_SAMPLES", 5_000)
    file = tmp_path / f"a.{suffix}"
    soundfile.write(file, tone(8_000, 3.0), 8_000, subtype=subtype)
    assert torch.equal(read_audio(file, 8_000, 1.5, 1.0), read_audio(file, 8_000)[12_000:20_000])


def test_stereo_is_averaged_before_resampling(tmp_path: Path) -> None:
    """The released code resamples along the channels: 44.1 kHz stereo keeps its samples and plays slower."""
    left, right = tone(44_100), tone(44_100, hertz=1000)
    soundfile.write(tmp_path / "stereo.wav", np.stack([left, right], 1), 44_100, subtype="FLOAT")
    mean = torch.from_numpy((left + right) / 2).float()
    wanted = torchaudio.functional.resample(mean, 44_100, 16_000)
    assert torch.allclose(read_audio(tmp_path / "stereo.wav", 16_000), wanted, atol=1e-6)


def test_stretch(tmp_path: Path) -> None:
    signal = np.linspace(-0.5, 0.5, 32_000)
    soundfile.write(tmp_path / "ramp.wav", signal, 16_000, subtype="FLOAT")
    audio = read_audio(tmp_path / "ramp.wav", 16_000, start_seconds=0.5, seconds=0.25)
    assert np.allclose(audio, signal[8_000:12_000], atol=1e-6)
    with pytest.raises(AudioError, match="no samples from 3 s"):
        read_audio(tmp_path / "ramp.wav", 16_000, start_seconds=3)


def test_segments_begin_and_end_with_the_samples_that_their_times_state(tmp_path: Path) -> None:
    """`first / rate * rate` is often less than `first`, and `count / rate * rate` more than `count`."""
    rate, count = 44_100, 3_000
    inexact = [first for first in range(1, rate) if int(first / rate * rate) != first or count / rate * rate > count]
    assert len(inexact) > 100
    soundfile.write(tmp_path / "ramp.wav", np.arange(2 * rate) / rate, rate, subtype="FLOAT")
    for first in inexact[::20]:
        audio = read_audio(tmp_path / "ramp.wav", rate, start_seconds=first / rate, seconds=count / rate)
        assert torch.equal((audio * rate).round().int(), torch.arange(first, first + count, dtype=torch.int))


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
        monkeypatch.setattr(soundfile.SoundFile, "__len__", lambda _: reading.UNKNOWN_FRAMES)
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
        raise soundfile.LibsndfileError(reading.SYSTEM_ERROR)

    monkeypatch.setattr(soundfile, "SoundFile", fails)
    with pytest.raises(FileAccessError, match="System error"):
        read_audio(tmp_path / "good.wav", 16_000)


def test_absurd_samples(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "wild.wav", np.array([0.0, 1e25]), 16_000, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"samples reach 1e\+25, expected \[-1, 1\]"):
        read_audio(tmp_path / "wild.wav", 16_000)


def test_a_rate_without_a_small_ratio(tmp_path: Path) -> None:
    """Its exact kernel would take gigabytes."""
    soundfile.write(tmp_path / "odd.wav", tone(16_001), 16_001)
    audio = read_audio(tmp_path / "odd.wav", 16_000)
    assert abs(len(audio) - 16_000) <= 1
    assert int(torch.fft.rfft(audio).abs().argmax()) == 440


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


def test_crop_or_pad() -> None:
    audio = torch.arange(5.0)
    assert crop_or_pad(audio, 3, 1).tolist() == [1, 2, 3]
    assert crop_or_pad(audio, 7).tolist() == [0, 1, 2, 3, 4, 0, 0]
    assert crop_or_pad(audio, 2, 9).tolist() == [0, 0]


def test_find_audio(audio_folder: Path, tmp_path: Path) -> None:
    found = find_audio(audio_folder)
    assert [file.name for file in found] == ["sound0.wav", "sound1.flac", "sound2.ogg", "sound3.wav", "sound4.wav"]
    assert find_audio(found[0]) == [found[0]]
    manifest = tmp_path / "train.tsv"
    manifest.write_text("audio\nsound2.ogg\t44100\nsound0.wav\t16000\n")
    assert find_audio(manifest) == [found[2], found[0]]
    odd = tmp_path / "a, b c.wav"
    manifest.write_text('filename,label\na, b c.wav\n"a, b c.wav",dog\nno_audio.txt\n')
    assert find_audio(manifest) == [odd, odd, tmp_path / "no_audio.txt"]
    for wrong in (tmp_path / "none", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(AudioError, match="no folder, manifest|no audio files"):
            find_audio(wrong)


@pytest.mark.parametrize("rate", [44_100, 22_050, 48_000, 8_000, 15_999])
def test_long_audio_in_blocks_is_the_same(rate: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Read and resampled block by block is what the whole at once is, to rounding."""
    sound = 0.1 * np.random.default_rng(0).normal(size=(50_001, 2))
    soundfile.write(tmp_path / "a.wav", sound, rate, subtype="FLOAT")
    whole = [read_audio(tmp_path / "a.wav", 16_000, resample_along=along) for along in ("time", "channels")]
    stretch = read_audio(tmp_path / "a.wav", 16_000, 0.5, 0.7)
    monkeypatch.setattr(reading, "BLOCK_SAMPLES", 7_000)
    for along, wanted in zip(("time", "channels"), whole, strict=True):
        blocks = read_audio(tmp_path / "a.wav", 16_000, resample_along=along)
        assert torch.allclose(blocks, wanted, atol=1e-6)
    assert torch.allclose(read_audio(tmp_path / "a.wav", 16_000, 0.5, 0.7), stretch, atol=1e-6)


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


@pytest.mark.parametrize("rate", [8_000, 22_050, 32_000, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("shape", [(48_000,), (2, 5_001)])
def test_kept_kernels_give_the_same_bits(rate: int, shape: tuple[int, ...]) -> None:
    sound = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        assert torch.equal(reading.resample(sound, rate, 16_000), torchaudio.functional.resample(sound, rate, 16_000))
    double = sound.double()
    assert torch.equal(reading.resample(double, rate, 16_000), torchaudio.functional.resample(double, rate, 16_000))


@pytest.mark.parametrize("rate", [44_100, 22_050, 3_000])
def test_every_length_is_resampled_whole(rate: int) -> None:
    """torchaudio counts samples in float32: of 441,102 at 44.1 kHz, or of many more at any rate, it loses some."""
    sound = torch.randn(441_441, generator=torch.Generator().manual_seed(0))
    old, new = reading.samples_per_period(rate, 16_000)
    for length in (*range(441_000, 441_000 + min(old, 441)), 441_102):
        resampled = reading.resample(sound[:length], rate, 16_000)
        assert len(resampled) == -(-length * new // old)
        if length in (441_000, 441_102):
            wanted = torchaudio.functional.resample(sound[:length], rate, 16_000)
            assert torch.equal(resampled[: len(wanted)], wanted)


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
