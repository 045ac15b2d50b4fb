"""The settings of the mixer, and what one direction computes for each token before its scan."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad, silu, softplus

from asda_core.errors import ConfigError
from asda_plugins.mixer_mamba.compiled import compiled_softplus
from asda_plugins.mixer_mamba.scan import Inputs

Version = Literal["v1", "v2", "forward"]
ScanChoice = Literal["auto", "chunked", "sequential"]

DIMS_PER_RANK = 16
"""Width divided by the rank of the steps. **Source**: Gu and Dao 2023, released code (`dt_rank` "auto")."""
ROWS_OF_PRODUCT = 16
"""A matrix of 44 rows is filled with zeros up to 48, a multiple of this: a CPU multiplies by it in half the time."""
STEP_RANGE, STEP_FLOOR = (1e-3, 0.1), 1e-4
"""Steps are drawn log-uniformly from this range, not below the floor. **Source**: Gu and Dao 2023, section 3.6."""


@dataclass(frozen=True)
class MambaConfig:
    """Settings of the bidirectional mixer; the defaults are SSAMBA's.

    Attributes:
        version: "v2" gives the backward direction its own weights; "v1" shares all but the decay; "forward" is
            Mamba itself, which runs in one direction.
        states: number of states per channel.
        expand: channels divided by width.
        conv_width: kernel size, in tokens, of the convolution before the scan.
        step_rank: rank of the map that computes the steps; null takes a sixteenth of the width.
        halve: whether v2 takes the mean of both directions instead of their sum.
        init_backward_steps: whether the steps of the backward branch of v2 are initialised like those of the forward
            branch. The release omits this: they start at 0.69, up to 700 times larger.
        scan: "chunked" and "sequential" are plain PyTorch; "auto" uses the fused kernel of `mamba_ssm` if it is
            installed and the tokens are on a GPU, loops compiled by Numba if that is installed and they are on a CPU,
            otherwise the chunked one.
    """

    version: Version = "v2"
    states: int = 16
    expand: int = 2
    conv_width: int = 4
    step_rank: int | None = None
    halve: bool = True
    init_backward_steps: bool = True
    scan: ScanChoice = "auto"

    def __post_init__(self) -> None:
        for name in ("states", "expand", "conv_width", "step_rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"encoder.mixer.options.{name} must be at least 1, not {value}.")


class Branch(nn.Module):
    """Weights of one direction: convolution, the maps to steps and states, decays, and the skip."""

    def __init__(self, config: MambaConfig, dim: int, init_steps: bool) -> None:
        super().__init__()
        channels = config.expand * dim
        rank = config.step_rank or math.ceil(dim / DIMS_PER_RANK)
        self.sizes = (rank, config.states, config.states)
        self.conv = nn.Conv1d(channels, channels, config.conv_width, groups=channels, bias=True)
        self.to_states = nn.Linear(channels, sum(self.sizes), bias=False)
        self.to_steps = nn.Linear(rank, channels)
        self.log_decay = nn.Parameter(torch.arange(1.0, config.states + 1).log().repeat(channels, 1))  # (E, n)
        self.skip = nn.Parameter(torch.ones(channels))
        nn.init.zeros_(self.to_steps.bias)
        if init_steps:
            nn.init.uniform_(self.to_steps.weight, -(rank**-0.5), rank**-0.5)
            low, high = map(math.log, STEP_RANGE)
            steps = torch.empty(channels).uniform_(low, high).exp().clamp(min=STEP_FLOOR)
            with torch.no_grad():
                self.to_steps.bias.copy_(steps + (-(-steps).expm1()).log())  # inverse softplus of the steps

    def no_weight_decay(self) -> list[str]:
        """Exclude decay rates, which weight decay would pull together. **Source**: Gu and Dao 2023, released code."""
        return ["log_decay"]

    def forward(self, x: Tensor, loops: ModuleType | None = None) -> Inputs:
        """Compute the scan's arguments for N tokens from their channels, preceded by those the convolution needs.

        `loops` are compiled ones, given where no gradient is wanted.
        """
        taps = self.conv.weight.squeeze(1).t().contiguous()  # the last tap multiplies the token itself
        length = len(x) - len(taps) + 1
        assert self.conv.bias is not None
        u = torch.addcmul(self.conv.bias, taps[0], x[:length])
        for offset, tap in enumerate(taps[1:], start=1):
            u.addcmul_(tap, x[offset : offset + length])
        u = silu(u, inplace=not u.requires_grad)
        weight = self.to_states.weight
        missing = -len(weight) % ROWS_OF_PRODUCT
        states = by_rows(partial(linear, weight=pad(weight, (0, 0, 0, missing))), u)
        raw, b, c, _ = torch.split(states, [*self.sizes, missing], dim=2)
        raw = by_rows(self.to_steps, raw.contiguous())
        return u, softplus(raw) if loops is None else compiled_softplus(loops, raw), b, c


def by_rows(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a linear layer to (N, B, D) in one product; by frozen weights PyTorch would do N small ones, time first."""
    rows = layer(x.flatten(0, 1))
    return rows.view(*x.shape[:2], rows.shape[1])
