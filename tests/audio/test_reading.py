"""Files to waveforms."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio.functional

from asda_core.audio import reading
from asda_core.audio.opening import length_and_rate
from asda_core.audio.reading import crop_or_pad, read_audio
from asda_core.audio_files.sources import find_audio
from asda_core.errors import AudioError


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
