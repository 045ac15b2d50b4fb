"""The teacher: a moving average of the encoder, and the targets computed from its layers."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from asda_core.errors import ConfigError
from asda_core.model.encoder import Encoder

TARGET_NORM_EPS = 1e-5
"""Epsilon of both norms on targets. **Source**: released code (PyTorch's default)."""


@dataclass(frozen=True)
class TeacherConfig:
    """Decay of the teacher's average: rises linearly from `decay_start` to `decay_end` over `anneal_steps` updates."""

    decay_start: float = 0.9998
    decay_end: float = 0.99999
    anneal_steps: int = 100_000

    def __post_init__(self) -> None:
        for name in ("decay_start", "decay_end"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"objective.options.teacher.{name} must lie in 0..1, not {getattr(self, name)}.")
        if self.anneal_steps < 0:
            raise ConfigError(f"objective.options.teacher.anneal_steps must be 0 or more, not {self.anneal_steps}.")


def ema_decay(step: int, config: TeacherConfig) -> float:
    """Decay at update `step`, from 1: `end - (end - start) (1 - step / anneal)`, `end` after the annealing.

    **Source**: released code, fairseq's annealed decay.
    """
    if step >= config.anneal_steps:
        return config.decay_end
    remaining = 1 - step / config.anneal_steps
    return config.decay_end - (config.decay_end - config.decay_start) * remaining


class Teacher(nn.Module):
    """An exponential moving average of the encoder; never trained, always in evaluation mode."""

    def __init__(self, encoder: Encoder, config: TeacherConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = copy.deepcopy(encoder).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, encoder: Encoder, step: int) -> None:
        """`teacher = decay teacher + (1 - decay) student`; buffers are copied."""
        rate = 1 - ema_decay(step, self.config)
        averages: list[Tensor] = list(self.encoder.parameters())
        current: list[Tensor] = list(encoder.parameters())
        torch._foreach_lerp_(averages, current, rate)
        for buffer, new in zip(self.encoder.buffers(), encoder.buffers(), strict=True):
            buffer.copy_(new)

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in evaluation mode, whatever the mode of the parent module."""
        return super().train(False)

    @torch.no_grad()
    def layer_outputs(self, features: Float[Tensor, "batch bins frames"]) -> tuple[Tensor, ...]:
        """Return the MLP outputs (B, N, D) of all layers on unmasked clips."""
        encoded: tuple[Tensor, ...] = self.encoder(features).layers
        return encoded


def make_targets(layers: Sequence[Tensor], top_layers: int | None = None) -> Float[Tensor, "batch patches dim"]:
    """Compute the targets that the student predicts.

    Each layer is instance-normalised (per clip and channel, over the tokens), the last `top_layers` are averaged, and
    the average is layer-normalised without weights.

    Args:
        layers: L x (B, N, D).
        top_layers: number of last layers; None takes all.

    **Source**: data2vec 2.0's `make_targets` in the released code.
    """
    averaged = layers if top_layers is None else layers[-top_layers:]
    total = torch.zeros_like(averaged[0], dtype=torch.float32)
    for layer in averaged:
        values = layer.float()
        variance, mean = torch.var_mean(values, dim=1, correction=0, keepdim=True)
        total += (values - mean) * torch.rsqrt(variance + TARGET_NORM_EPS)
    return layer_norm(total / len(averaged), total.shape[-1:], eps=TARGET_NORM_EPS)
