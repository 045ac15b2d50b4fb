"""Learning rates of the trained parameters, one parameter group for every factor on the rate; their average."""

from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from asda_core.finetune.finetune_model import FinetuneModel
from asda_core.finetune.rates import rate_scale
from asda_core.finetune_config import FinetuneConfig, StepDecayConfig
from asda_core.pretrain.schedule import decay_groups, fairseq_cosine, learning_rate, no_decay_ids


def parameter_groups(model: FinetuneModel, recipe: FinetuneConfig) -> list[dict[str, Any]]:
    """Return the trained parameters, grouped by the factor on their rate (`scale`) and by weight decay."""
    by_scale: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.trained_parameters():
        by_scale.setdefault(_scale(name, model, recipe), []).append(parameter)
    undecayed = no_decay_ids(*model.modules().values())
    return [
        {**group, "scale": scale}
        for scale, parameters in sorted(by_scale.items())
        for group in decay_groups(parameters, recipe.optimizer, undecayed)
    ]


def _scale(name: str, model: FinetuneModel, recipe: FinetuneConfig) -> float:
    """Factor on the rate of a parameter; layer decay applies to checkpoint weights, not to a head or an adapter."""
    if name.startswith("classifier."):
        return recipe.head_rate
    if recipe.mode not in ("full", "last_blocks"):
        return 1.0
    return rate_scale(name, model.config.encoder.depth, recipe.layer_decay, recipe.decay_embeddings)


def set_rates(
    optimizer: torch.optim.Optimizer, recipe: FinetuneConfig, step: int, steps: int, steps_per_epoch: float | Fraction
) -> list[float]:
    """Set and return the rate of every group for update `step` (from 0).

    **Source**: released fine-tuning for "fairseq_cosine", where the floor is the same for all layers, so that a layer
    whose peak is below it keeps a constant rate. **Differs**: otherwise each layer has the schedule times its factor.
    """
    decay = step_decay_factor(recipe.step_decay, int(step / steps_per_epoch))
    for group in optimizer.param_groups:
        if recipe.optimizer.schedule == "fairseq_cosine":
            peak = recipe.optimizer.peak_lr * group["scale"]
            rate = fairseq_cosine(step, steps, replace(recipe.optimizer, peak_lr=peak))
        else:
            rate = group["scale"] * learning_rate(step, steps, recipe.optimizer)
        group["lr"] = rate * decay
    return [group["lr"] for group in optimizer.param_groups]


def step_decay_factor(decay: StepDecayConfig, epoch: int) -> float:
    """Factor of the step decay on the rate in an epoch (from 0)."""
    if not decay.first_epoch or epoch < decay.first_epoch:
        return 1.0
    return float(decay.factor ** (1 + (epoch - decay.first_epoch) // decay.every))


def add_to_average(average: dict[str, Tensor], parameters: Iterable[tuple[str, nn.Parameter]], count: int) -> None:
    """Include the current weights in their average in place, as the `count`-th of the averaged ones (from 1)."""
    for name, parameter in parameters:
        value = parameter.detach()
        if name in average:
            average[name] += (value - average[name]) / count
        else:
            average[name] = value.clone()
