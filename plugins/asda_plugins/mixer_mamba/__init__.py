"""Bidirectional selective state spaces: Mamba's mixer run from both ends, as in Vision Mamba and SSAMBA."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from asda_core.contracts import MixerContext, MixerSpec, hookimpl
from asda_core.layout import TokenLayout
from asda_plugins.mixer_mamba.branch import Branch, MambaConfig, by_rows
from asda_plugins.mixer_mamba.compiled import CompiledScan, compiled_scan, loops_for
from asda_plugins.mixer_mamba.kernel import fused_kernel, scan_with_kernel
from asda_plugins.mixer_mamba.scan import FLOATS_PER_STEP, Inputs, Scan, chunked_scan, sequential_scan

BLOCK = 1024
"""Tokens processed at once without gradients. On a CPU 256 were slower, and more than 1,024 no faster."""


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
            outputs = self._scan_all(partial(self._scan_of(x), a=self._rates(x.shape[1])), directions)
        return outputs[0] if len(outputs) == 1 else outputs[0] + outputs[1].flip(0)

    def _scan_of(self, x: Tensor) -> Callable[..., Tensor]:
        """Return the scan of whole sequences, with gradients, on this machine."""
        loops = self._loops(x)
        if loops is not None:
            return partial(compiled_scan, loops)
        return sequential_scan if self.config.scan == "sequential" else chunked_scan

    def _loops(self, x: Tensor) -> ModuleType | None:
        return loops_for(x) if self.config.scan == "auto" else None

    def _by_blocks(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Compute `_at_once` a block of tokens at a time, from both ends, so that intermediate values stay small."""
        mixed = x.new_zeros(x.shape, dtype=at_least_float32(x.dtype))
        loops = self._loops(x)
        clips_at_once = max(1, FLOATS_PER_STEP // self._rates(1).numel())
        for clip in range(0, x.shape[1], clips_at_once):
            clips = slice(clip, clip + clips_at_once)
            part = x[:, clips]
            add = self._adder(mixed, clip, part.shape[1], loops)
            for first in range(0, len(x), BLOCK):
                last = min(first + BLOCK, len(x))
                add(self._ways(part, None if valid is None else valid[:, clips], first, last, loops), first)
        return mixed

    def _adder(
        self, mixed: Tensor, clip: int, clips: int, loops: ModuleType | None
    ) -> Callable[[list[Inputs], int], None]:
        """Return what scans the next block of some clips, from its first token on, and adds the outputs to `mixed`."""
        rates = self._rates(clips)
        if loops is not None:
            skips = [skip for _, skip in self._owned()]
            scans = [CompiledScan(loops, *weights) for weights in zip(torch.split(rates, clips), skips, strict=True)]

            def add_each(directions: list[Inputs], first: int) -> None:
                for scan, inputs, backwards in zip(scans, directions, (False, True), strict=False):
                    scan.add(inputs, mixed, first, clip, backwards)

            return add_each
        both, output = Scan(rates), mixed[:, clip : clip + clips]

        def add_together(directions: list[Inputs], first: int) -> None:
            outputs = self._scan_all(both, directions)
            last = first + len(outputs[0])
            output[first:last] += outputs[0]
            if len(outputs) > 1:
                output[len(output) - last : len(output) - first] += outputs[1].flip(0)

        return add_together

    def _ways(
        self, x: Tensor, valid: Tensor | None, first: int, last: int, loops: ModuleType | None = None
    ) -> list[Inputs]:
        """Return the scan's arguments in each direction, for tokens `first` to `last` as that direction counts them."""
        branch, context = self.branches[0], self.config.conv_width - 1
        directions: list[Inputs] = [branch(slice_tokens(x, first, last, context), loops)]
        begin, end = len(x) - last, len(x) - first
        if self.config.version == "v2":
            directions.append(self.branches[1](slice_tokens(x, first, last, context, backwards=True), loops))
        elif self.config.version == "v1":  # both use the forward convolution
            same = (begin, end) == (first, last)
            shared = directions[0] if same else branch(slice_tokens(x, begin, end, context), loops)
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
