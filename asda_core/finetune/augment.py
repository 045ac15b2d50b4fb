"""Augmentation of waveforms and spectrograms. Pure functions: what is drawn is given, or drawn from a generator."""

import torch
from jaxtyping import Float
from torch import Tensor


def roll_and_gain(audio: Float[Tensor, " samples"], shift: int, gain: float) -> Float[Tensor, " samples"]:
    """Shift a clip, less its mean, around in a circle and scale it.

    **Source**: released data path (shift uniform over the clip, gain 0.5 + Beta(10, 10)).
    """
    return (audio - audio.mean()).roll(shift) * gain


def mixup(
    features: Float[Tensor, "batch bins frames"], labels: Float[Tensor, "batch classes"], weight: float
) -> tuple[Float[Tensor, "batch bins frames"], Float[Tensor, "batch classes"]]:
    """Mix every clip of a batch with its mirror clip: `weight x + (1 - weight) flip(x)`, labels likewise.

    **Source**: released fine-tuning (Zhang et al. 2018), one weight per batch. **Differs**: the release changes its
    input in place and refuses odd batches.
    """
    return torch.lerp(features.flip(0), features, weight), torch.lerp(labels.flip(0), labels, weight)


def largest_masks(num_bins: int, num_frames: int, share: float) -> tuple[int, int]:
    """Largest widths of SpecAugment's two masks (bins, frames) as a share of the spectrogram."""
    return int(num_bins * share), int(num_frames * share)


def spec_augment(
    features: Float[Tensor, "batch bins frames"], share: float, generator: torch.Generator
) -> Float[Tensor, "batch bins frames"]:
    """Set a stretch of bins and a stretch of frames of every clip to 0.

    Args:
        features: normalised, so that 0 is the mean.
        share: largest width of a mask as a share of its axis; widths and places are uniform.
        generator: a CPU generator.

    **Source**: SpecAugment (Park et al. 2019) as in the released fine-tuning.
    """
    hidden = torch.zeros(features.shape, dtype=torch.bool)
    for axis, largest in zip((1, 2), largest_masks(features.shape[1], features.shape[2], share), strict=True):
        width = (torch.rand(len(features), generator=generator) * largest).int()
        start = (torch.rand(len(features), generator=generator) * (features.shape[axis] - width)).int()
        place = torch.arange(features.shape[axis])
        inside = (place >= start[:, None]) & (place < (start + width)[:, None])
        hidden |= inside.unsqueeze(3 - axis)
    return features.masked_fill(hidden.to(features.device), 0.0)
