"""Bidirectional selective state spaces: Mamba's mixer read from both ends, as in Vision Mamba and SSAMBA."""

import importlib
import importlib.util
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad, silu, softplus

from asda_core.contracts import MixerContext, MixerSpec, hookimpl
from asda_core.errors import ConfigError
from asda_core.layout import TokenLayout
from asda_plugins.mixer_mamba.scan import chunked_scan, sequential_scan

Version = Literal["v1", "v2", "forward"]
ScanChoice = Literal["auto", "chunked", "sequential"]

DIMS_PER_RANK = 16
"""Width over the rank of the steps. **Source**: Gu and Dao 2023, released code (`dt_rank` "auto")."""
KERNEL_MODULE = "mamba_ssm.ops.selective_scan_interface"
STEP_RANGE = (1e-3, 0.1)
STEP_FLOOR = 1e-4
"""Steps are drawn log-uniformly from this range, not below the floor. **Source**: Gu and Dao 2023, section 3.6."""


@dataclass(frozen=True)
class MambaConfig:
    """Settings of the bidirectional mixer; the defaults are SSAMBA's.

    Attributes:
        version: "v2" gives the backward direction weights of its own; "v1" shares all but the decay; "forward" is
            Mamba itself, which reads one way.
        states: per channel.
        expand: channels over width.
        conv_width: tokens that the convolution before the scan sees.
        step_rank: rank of the map that makes the steps; null takes a sixteenth of the width.
        halve: whether v2 takes the mean of both directions instead of their sum.
        init_backward_steps: whether the steps of the backward branch of v2 begin like those of the forward branch.
            The release forgets it: they begin at 0.69, up to 700 times larger.
        scan: "chunked" and "sequential" are plain PyTorch; "auto" takes the fused kernel of `mamba_ssm` where it is
            installed and the tokens are on a GPU, else the chunked one.
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
    """What one direction owns: convolution, the maps to steps and states, decays, and the skip."""

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
                self.to_steps.bias.copy_(steps + (-(-steps).expm1()).log())  # softplus of it gives the steps

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Channels (N, R, E) -> input u, steps, and how states are entered and read."""
        width = self.conv.kernel_size[0]
        before = pad(x, (0, 0, 0, 0, width - 1, 0))
        taps = self.conv.weight.squeeze(1).unbind(1)  # the last one multiplies the token itself
        assert self.conv.bias is not None
        u = self.conv.bias.expand_as(x)
        for place, tap in enumerate(taps):
            u = torch.addcmul(u, tap, before[place : place + len(x)])
        u = silu(u)
        raw, enter, read = self.to_states(u).split(self.sizes, dim=2)
        return u, softplus(self.to_steps(raw)), enter, read


class Mamba(nn.Module):
    """`out((scan(tokens) + reversed scan(reversed tokens)) * SiLU(z))`; channels and z are two halves of `in_proj`.

    Tokens are read in the order in which they stand; `encoder.token_order` chooses it. Padding moves no state.

    **Source**: Gu and Dao 2023; Zhu et al. 2024 (Vision Mamba) for the directions; SSAMBA (Shams et al. 2024).
    **Differs**: see `init_backward_steps`.
    """

    def __init__(self, config: MambaConfig, dim: int, num_layers: int) -> None:
        super().__init__()
        self.config = config
        channels = config.expand * dim
        self.in_proj = nn.Linear(dim, 2 * channels, bias=False)
        branches = [Branch(config, dim, init_steps=True)]
        self.backward_log_decay: nn.Parameter | None = None
        if config.version == "v1":
            self.backward_log_decay = nn.Parameter(branches[0].log_decay.detach().clone())
        elif config.version == "v2":
            branches.append(Branch(config, dim, config.init_backward_steps))
        self.branches = nn.ModuleList(branches)
        self.out_proj = nn.Linear(channels, dim, bias=False)
        with torch.no_grad():
            self.out_proj.weight /= math.sqrt(num_layers)

    def forward(
        self, tokens: Float[Tensor, "batch tokens dim"], layout: TokenLayout
    ) -> Float[Tensor, "batch tokens dim"]:
        """Carry states through the tokens, once from each end."""
        if layout.padding is None:
            return self._mix(tokens, None)
        order = layout.padding.to(torch.uint8).argsort(dim=1, stable=True)  # valid tokens first
        index = order.unsqueeze(-1).expand_as(tokens)
        valid = layout.valid.gather(1, order)
        mixed = self._mix(tokens.gather(1, index), valid.t().unsqueeze(2).to(tokens))
        return torch.empty_like(mixed).scatter(1, index, mixed)

    def _mix(self, tokens: Tensor, valid: Tensor | None) -> Tensor:
        """`valid` is (N, B, 1), 1 at tokens that are not padding."""
        x, z = self.in_proj(tokens.transpose(0, 1)).chunk(2, dim=2)  # (N, B, E)
        if valid is not None:
            x = x * valid
        ways = self._ways(x)
        if valid is not None:  # a step of 0 leaves the state as it is
            both = (valid, valid.flip(0))
            ways = [(u, step * both[way], *rest) for way, (u, step, *rest) in enumerate(ways)]
        outputs = self._scan(ways)
        mixed = outputs[0] if len(outputs) == 1 else outputs[0] + outputs[1].flip(0)
        if self.config.version == "v2" and self.config.halve:
            mixed = mixed / 2
        projected: Tensor = self.out_proj((mixed * silu(z)).to(tokens.dtype)).transpose(0, 1)
        return projected

    def _ways(self, x: Tensor) -> list[tuple[Tensor, ...]]:
        """For each direction: u, steps, entering, reading, log decay and skip; the second in reversed order."""
        first = self.branches[0]
        ahead = (*first(x), first.log_decay, first.skip)
        if self.config.version == "forward":
            return [ahead]
        if self.config.version == "v2":
            second = self.branches[1]
            return [ahead, (*second(x.flip(0)), second.log_decay, second.skip)]
        return [ahead, (*(each.flip(0) for each in ahead[:4]), self.backward_log_decay, first.skip)]

    def _scan(self, ways: list[tuple[Tensor, ...]]) -> list[Tensor]:
        """The outputs (N, B, E) of all directions, in float32 at least, as the release has it."""
        ways = [tuple(each.to(torch.promote_types(each.dtype, torch.float32)) for each in way) for way in ways]
        kernel = fused_kernel() if self.config.scan == "auto" and ways[0][0].is_cuda else None
        if kernel is not None:
            return [by_kernel(kernel, *way) for way in ways]
        scan = sequential_scan if self.config.scan == "sequential" else chunked_scan
        rows = ways[0][0].shape[1]
        u, step, enter, read = (torch.cat([way[place] for way in ways], dim=1) for place in range(4))
        rates = torch.cat([-way[4].exp().t().expand(rows, -1, -1) for way in ways])  # (R, n, E)
        outputs = torch.split(scan(u, step, rates, enter, read), rows, dim=1)
        return [output + way[5] * way[0] for output, way in zip(outputs, ways, strict=True)]


@cache
def fused_kernel() -> Callable[..., Tensor] | None:
    """The scan of `mamba_ssm`, if it is installed and works here; looked for once, when it is first wanted."""
    if importlib.util.find_spec("mamba_ssm") is None:
        return None
    try:
        kernel: Callable[..., Tensor] = importlib.import_module(KERNEL_MODULE).selective_scan_fn
    except Exception as error:  # built for another driver, or without this kernel: whatever an extension raises
        warnings.warn(
            f"mamba_ssm is installed, but has no selective scan here ({error}); going on without.", stacklevel=2
        )
        return None
    return kernel


def by_kernel(
    kernel: Callable[..., Tensor],
    u: Tensor,
    step: Tensor,
    enter: Tensor,
    read: Tensor,
    log_decay: Tensor,
    skip: Tensor,
) -> Tensor:
    """One direction through `mamba_ssm`, which wants tokens last."""
    last = (each.permute(1, 2, 0).contiguous() for each in (u, step, enter, read))  # (B, E or n, N)
    first, steps, entering, reading = last
    return kernel(first, steps, -log_decay.exp(), entering, reading, skip).permute(2, 0, 1)


def build(config: MambaConfig, context: MixerContext) -> Mamba:
    """Options and widths -> the mixer; the number of heads does not matter."""
    return Mamba(config, context.dim, context.num_layers)


@hookimpl
def asda_mixers() -> Iterable[MixerSpec[MambaConfig]]:
    """Offer `mamba`."""
    return [
        MixerSpec(
            name="mamba",
            config=MambaConfig,
            build=build,
            summary="selective state-space scan from both ends, linear in the number of tokens",
            source="Mamba (Gu and Dao 2023); Vision Mamba (Zhu et al. 2024); SSAMBA (Shams et al. 2024)",
            released={"init_backward_steps": False},
            without_influence=("scan",),
            knows_order=True,
            uses_heads=False,
        )
    ]
