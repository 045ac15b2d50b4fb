"""Augmentation of waveforms and spectrograms. Pure functions: what is drawn is given."""

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
