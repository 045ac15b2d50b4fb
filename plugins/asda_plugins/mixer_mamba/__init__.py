"""Bidirectional selective state spaces: Mamba's mixer run from both ends, as in Vision Mamba and SSAMBA."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear, pad, silu, softplus

from asda_core.contracts import MixerContext, MixerSpec, hookimpl
from asda_core.errors import ConfigError
from asda_core.layout import TokenLayout
from asda_plugins.mixer_mamba.kernel import fused_kernel, scan_with_kernel
from asda_plugins.mixer_mamba.scan import FLOATS_PER_STEP, Inputs, Scan, chunked_scan, sequential_scan

Version = Literal["v1", "v2", "forward"]
ScanChoice = Literal["auto", "chunked", "sequential"]

DIMS_PER_RANK = 16
"""Width divided by the rank of the steps. **Source**: Gu and Dao 2023, released code (`dt_rank` "auto")."""
BLOCK = 1024
"""Tokens processed at once without gradients. On a CPU 256 were slower, and more than 1,024 no faster."""
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
            installed and the tokens are on a GPU, otherwise the chunked one.
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

    def forward(self, x: Tensor) -> Inputs:
        """Compute the scan's arguments for N tokens from their channels, preceded by those the convolution needs."""
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
        return u, softplus(by_rows(self.to_steps, raw.contiguous())), b, c


class Mamba(nn.Module):
    """`out((scan(tokens) + reversed scan(reversed tokens)) * SiLU(z))`; channels and z are two halves of `in_proj`.

    Tokens are scanned in their given order, set by `encoder.token_order`. Padding does not change the state.

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

    def no_weight_decay(self) -> list[str]:
        """Exclude the backward decay rates, as in `Branch`."""
        return ["backward_log_decay"]

    def forward(
        self, tokens: Float[Tensor, "batch tokens dim"], layout: TokenLayout
    ) -> Float[Tensor, "batch tokens dim"]:
        """Scan the tokens, once from each end."""
        if not tokens.numel():
            return tokens
        if layout.padding is None:
            return self._mix(tokens, None)
        order = layout.padding.to(torch.uint8).argsort(dim=1, stable=True)  # valid tokens first
        index = order.unsqueeze(-1).expand_as(tokens)
        valid = layout.valid.gather(1, order)
        mixed = self._mix(tokens.gather(1, index), valid.t().unsqueeze(2).to(tokens))
        return torch.empty_like(mixed).scatter(1, index, mixed)

    def _mix(self, tokens: Tensor, valid: Tensor | None) -> Tensor:
        """Mix the tokens; `valid` is (N, B, 1), 1 at tokens that are not padding."""
        x, z = by_rows(self.in_proj, tokens.transpose(0, 1)).chunk(2, dim=2)  # (N, B, E)
        if valid is not None:
            x = x * valid
        if self._blocks_suffice(x):
            gated = self._by_blocks(x, valid)
            for part, gate in zip(torch.split(gated, BLOCK), torch.split(z, BLOCK), strict=True):
                part.mul_(silu(gate, inplace=True))
        else:
            gated = self._at_once(x, valid) * silu(z)
        projected = by_rows(self.out_proj, gated.to(tokens.dtype)).transpose(0, 1)
        return projected.div_(2) if self.config.version == "v2" and self.config.halve else projected

    def _blocks_suffice(self, x: Tensor) -> bool:
        """Whether blocks suffice: no gradient needs intermediate values, and no scan needs all tokens at once."""
        needs_gradient = torch.is_grad_enabled() and (
            x.requires_grad or any(p.requires_grad for p in self.parameters())
        )
        return self.config.scan != "sequential" and x.device.type == "cpu" and not needs_gradient

    def _at_once(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Return the sum (N, B, E) of the outputs of all directions, in at least float32, as in the release."""
        directions = self._ways(x, valid, 0, len(x))
        kernel = fused_kernel() if self.config.scan == "auto" and x.is_cuda else None
        if kernel is not None:
            outputs = [
                scan_with_kernel(kernel, inputs, *weights)
                for inputs, weights in zip(directions, self._owned(), strict=True)
            ]
        else:
            scan = sequential_scan if self.config.scan == "sequential" else chunked_scan
            outputs = self._scan_all(partial(scan, a=self._rates(x.shape[1])), directions)
        return outputs[0] if len(outputs) == 1 else outputs[0] + outputs[1].flip(0)

    def _by_blocks(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Compute `_at_once` a block of tokens at a time, from both ends, so that intermediate values stay small."""
        mixed = x.new_zeros(x.shape, dtype=at_least_float32(x.dtype))
        clips_at_once = max(1, FLOATS_PER_STEP // self._rates(1).numel())
        for begin in range(0, x.shape[1], clips_at_once):
            clips = slice(begin, begin + clips_at_once)
            inputs, output = x[:, clips], mixed[:, clips]
            scan = Scan(self._rates(inputs.shape[1]))
            for first in range(0, len(x), BLOCK):
                last = min(first + BLOCK, len(x))
                directions = self._ways(inputs, None if valid is None else valid[:, clips], first, last)
                outputs = self._scan_all(scan, directions)
                output[first:last] += outputs[0]
                if len(outputs) > 1:
                    output[len(x) - last : len(x) - first] += outputs[1].flip(0)
        return mixed

    def _ways(self, x: Tensor, valid: Tensor | None, first: int, last: int) -> list[Inputs]:
        """Return the scan's arguments in each direction, for tokens `first` to `last` as that direction counts them."""
        branch, context = self.branches[0], self.config.conv_width - 1
        directions: list[Inputs] = [branch(slice_tokens(x, first, last, context))]
        begin, end = len(x) - last, len(x) - first
        if self.config.version == "v2":
            directions.append(self.branches[1](slice_tokens(x, first, last, context, backwards=True)))
        elif self.config.version == "v1":  # both use the forward convolution
            shared = directions[0] if (begin, end) == (first, last) else branch(slice_tokens(x, begin, end, context))
            u, step, b, c = (tensor.flip(0) for tensor in shared)
            directions.append((u, step, b, c))
        if valid is not None:  # a step of 0 leaves the state unchanged
            masks = (valid[first:last], valid[begin:end].flip(0))
            directions = [(u, step * mask, b, c) for (u, step, b, c), mask in zip(directions, masks, strict=False)]
        exact = at_least_float32(directions[0][0].dtype)
        return [(u.to(exact), step.to(exact), b.to(exact), c.to(exact)) for u, step, b, c in directions]

    def _owned(self) -> list[tuple[Tensor, Tensor]]:
        """Return log decay (E, n) and skip (E,) of each direction."""
        weights: list[tuple[Tensor, Tensor]] = [
            (branch.get_parameter("log_decay"), branch.get_parameter("skip")) for branch in self.branches
        ]
        if self.backward_log_decay is not None:
            weights.append((self.backward_log_decay, weights[0][1]))
        return weights

    def _rates(self, rows: int) -> Tensor:
        """Return decay rates (R, n, E) for `rows` clips, one direction after the other."""
        decays = [decay.to(at_least_float32(decay.dtype)) for decay, _ in self._owned()]
        return torch.cat([-decay.exp().t().expand(rows, -1, -1) for decay in decays])

    def _scan_all(self, scan: Callable[..., Tensor], directions: list[Inputs]) -> list[Tensor]:
        """Return the outputs (N, B, E) of each direction with skips added; all directions are scanned together."""
        u, step, b, c = (torch.cat(tensors, dim=1) for tensors in zip(*directions, strict=True))
        outputs = torch.split(scan(u=u, step=step, b=b, c=c), directions[0][0].shape[1], dim=1)
        return [
            torch.addcmul(output, skip.to(output.dtype), inputs[0])
            for output, inputs, (_, skip) in zip(outputs, directions, self._owned(), strict=True)
        ]


def by_rows(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a linear layer to (N, B, D) in one product; by frozen weights PyTorch would do N small ones, time first."""
    rows = layer(x.flatten(0, 1))
    return rows.view(*x.shape[:2], rows.shape[1])


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which states are kept."""
    return torch.promote_types(dtype, torch.float32)


def slice_tokens(x: Tensor, first: int, last: int, before: int, backwards: bool = False) -> Tensor:
    """Return tokens `first` to `last`, preceded by `before` more or zeros; `backwards` counts from the end."""
    start = max(0, first - before)
    part = x[len(x) - last : len(x) - start].flip(0) if backwards else x[start:last]
    missing = before - (first - start)
    return pad(part, (0, 0, 0, 0, missing, 0)) if missing else part


def build(config: MambaConfig, context: MixerContext) -> Mamba:
    """Build the mixer from its options and the widths of the encoder; the number of heads is ignored."""
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
