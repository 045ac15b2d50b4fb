"""MFCC-grams: as many cepstral coefficients as mel bands, so that the cosine transform is a lossless rotation.

    audio --> 25 ms frames --> power --> mel --> dB --> (x - mean) / (2 std) --> DCT-II --> coefficients

**Source**: Gauy and Finger, Audio MFCC-gram Transformers (STIL 2021, arXiv 2210.14085), released code: torchaudio's
MFCC with 128 coefficients and everything else at its default.
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchaudio.functional import create_dct, melscale_fbanks

from asda_core.contracts import FrontEndContext, FrontEndSpec, hookimpl
from asda_core.errors import ConfigError

LOW_HZ = 0.0
"""Lower edge of the lowest mel band; the upper edge is half the sample rate. **Source**: released code."""
POWER_FLOOR = 1e-10
"""Smallest power before the logarithm: silence is -100 dB. **Source**: torchaudio's `AmplitudeToDB`."""
EMPTY_BANDS = "At least one mel filterbank has all zero values"
"""How torchaudio's warning begins."""


@dataclass(frozen=True)
class MfccConfig:
    """Settings of the MFCC-gram; the first four are the published ones.

    Attributes:
        num_coefficients: number of coefficients kept, from the lowest.
        num_mels: mel bands between 0 Hz and half the sample rate.
        window_ms, hop_ms: frame length and hop.
        mean, std: in dB, of the mel spectrum before the cosine transform, which is applied to
            (x - mean) / (2 std). The defaults were measured on ESC-10 and FSDD together, resampled to 16 kHz, without
            values at the floor (digital silence, empty bands); separately ESC-10 -19.56, 22.57; FSDD -33.90, 25.28.
            0 and 0.5 leave dB unchanged, as the release does.
    """

    num_coefficients: int = 128
    num_mels: int = 128
    window_ms: float = 25.0
    hop_ms: float = 12.5
    mean: float = -25.41
    std: float = 24.74

    def __post_init__(self) -> None:
        for name in ("num_coefficients", "num_mels", "window_ms", "hop_ms", "std"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"front_end.options.{name} must be positive, not {getattr(self, name)}.")
        if self.num_coefficients > self.num_mels:
            raise ConfigError(
                f"front_end.options.num_coefficients must be at most num_mels, {self.num_mels}, "
                f"not {self.num_coefficients}."
            )


class Mfcc(nn.Module):
    """Audio (B, S) in [-1, 1] -> coefficients (B, F, T).

    The mel spectrum is normalised, not the coefficients: the transform is orthonormal, so the two differ only in the
    first coefficient, and one mean and one std suffice for all.

    At 16 kHz 4 of the 128 bands (0, 3, 6 and 13) lie between two bins of the 400-point spectrum and are empty: they
    are always at the floor, as in the release. torchaudio's warning about them at construction is suppressed.

    **Differs**: frame f begins at sample f * hop; the release's frame f is centred there, with the audio mirrored at
    both ends (4 s: 319 frames, not 321). The release clamps values to at least 80 dB below the loudest of the batch, so
    that a clip depends on the others in its batch; it does not normalise.
    """

    def __init__(self, config: MfccConfig, sample_rate: int) -> None:
        super().__init__()
        self.sample_rate = sample_rate
        self.num_bins = config.num_coefficients
        self.window_samples = int(sample_rate * config.window_ms / 1000)
        self.hop_samples = int(sample_rate * config.hop_ms / 1000)
        if min(self.window_samples, self.hop_samples) < 1:
            raise ConfigError(
                f"front_end.options.window_ms and hop_ms must be at least one sample at {sample_rate} Hz, "
                f"not {config.window_ms} and {config.hop_ms}."
            )
        self.mean, self.std = config.mean, config.std
        self.mel: Tensor
        self.window: Tensor
        self.turn: Tensor
        filters = mel_filters(config, sample_rate, self.window_samples)
        if not filters.any():
            raise ConfigError(
                f"front_end.options.window_ms {config.window_ms:g} is {self.window_samples} samples at {sample_rate} "
                "Hz: too short for any FFT bin to lie in a mel band."
            )
        self.register_buffer("mel", filters, persistent=False)
        self.register_buffer("window", torch.hann_window(self.window_samples), persistent=False)
        dct = create_dct(config.num_coefficients, config.num_mels, norm="ortho")
        self.register_buffer("turn", dct, persistent=False)

    def forward(self, audio: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch bins frames"]:
        """Return the coefficients of all frames that fit entirely into the audio.

        Raises:
            ConfigError: the audio is shorter than one window.
        """
        normalised = (self.decibels(audio) - self.mean) / (2 * self.std)
        return (normalised @ self.turn).transpose(1, 2)

    def decibels(self, audio: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frames mels"]:
        """Return the mel spectrum in dB, before normalisation and transform; arguments and errors as in `forward`."""
        if audio.shape[1] < self.window_samples:
            raise ConfigError(f"{audio.shape[1]} samples are less than one window of {self.window_samples}.")
        frames = audio.unfold(1, self.window_samples, self.hop_samples)  # (B, T, window)
        spectrum = torch.fft.rfft(frames * self.window)
        power = spectrum.real.square() + spectrum.imag.square()  # (B, T, window/2 + 1)
        decibels: Tensor = 10 * (power @ self.mel).clamp(min=POWER_FLOOR).log10()
        return decibels


def mel_filters(config: MfccConfig, sample_rate: int, fft_samples: int) -> Float[Tensor, "lines mels"]:
    """Return triangular filters on the HTK mel scale with peak 1; those between two bins of the spectrum are empty."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=EMPTY_BANDS)
        filters: Tensor = melscale_fbanks(fft_samples // 2 + 1, LOW_HZ, sample_rate / 2, config.num_mels, sample_rate)
    return filters


def build(config: MfccConfig, context: FrontEndContext) -> Mfcc:
    """Build the front end from its options and the sample rate."""
    return Mfcc(config, context.sample_rate)


@hookimpl
def asda_front_ends() -> Iterable[FrontEndSpec[MfccConfig]]:
    """Offer `mfcc`."""
    return [
        FrontEndSpec(
            name="mfcc",
            config=MfccConfig,
            build=build,
            summary="MFCC-gram, 128 coefficients of 128 mel bands, 25/12.5 ms",
            source="Gauy and Finger 2021 (arXiv 2210.14085), released code; torchaudio.transforms.MFCC",
            released={"mean": 0.0, "std": 0.5},
        )
    ]
