"""The front end against torchaudio's own function, on synthetic sound."""

import pytest
import torch
from torchaudio.compliance.kaldi import fbank

from asda_core.errors import ConfigError
from asda_core.log_mel import LogMel, LogMelConfig


def reference(audio: torch.Tensor) -> torch.Tensor:
    """The published settings, one clip at a time."""
    return fbank(
        audio[None], htk_compat=True, sample_frequency=16_000, use_energy=False, window_type="hanning",
        num_mel_bins=128, dither=0.0, frame_shift=10,
    )  # fmt: skip


def sounds() -> torch.Tensor:
    time = torch.arange(16_000) / 16_000
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 16_000, generator=generator)
    chirp = torch.sin(2 * torch.pi * (200 + 3000 * time) * time)
    return torch.stack([0.1 * noise[0], 0.5 * chirp, 0.9 * torch.sign(chirp), 1e-4 * noise[1], 0.3 * noise[2] * time])


def test_equal_to_torchaudio() -> None:
    audio = sounds()
    features = LogMel(LogMelConfig(), 16_000)(audio)
    for clip, given in zip(audio, features, strict=True):
        wanted = (reference(clip) + 4.268) / (2 * 4.569)
        assert (given.T - wanted).abs().max() < 1e-4


def test_frames_and_silence() -> None:
    front_end = LogMel(LogMelConfig(), 16_000)
    assert front_end(torch.zeros(1, 160_000)).shape == (1, 128, 998)
    assert front_end(torch.zeros(1, 400)) == pytest.approx(torch.full((1, 128, 1), -1.2775), abs=1e-3)
    with pytest.raises(ConfigError, match="399 samples are less than one window of 400"):
        front_end(torch.zeros(1, 399))


def test_an_offset_changes_nothing() -> None:
    """Kaldi takes the mean off every frame, so the released removal of the clip's mean changes only rounding."""
    front_end = LogMel(LogMelConfig(), 16_000)
    audio = sounds()[:2]
    assert torch.allclose(front_end(audio), front_end(audio + 0.1), atol=5e-3)


@pytest.mark.parametrize("options", [{"num_bins": 0}, {"hop_ms": -1.0}, {"std": 0.0}])
def test_wrong_settings(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be positive"):
        LogMelConfig(**options)  # type: ignore[arg-type]
