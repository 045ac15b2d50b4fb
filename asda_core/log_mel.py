"""The reference front end: Kaldi log-mel, normalised.

**Source**: the released data path (`torchaudio.compliance.kaldi.fbank` with 128 bins, 10 ms hop, symmetric Hann
window, no dither, power spectrum, natural log floored at the float32 epsilon), mean and standard deviation of AudioSet.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchaudio.compliance.kaldi import get_mel_banks

from asda_core.contracts import FrontEndContext, FrontEndSpec, hookimpl
from asda_core.errors import ConfigError

PREEMPHASIS = 0.97
"""Weight of the previous sample. **Source**: Kaldi's default."""
LOW_HZ = 20.0
"""Lower edge of the lowest mel bin; the upper edge is half the sample rate. **Source**: Kaldi's default."""
HIGH_HZ = 0.0
"""Upper edge of the highest mel bin, counted from half the sample rate. **Source**: Kaldi's default."""
NO_WARPING = (100.0, -500.0, 1.0)
"""Edges and factor of vocal-tract-length warping; the factor 1 means none. **Source**: Kaldi's defaults."""
LOG_FLOOR = float(torch.finfo(torch.float32).eps)
"""Smallest power before the logarithm: silence is ln(1.19e-7) = -15.94. **Source**: torchaudio's Kaldi code."""

MIN_BINS, MIN_WINDOW_SAMPLES = 4, 2
"""Smallest numbers of mel bins, and of samples in a window, that torchaudio's mel banks and the FFT accept."""


@dataclass(frozen=True)
class LogMelConfig:
    """Settings of the log-mel spectrogram.

    Attributes:
        num_bins: mel bins between 20 Hz and half the sample rate.
        window_ms, hop_ms: length of a frame and distance between two frames.
        mean, std: statistics of the training set; the result is (x - mean) / (2 std). AudioSet -4.268, 4.569;
            ESC-50 -6.627, 5.359; Speech Commands V2 -6.846, 5.565; FSD50K -7.966, 4.753.
    """

    num_bins: int = 128
    window_ms: float = 25.0
    hop_ms: float = 10.0
    mean: float = -4.268
    std: float = 4.569

    def __post_init__(self) -> None:
        for name in ("num_bins", "window_ms", "hop_ms", "std"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"front_end.options.{name} must be positive, not {getattr(self, name)}.")
        if self.num_bins < MIN_BINS:
            raise ConfigError(f"front_end.options.num_bins must be at least {MIN_BINS}, not {self.num_bins}.")


class LogMel(nn.Module):
    """Audio (B, S) in [-1, 1] -> features (B, F, T), batched; what depends only on the settings is computed once.

    Attributes:
        filling: value with which the release pads short clips: a log-mel of 0, normalised.

    **Differs**: equal to torchaudio's function up to float32 rounding, but batched. The mean of the clip is not
    subtracted first, since Kaldi subtracts the mean of every frame anyway.
    """

    def __init__(self, config: LogMelConfig, sample_rate: int) -> None:
        super().__init__()
        self.sample_rate = sample_rate
        self.num_bins = config.num_bins
        self.window_samples = int(sample_rate * config.window_ms / 1000)
        self.hop_samples = int(sample_rate * config.hop_ms / 1000)
        if self.window_samples < MIN_WINDOW_SAMPLES or self.hop_samples < 1:
            raise ConfigError(
                f"front_end.options.window_ms and hop_ms must span at least {MIN_WINDOW_SAMPLES} samples and 1 sample "
                f"at {sample_rate} Hz, not {config.window_ms} ms and {config.hop_ms} ms."
            )
        self.fft_samples = 1 << (self.window_samples - 1).bit_length()  # next power of two
        self.mean, self.std = config.mean, config.std
        self.filling = -config.mean / (2 * config.std)
        mel, _ = get_mel_banks(config.num_bins, self.fft_samples, float(sample_rate), LOW_HZ, HIGH_HZ, *NO_WARPING)
        self.mel: Tensor
        self.window: Tensor
        self.register_buffer("mel", nn.functional.pad(mel, (0, 1)).T.contiguous(), persistent=False)
        self.register_buffer("window", torch.hann_window(self.window_samples, periodic=False), persistent=False)

    def forward(self, audio: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch bins frames"]:
        """Compute the frames that fit wholly into the audio; at least one window of samples is needed.

        Raises:
            ConfigError: the audio is shorter than one window.
        """
        if audio.shape[1] < self.window_samples:
            raise ConfigError(f"{audio.shape[1]} samples are less than one window of {self.window_samples}.")
        frames = audio.unfold(1, self.window_samples, self.hop_samples)  # (B, T, window)
        frames = frames - frames.mean(dim=2, keepdim=True)
        previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=2)
        spectrum = torch.fft.rfft((frames - PREEMPHASIS * previous) * self.window, n=self.fft_samples)
        power = spectrum.real.square() + spectrum.imag.square()  # (B, T, fft/2 + 1)
        log_mel = (power @ self.mel).clamp(min=LOG_FLOOR).log()
        normalised: Tensor = (log_mel - self.mean) / (2 * self.std)
        return normalised.transpose(1, 2)


def build(config: LogMelConfig, context: FrontEndContext) -> LogMel:
    """Build the front end from its options and the sample rate."""
    return LogMel(config, context.sample_rate)


@hookimpl
def asda_front_ends() -> Iterable[FrontEndSpec[LogMelConfig]]:
    """Offer `log_mel`."""
    return [
        FrontEndSpec(
            name="log_mel",
            config=LogMelConfig,
            build=build,
            summary="Kaldi log-mel spectrogram, 128 bins, 25/10 ms",
            source="released ASDA and EAT data path; torchaudio.compliance.kaldi.fbank",
        )
    ]
