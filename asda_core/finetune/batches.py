"""Augmented batches of labelled training clips; a given step always gets the same batch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from asda_core.audio.feature_padding import padded_features
from asda_core.audio.reading import crop_or_pad
from asda_core.data.clip_batches import ClipBatches, Clips
from asda_core.devices import to_device
from asda_core.finetune.augment import mixup, mixup_weights, noise_and_shift, random_roll_and_gain, spec_augment
from asda_core.finetune.finetune_model import FinetuneModel
from asda_core.finetune.sampling import epoch_order
from asda_core.finetune_config import FinetuneConfig
from asda_core.labelled.examples import Example

CLIPS_PER_PASS = 32
"""Clips per forward pass in evaluation."""
MEMORY_ADVICE = "use a device with more memory, or a shorter data.clip_seconds"
"""What to do where such a pass does not fit into memory."""
ROLL_KEY, MIXUP_KEY = 1, 2
"""Third words of the seeds of NumPy's draws, distinct from that of the clip order."""


@dataclass(frozen=True)
class TrainingBatch:
    """Features and labels of a batch, as the model gets them in training."""

    features: Float[Tensor, "batch bins frames"]
    labels: Float[Tensor, "batch classes"]


def label_matrix(examples: Sequence[Example], classes: Sequence[str]) -> Float[Tensor, "examples classes"]:
    """Return a multi-hot matrix: 1 where a clip has a label, 0 elsewhere."""
    column = {name: number for number, name in enumerate(classes)}
    matrix = torch.zeros(len(examples), len(classes))
    for row, example in enumerate(examples):
        for label in example.labels:
            matrix[row, column[label]] = 1.0
    return matrix


def training_clips(
    recipe: FinetuneConfig, examples: Sequence[Example], sample_rate: int, base_folder: Path
) -> ClipBatches:
    """Return the clips of the training split in the order of the recipe, rolled if the recipe says so."""

    def rolled(audio: Tensor, number: int) -> Tensor:
        return random_roll_and_gain(audio, np.random.default_rng([recipe.seed, number, ROLL_KEY]))

    order = epoch_order(recipe.sampling, examples, recipe.seed, base_folder)
    files = [example.file for example in examples]
    transform: Callable[[Tensor, int], Tensor] | None = rolled if recipe.augment.roll else None
    return ClipBatches(files, recipe.data, sample_rate, recipe.seed, order, transform)


def training_batch(
    model: FinetuneModel, recipe: FinetuneConfig, clips: Clips, labels: Float[Tensor, "batch classes"], step: int
) -> TrainingBatch:
    """Audio -> features, augmented in the released order: noise and shift, mixup, SpecAugment.

    Torch's global generators must be `seeded`; NumPy's draws depend on seed and step.
    """
    augment, device = recipe.augment, model.device
    generator = np.random.default_rng([recipe.seed, step, MIXUP_KEY])
    weights = mixup_weights(augment.mixup, len(labels), generator)
    audio, labels, lengths = to_device(clips.audio, device), to_device(labels, device), clips.num_samples
    if weights is not None and augment.mixup.of == "audio":
        audio, labels = mixup(audio, labels, weights)
        lengths = torch.where(weights < 1, torch.maximum(lengths, lengths.flip(0)), lengths)
    with torch.no_grad():
        features = padded_features(model.front_end, audio, lengths, recipe.data.padding)
    features = noise_and_shift(features, augment.noise, augment.time_shift)
    if weights is not None and augment.mixup.of == "features":
        features, labels = mixup(features, labels, weights)
    return TrainingBatch(spec_augment(features, augment.spec_augment), labels)


def plain_features(
    model: FinetuneModel, recipe: FinetuneConfig, clips: Sequence[Tensor]
) -> Float[Tensor, "batch bins frames"]:
    """Features of clips without augmentation, for evaluation."""
    num_samples = round(recipe.data.clip_seconds * model.front_end.sample_rate)
    device = model.device
    audio = torch.stack([crop_or_pad(clip, num_samples) for clip in clips])
    lengths = torch.tensor([len(clip) for clip in clips])
    return padded_features(model.front_end, to_device(audio, device), lengths, recipe.data.padding)


def is_augmented(recipe: FinetuneConfig) -> bool:
    """Whether augmentation makes the features of a clip differ between epochs."""
    augment = recipe.augment
    masks: Mapping[str, float] = vars(augment.spec_augment)
    return bool(augment.roll or augment.noise or augment.time_shift or augment.mixup.probability or any(masks.values()))
