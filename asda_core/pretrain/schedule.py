"""The learning rate and the optimiser."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from asda_core.config import OptimizerConfig


def learning_rate(step: int, num_steps: int, config: OptimizerConfig) -> float:
    """Rate of update `step` (from 0): linear warm-up, then a cosine to `floor_lr` at `num_steps`.

    **Source**: released cosine schedule. **Differs**: the release gives its first update the rate 0 and jumps to a
    tenth of the peak at the end; here update 0 gets `peak / warmup` and the cosine ends at the floor.
    """
    if step < config.warmup_steps:
        return config.peak_lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    return config.floor_lr + 0.5 * (config.peak_lr - config.floor_lr) * (1 + math.cos(math.pi * min(1.0, done)))


def make_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over what trains, norms and biases without decay unless the config says so."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    decayed = [p for p in trained if p.squeeze().ndim > 1 or config.decay_norms_and_biases]
    chosen = {id(p) for p in decayed}
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": [p for p in trained if id(p) not in chosen], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.peak_lr, betas=config.betas, eps=config.eps
    )
