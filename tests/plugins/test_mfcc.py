"""The MFCC-gram front end against numpy and scipy, and against torchaudio's transform as the release calls it."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
import scipy.signal
import torch
from asda_plugins.front_end_mfcc import Mfcc, MfccConfig, asda_front_ends, mel_filters
from torchaudio.transforms import MFCC

from asda_core.audio.reading import read_audio
from asda_core.audio_files.sources import find_audio
from asda_core.config_io import parse
from asda_core.errors import ConfigError
from asda_core.testing import check_front_end

(SPEC,) = asda_front_ends()
RELEASED = parse(MfccConfig, dict(SPEC.released))
DATA = Path(__file__).parents[3] / "shared" / "data"
EMPTY = [0, 3, 6, 13]


def noise(num_samples: int, batch: int = 2) -> torch.Tensor:
    return 0.1 * torch.randn(batch, num_samples, generator=torch.Generator().manual_seed(num_samples))


def filters(num_mels: int, window: int, rate: int) -> np.ndarray:
    """Triangles that are equally wide on HTK's mel scale, drawn in Hz."""
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + rate / 2 / 700), num_mels + 2) / 2595) - 1)
    lines = np.arange(window // 2 + 1) * rate / window
    return np.stack([np.interp(lines, edges[band : band + 3], [0, 1, 0]) for band in range(num_mels)])


def reference(audio: np.ndarray, config: MfccConfig, window: int = 400, hop: int = 200) -> np.ndarray:
    """(F, T) of one clip, frame by frame in float64."""
    columns = []
    for start in range(0, len(audio) - window + 1, hop):
        frame = audio[start : start + window] * scipy.signal.get_window("hann", window)
        mel = filters(config.num_mels, window, 16_000) @ np.abs(np.fft.rfft(frame)) ** 2
        decibels = 10 * np.log10(np.maximum(mel, 1e-10))
        columns.append(scipy.fft.dct((decibels - config.mean) / (2 * config.std), type=2, norm="ortho"))
    return np.stack(columns, axis=1)[: config.num_coefficients]


def test_contract() -> None:
    check_front_end(SPEC)
    check_front_end(SPEC, **SPEC.released)
    check_front_end(SPEC, num_coefficients=13, num_mels=40, window_ms=32.0, hop_ms=10.0)


@pytest.mark.parametrize("num_samples", [400, 401, 599, 600, 601, 12_345])
def test_equal_to_numpy_and_scipy(num_samples: int) -> None:
    audio = noise(num_samples)
    features = Mfcc(MfccConfig(), 16_000)(audio)
    assert features.shape == (2, 128, 1 + (num_samples - 400) // 200)
    for clip, given in zip(audio, features, strict=True):
        assert given.numpy() == pytest.approx(reference(clip.double().numpy(), MfccConfig()), abs=1e-4)


def test_fewer_coefficients_and_other_frames() -> None:
    config = MfccConfig(num_coefficients=20, num_mels=64, window_ms=32.0, hop_ms=10.0)
    audio = noise(5_001, 1)
    wanted = reference(audio[0].double().numpy(), config, 512, 160)
    assert Mfcc(config, 16_000)(audio)[0].numpy() == pytest.approx(wanted, abs=1e-4)


def test_released_options_are_torchaudios_transform() -> None:
    """Inside the clip, one frame later, where nothing is 80 dB below the loudest (and so lifted) but empty bands."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transform = MFCC(16_000, 128, melkwargs={"f_min": 0.0, "f_max": None})
    transform.amplitude_to_DB.top_db = None
    audio = noise(64_000)
    released = transform(audio)
    assert released.shape[2] == 321
    ours = Mfcc(RELEASED, 16_000)(audio)
    assert ours.shape[2] == 319
    assert (ours - released[:, :, 1:-1]).abs().max() < 2e-2  # of values up to 1,000


def test_the_turn_loses_nothing() -> None:
    """The transform turns the normalised mel spectrum; turned back, it is there again."""
    front_end = Mfcc(MfccConfig(), 16_000)
    audio = noise(8_000)
    back = scipy.fft.idct(front_end(audio).double().numpy(), type=2, norm="ortho", axis=1)
    assert back * 2 * 24.74 - 25.41 == pytest.approx(front_end.decibels(audio).mT.numpy(), abs=1e-3)
    lengths = (front_end(audio).norm(dim=1), ((front_end.decibels(audio) + 25.41) / (2 * 24.74)).norm(dim=2))
    assert torch.allclose(*lengths, rtol=1e-4)


def test_normalising_moves_the_first_coefficient_and_scales_all() -> None:
    audio = noise(4_000)
    shift = torch.zeros(128, 1)
    shift[0] = -25.41 * 128**0.5
    wanted = (Mfcc(RELEASED, 16_000)(audio) - shift) / (2 * 24.74)
    assert torch.allclose(Mfcc(MfccConfig(), 16_000)(audio), wanted, atol=1e-3)


def test_silence() -> None:
    silence = torch.zeros(1, 800)
    released = Mfcc(RELEASED, 16_000)(silence)
    assert released[0, 0].tolist() == pytest.approx([-100 * 128**0.5] * 3, rel=1e-5)
    assert released[0, 1:].abs().max() < 1e-2
    assert Mfcc(MfccConfig(), 16_000)(silence)[0, 0, 0] == pytest.approx((25.41 - 100) / 49.48 * 128**0.5, rel=1e-4)


def test_bands_without_a_filter() -> None:
    """Four of 128 at 16 kHz, which the docstring names; nobody is warned, and other warnings are not swallowed."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bank = mel_filters(MfccConfig(), 16_000, 400)
    assert (bank.amax(dim=0) == 0).nonzero().flatten().tolist() == EMPTY
    assert filters(128, 400, 16_000).max(axis=1).nonzero()[0].tolist() == [n for n in range(128) if n not in EMPTY]
    decibels = Mfcc(MfccConfig(), 16_000).decibels(noise(4_000))
    assert (decibels[..., EMPTY] == -100).all()
    assert (mel_filters(MfccConfig(num_coefficients=40, num_mels=40), 16_000, 400).amax(dim=0) > 0).all()


def test_a_clip_does_not_hear_of_those_beside_it() -> None:
    """The release lifts what is 80 dB below the loudest of the batch."""
    front_end = Mfcc(RELEASED, 16_000)
    quiet = 1e-4 * noise(2_000, 1)
    alone = front_end(quiet)
    assert torch.allclose(front_end(torch.cat([quiet, 1e4 * quiet]))[:1], alone, atol=1e-3)


def test_too_short() -> None:
    with pytest.raises(ConfigError, match="399 samples are less than one window of 400"):
        Mfcc(MfccConfig(), 16_000)(torch.zeros(1, 399))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_mels": 0}, "num_mels must be positive, not 0"),
        ({"num_coefficients": 0}, "num_coefficients must be positive"),
        ({"hop_ms": -1.0}, "hop_ms must be positive"),
        ({"std": 0.0}, "std must be positive"),
        ({"num_mels": 64}, "num_coefficients must be at most num_mels, 64, not 128"),
    ],
)
def test_wrong_settings(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"front_end\.options\.{message}"):
        MfccConfig(**options)  # type: ignore[arg-type]


def test_frames_shorter_than_a_sample() -> None:
    with pytest.raises(ConfigError, match="must be at least one sample at 16000 Hz, not 25.0 and 0.01"):
        Mfcc(MfccConfig(hop_ms=0.01), 16_000)


@pytest.mark.shared
@pytest.mark.slow
def test_mean_and_spread_are_those_of_real_sound() -> None:
    """What the docstring says of ESC-10, FSDD and both together."""
    front_end = Mfcc(MfccConfig(), 16_000)
    sums = {}
    for name in ("esc10", "fsdd"):
        sums[name] = np.zeros(3)
        for file in find_audio(DATA / name):
            values = front_end.decibels(read_audio(file, 16_000)[None]).double()
            values = values[values > -99.999]
            sums[name] += [values.numel(), values.sum(), values.square().sum()]
    sums["both"] = sums["esc10"] + sums["fsdd"]
    wanted = {"esc10": (-19.56, 22.57), "fsdd": (-33.90, 25.28), "both": (MfccConfig().mean, MfccConfig().std)}
    for name, (count, total, square) in sums.items():
        mean = total / count
        assert (mean, (square / count - mean**2) ** 0.5) == pytest.approx(wanted[name], abs=6e-3), name
