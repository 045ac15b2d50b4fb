"""Checks of audio: that it is a floating-point waveform, and that its samples are finite and not absurdly large."""

import math
import warnings

import torch
from torch import Tensor

from asda_core.errors import AudioError

MAX_AMPLITUDE = 1e6
"""Larger samples count as damage: unscaled 16-bit samples reach 32,768."""

UNSCALED_PEAK = 100.0
"""Peak of samples that were most likely integers, not divided by their full scale: overload in floating point is less.
"""
WAVEFORM_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""Types of samples; those of 8 bits have no arithmetic in PyTorch."""


def check_waveform(audio: object) -> Tensor:
    """Return audio given by a caller if it is a dense floating-point tensor: integers would count as unscaled samples.

    Raises:
        AudioError: it is something else.
    """
    if not isinstance(audio, Tensor):
        raise AudioError(f"audio must be a torch tensor, not {type(audio).__name__}; convert it with torch.from_numpy.")
    if audio.dtype not in WAVEFORM_DTYPES:
        remedy = "; convert it with audio.float()" if audio.is_floating_point() else ""
        raise AudioError(f"audio must be floating point in [-1, 1], not {audio.dtype}{remedy}.")
    if audio.is_nested:
        raise AudioError("audio must be a dense tensor, not a nested one; pass its clips one by one.")
    if audio.layout != torch.strided:
        raise AudioError(f"audio must be a dense tensor, not {audio.layout}; convert it with audio.to_dense().")
    return audio


def check_samples(audio: Tensor, name: str) -> None:
    """Check that no sample is NaN, infinite or absurdly large.

    Raises:
        AudioError: stating how many are not finite and where the first one is, or how large the largest is.
    """
    if not audio.numel():
        return
    low, high = (float(value) for value in torch.aminmax(audio))  # NaN if any sample is; does not copy hours of audio
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = ~torch.isfinite(audio)
        raise non_finite_error(name, int(bad.sum()), bad.nonzero()[0].tolist())
    if max(-low, high) > MAX_AMPLITUDE:
        raise amplitude_error(name, max(-low, high))


def warn_if_unscaled(audio: Tensor) -> None:
    """Warn if samples that a caller gives seem to be integers that were not divided by their full scale."""
    peak = max(abs(float(value)) for value in torch.aminmax(audio))  # `abs` would copy hours of audio
    if peak > UNSCALED_PEAK:
        warnings.warn(
            f"the samples reach {peak:.6g}, expected [-1, 1]; divide those of 16 bits by 32768.", stacklevel=2
        )


def non_finite_error(name: str, count: int, first: list[int]) -> AudioError:
    """The error for NaN or infinite samples."""
    return AudioError(f"cannot use {name}: {count} samples are NaN or infinite, the first at index {first}.")


def amplitude_error(name: str, largest: float) -> AudioError:
    """The error for samples above `MAX_AMPLITUDE`."""
    return AudioError(f"cannot use {name}: samples reach {largest:.3g}, expected [-1, 1].")
