"""Augmentation of audio, features and batches, in the order of the released recipes.

NumPy generators are passed as arguments; torch draws from its global generator, which training seeds for each step.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torchaudio.functional import mask_along_axis_iid

from asda_core.finetune_config import MixupConfig, SpecAugmentConfig

GAIN_BETA = 10.0
"""Both parameters of the Beta distribution of the gain. **Source**: released data path."""
GAIN_SHIFT = 0.5
"""Offset added to that sample: the gain lies in 0.5 to 1.5. **Source**: released data path."""
BIN_AXIS, FRAME_AXIS = 2, 3
"""Axes for torchaudio's masks, which expect (B, 1, F, T)."""


def roll_and_gain(audio: Float[Tensor, " samples"], shift: int, gain: float) -> Float[Tensor, " samples"]:
    """Subtract the mean of a clip, shift it circularly and scale it.

    **Source**: released data path (shift uniform over the clip, gain 0.5 + Beta(10, 10)).
    **Differs**: the release rolls whole files before cropping; here the crop is, which is the same if it is the file.
    """
    return (audio - audio.mean()).roll(shift) * gain


def random_roll_and_gain(audio: Float[Tensor, " samples"], generator: np.random.Generator) -> Float[Tensor, " samples"]:
    """`roll_and_gain` with a random shift and gain."""
    shift = int(generator.integers(len(audio)))
    return roll_and_gain(audio, shift, GAIN_SHIFT + float(generator.beta(GAIN_BETA, GAIN_BETA)))


def noise_and_shift(
    features: Float[Tensor, "batch bins frames"], noise: float, shift: int
) -> Float[Tensor, "batch bins frames"]:
    """Add uniform noise with an amplitude uniform in [0, `noise`) per clip, and roll each by up to `shift` frames.

    **Source**: released Speech Commands recipe (noise 0.1, shift from -10 to 9), which calls the noise Gaussian.
    """
    if noise:
        amplitude = torch.rand(len(features), 1, 1, device=features.device) * noise
        features = features + torch.rand_like(features) * amplitude
    if shift:
        shifts = torch.randint(-shift, shift, (len(features),)).tolist()
        features = torch.stack([clip.roll(frames, dims=1) for clip, frames in zip(features, shifts, strict=True)])
    return features


def mixup_weights(config: MixupConfig, batch: int, generator: np.random.Generator) -> Float[Tensor, " batch"] | None:
    """Return the mixup weight of each clip of a batch against its mirror clip; None if nothing is mixed."""
    if config.each == "batch":
        mixes, weight = generator.random() < config.probability, generator.beta(config.alpha, config.alpha)
        return torch.full((batch,), weight, dtype=torch.float32) if mixes else None
    mixed = generator.random(batch) < config.probability
    weights = np.where(mixed, generator.beta(config.alpha, config.alpha, size=batch), 1.0)
    return torch.from_numpy(weights.astype(np.float32)) if mixed.any() else None


def mixup(
    inputs: Float[Tensor, "batch *sizes"], labels: Float[Tensor, "batch classes"], weights: Float[Tensor, " batch"]
) -> tuple[Float[Tensor, "batch *sizes"], Float[Tensor, "batch classes"]]:
    """Mix every clip of a batch with its mirror clip: `weight x + (1 - weight) flip(x)`, labels likewise.

    Args:
        inputs: audio or features.
        labels: in [0, 1].
        weights: mixup weight of each clip.

    **Source**: released fine-tuning (Zhang et al. 2018), one weight per batch. **Differs**: the release modifies
    its input in place and rejects odd batch sizes.
    """
    shaped = weights.to(inputs).view(-1, *[1] * (inputs.ndim - 1))
    mixed = torch.lerp(inputs.flip(0), inputs, shaped)
    return mixed, torch.lerp(labels.flip(0), labels, weights.to(labels)[:, None])


def largest_masks(num_bins: int, num_frames: int, share: float) -> tuple[float, float]:
    """Upper limits of the widths of SpecAugment's two masks (bins, frames) as a share of the spectrogram.

    They are not rounded: a width is drawn uniformly below its limit and then rounded down.
    """
    return num_bins * share, num_frames * share


def spec_augment(
    features: Float[Tensor, "batch bins frames"], config: SpecAugmentConfig
) -> Float[Tensor, "batch bins frames"]:
    """Set a band of bins and a span of frames of every clip to 0, the mean of normalised features.

    Widths are uniform up to the largest ones, positions uniform.

    **Source**: SpecAugment (Park et al. 2019) with torchaudio's masks; released fine-tuning.
    """
    num_bins, num_frames = features.shape[1:]
    limits: tuple[float, float] = config.bins, config.frames
    if config.share:
        limits = largest_masks(num_bins, num_frames, config.share)
    masked = features.unsqueeze(1)
    for axis, limit in zip((BIN_AXIS, FRAME_AXIS), limits, strict=True):
        masked = mask_along_axis_iid(masked, min(limit, features.shape[axis - 1]), 0.0, axis)
    result: Tensor = masked.squeeze(1)
    return result
