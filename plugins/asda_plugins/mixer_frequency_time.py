"""Frequency-time factorised attention: each token attends to its own band and time step, in one softmax."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from asda_core.contracts import MixerContext, MixerSpec, hookimpl
from asda_core.layout import TokenLayout
from asda_core.model.attention import AttentionMaps, attend, split_heads
from asda_core.model.block import init_linear_layers
from asda_core.model.lines import LineTable, line_table, whole_grid

PAIRS_WORTH_LINES, PAIRS_WORTH_KERNEL = 8, 6
"""The dense map is used if it has fewer than this many times the pairs of all lines, since each score of a line costs
more: lines by PyTorch, and by the fused kernel. Measured on a CPU: `benchmarks/frequency_time.py`."""


@dataclass(frozen=True)
class FrequencyTimeConfig:
    """Settings of frequency-time attention: whether query, key and value have a bias."""

    qkv_bias: bool = True


class FrequencyTimeAttention(nn.Module):
    """Softmax over the union of a token's row and column; class tokens attend to, and are attended to by, all tokens.

    ::

        . . k .        q attends to its band (along time), its time step (along frequency), itself once,
        k k q k        and the class tokens: T + M - 1 of T x M patches
        . . k .

    Scores are computed line by line, so the cost is O(N (T + M)) and no N x N map exists; where tokens were dropped,
    lines are as long as the fullest. For few tokens, or tokens so sparse that lines save little, the dense map with a
    mask is used: the same function, and faster there (`PAIRS_WORTH_LINES`). On a CPU without gradients, the lines of a
    whole grid use the fused kernel. Weights have the names and shapes of standard attention, so that this mixer can
    take over those of a standard one.

    `by_formula` True always uses lines by PyTorch: `asda show` counts the allowed pairs.

    **Source**: AI-CL (arXiv 2302.14314), frequency-time factorised attention.
    **Differs**: the released mask multiplies logits by 0 or 1, so that masked tokens keep weight; its full map saves
    nothing; and it splits 12 pre-trained heads into 8. Here masked tokens get no weight, and are not computed.
    """

    def __init__(self, config: FrequencyTimeConfig, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.by_formula = False
        self.qkv = nn.Linear(dim, 3 * dim, bias=config.qkv_bias)
        self.proj = nn.Linear(dim, dim)
        init_linear_layers(self)

    def forward(
        self, tokens: Float[Tensor, "batch tokens dim"], layout: TokenLayout
    ) -> Float[Tensor, "batch tokens dim"]:
        """Attend to the row and column of each token and to the class tokens."""
        split = split_heads(self.qkv(tokens), 3, self.num_heads)
        query, key, value = split
        inside = layout.without_class_token()
        parts = layout.without_class(split, axis=3), layout.only_class(split[1:], axis=3)
        grid = whole_grid(inside) if _fused_kernel_usable(split) else None
        if not self.by_formula and grid is not None and grid[0] * grid[1] >= PAIRS_WORTH_KERNEL * sum(grid):
            mixed = _whole_lines(*parts, grid)
        else:
            lines = (line_table(inside, "bands"), line_table(inside, "times"))
            if not self.by_formula and inside.index.shape[1] ** 2 < PAIRS_WORTH_LINES * sum(map(num_pairs, lines)):
                return self._joined(scaled_dot_product_attention(query, key, value, attn_mask=self._allowed(layout)))
            mixed = _patches(*parts, lines)
        if layout.class_column is not None:
            class_mixed = attend(layout.only_class(query, axis=2), key, value, layout)
            mixed = layout.with_class(mixed, class_mixed, axis=2)
        return self._joined(mixed)

    def maps(self, tokens: Float[Tensor, "batch tokens dim"], layout: TokenLayout) -> AttentionMaps:
        """Return the map as a full matrix, which lines never build; 0 outside row, column and class tokens.

        Rows of padding are meaningless.
        """
        query, key, _ = split_heads(self.qkv(tokens), 3, self.num_heads)
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        lowest = torch.finfo(scores.dtype).min
        return AttentionMaps(scores.masked_fill(~self._allowed(layout), lowest).softmax(dim=-1))

    def _allowed(self, layout: TokenLayout) -> Tensor:
        """Return a mask (B, 1, N, N), True where attention is allowed; padding sees only itself, so no row is empty."""
        band, time, is_class = layout.band, layout.time, layout.is_class
        near = (band[:, :, None] == band[:, None]) | (time[:, :, None] == time[:, None])
        near = near | is_class[:, :, None] | is_class[:, None]
        itself = torch.eye(near.shape[1], dtype=torch.bool, device=near.device)
        return (near & layout.valid[:, None] | itself & ~layout.valid[:, None]).unsqueeze(1)

    def _joined(self, mixed: Tensor) -> Tensor:
        """Join heads (B, H, N, D/H) to (B, N, D) and apply the output projection."""
        projected: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return projected


def num_pairs(lines: LineTable) -> int:
    """Return the number of scores along one axis of a clip."""
    return lines.shape[0] * lines.shape[1] ** 2


def _patches(patches: Tensor, class_tokens: Tensor, both: tuple[LineTable, LineTable]) -> Tensor:
    """Return the output of patches (B, H, N, D/H) from their queries, keys and values, and the class tokens' k and v.

    A softmax over a union equals those over its parts, weighted by a softmax over their log-sum-exps.
    """
    (query, key, value), (class_key, class_value) = patches, class_tokens
    query = query * query.shape[-1] ** -0.5
    outputs, log_sums = [], []
    for lines in both:
        scores = _scores(query, key, lines, itself=lines.axis == "bands")
        softmax = scores.softmax(dim=-1)
        outputs.append(lines.from_table(softmax @ lines.to_table(value)))
        # the weight of the highest score is `exp(score - log_sum)`, which never underflows
        log_sum = scores.amax(dim=-1, keepdim=True) - softmax.amax(dim=-1, keepdim=True).log()
        log_sums.append(lines.from_table(log_sum))
    if class_key.shape[2]:
        scores = query @ class_key.transpose(-2, -1)
        outputs.append(scores.softmax(dim=-1) @ class_value)
        log_sums.append(scores.logsumexp(dim=-1, keepdim=True))
    shares = torch.cat(log_sums, dim=-1).softmax(dim=-1)  # (B, H, N, parts)
    mixed = torch.zeros_like(value)
    for index, output in enumerate(outputs):
        mixed = mixed + output * shares[..., index : index + 1]
    return mixed


def _fused_kernel_usable(split: Tensor) -> bool:
    """Return whether the kernel that returns its log-sum-exps is usable; its gradient ignores them."""
    return split.device.type == "cpu" and not (torch.is_grad_enabled() and split.requires_grad)


def _whole_lines(patches: Tensor, class_tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Compute `_patches` for a whole grid with the fused kernel: no scores are kept, and lines are views.

    A token is in its row and in its column, and so counts twice in their sum; it is subtracted once. The remainder is
    at least the sum of its row, so nothing cancels; its own score is clamped to both sums against rounding.
    """
    scale, exact = patches.shape[-1] ** -0.5, torch.promote_types(patches.dtype, torch.float32)
    query, key, value = (tensor.unflatten(2, grid).flatten(0, 1) for tensor in patches)  # (B H, times, bands, D/H)
    row, row_sum = (
        tensor.transpose(1, 2) for tensor in _by_kernel(*(tensor.transpose(1, 2) for tensor in (query, key, value)))
    )
    column, column_sum = _by_kernel(query, key, value)
    itself = (query.to(exact) * key.to(exact)).sum(dim=-1) * scale
    log_sums = [row_sum, column_sum, itself.minimum(row_sum).minimum(column_sum)]
    outputs, signs = [row, column, value], [1, 1, -1]
    if class_tokens.shape[3]:
        class_key, class_value = (tensor.flatten(0, 1).unsqueeze(1) for tensor in class_tokens)  # (B H, 1, tokens, D/H)
        scores = (query * scale) @ class_key.transpose(-2, -1)
        outputs.append(scores.softmax(dim=-1) @ class_value)
        log_sums.append(scores.to(exact).logsumexp(dim=-1))
        signs.append(1)
    highest = torch.stack(log_sums).amax(dim=0)
    shares = [sign * (log_sum - highest).exp() for sign, log_sum in zip(signs, log_sums, strict=True)]
    total = torch.stack(shares).sum(dim=0)
    mixed = torch.zeros_like(query)
    for share, output in zip(shares, outputs, strict=True):
        mixed.addcmul_((share / total).to(mixed.dtype).unsqueeze(-1), output)
    return mixed.reshape(patches.shape[1:])


def _by_kernel(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return softmax attention (..., L, D/H) and the log-sum-exps (..., L) of its scores.

    `scaled_dot_product_attention` calls the same kernel and discards the sums; torch's versions are pinned.
    """
    output, log_sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
    return output, log_sums


def _scores(query: Tensor, key: Tensor, lines: LineTable, itself: bool) -> Tensor:
    """Return scores (B, H, lines, slots, slots) within each line, the lowest finite number at invalid slots.

    Not -inf: padding may have nothing to attend to, and must stay finite.
    """
    scores = lines.to_table(query) @ lines.to_table(key).transpose(-2, -1)
    lowest = torch.finfo(scores.dtype).min
    if not lines.all_valid:
        scores = scores.masked_fill(~(lines.valid.unsqueeze(3) & lines.valid.unsqueeze(2)).unsqueeze(1), lowest)
    if not itself:  # already counted in the row
        scores = scores.masked_fill(torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device), lowest)
    return scores


def build(config: FrequencyTimeConfig, context: MixerContext) -> FrequencyTimeAttention:
    """Build the mixer from its options and the widths of the encoder."""
    return FrequencyTimeAttention(config, context.dim, context.num_heads)


@hookimpl
def asda_mixers() -> Iterable[MixerSpec[FrequencyTimeConfig]]:
    """Offer `frequency_time`."""
    return [
        MixerSpec(
            name="frequency_time",
            config=FrequencyTimeConfig,
            build=build,
            summary="each token attends to its own band and time step, at a cost of N (T + M)",
            source="AI-CL (arXiv 2302.14314), frequency-time factorised attention",
            takes_over=("standard",),
        )
    ]
