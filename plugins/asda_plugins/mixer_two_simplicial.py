"""Two-simplicial attention on a spectrogram: each token attends to pairs of a token of its column and one of its row.

Experimental: no published result on audio is known.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from asda_core.contracts import MixerContext, MixerSpec, hookimpl
from asda_core.errors import ConfigError
from asda_core.layout import TokenLayout
from asda_core.model.attention import split_heads
from asda_core.model.block import init_linear_layers
from asda_core.model.lines import LineTable, line_table
from asda_core.model.norms import RmsNorm


@dataclass(frozen=True)
class TwoSimplicialConfig:
    """Settings of two-simplicial attention: whether the five input maps have a bias, and the epsilon of the norms."""

    qkv_bias: bool = True
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.norm_eps < 0:
            raise ConfigError(f"encoder.mixer.options.norm_eps must not be negative, not {self.norm_eps}.")


class TwoSimplicialAttention(nn.Module):
    """`softmax over (j, k) of sum_c q_c k_jc k'_kc / sqrt(d)`, applied to `v_j * v'_k`.

    j runs over the token's time step (M bands), k over its band (T steps), so there are N^2 triples. Class tokens
    belong to every row and column; a class token itself takes j from all tokens and k from the class tokens.
    k' and v' are normalised per head, since products of three unbounded factors are unstable.

    **Source**: 2-simplicial attention (arXiv 2507.02754), equations of the trilinear form.
    **Differs**: in the paper j and k run over windows of a text; row and column are new here.
    """

    def __init__(self, config: TwoSimplicialConfig, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.maps_in = nn.Linear(dim, 5 * dim, bias=config.qkv_bias)
        self.key_norm = RmsNorm(dim // num_heads, eps=config.norm_eps)
        self.value_norm = RmsNorm(dim // num_heads, eps=config.norm_eps)
        self.proj = nn.Linear(dim, dim)
        init_linear_layers(self)

    def forward(
        self, tokens: Float[Tensor, "batch tokens dim"], layout: TokenLayout
    ) -> Float[Tensor, "batch tokens dim"]:
        """Attend to the pairs of the column and row of each token."""
        query, key, key2, value, value2 = split_heads(self.maps_in(tokens), 5, self.num_heads)
        query = query * query.shape[-1] ** -0.5
        key2, value2 = self.key_norm(key2), self.value_norm(value2)

        def parts(tensor: Tensor) -> tuple[Tensor, Tensor]:
            return layout.without_class(tensor, axis=2), layout.only_class(tensor, axis=2)

        pairs = [parts(tensor) for tensor in (key, key2, value, value2)]
        mixed = _patches(parts(query)[0], pairs, layout.without_class_token())
        if layout.class_column is not None:
            anchors = parts(query)[1][:, :, :, None] * pairs[1][1][:, :, None]  # (B, H, c, k, d)
            scores = anchors @ key.transpose(-2, -1)[:, :, None]
            weights = _softmax(scores, layout.valid[:, None, None, None])
            class_mixed = (weights @ value[:, :, None] * pairs[3][1][:, :, None]).sum(dim=3)
            mixed = layout.with_class(mixed, class_mixed, axis=2)
        projected: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return projected


def _patches(
    query: Tensor,
    pairs: list[tuple[Tensor, Tensor]],
    layout: TokenLayout,
) -> Tensor:
    """Return the output of patches (B, H, N, d); `pairs` are k, k', v, v', each of patches and of class tokens."""
    key, key2, value, value2 = pairs
    rows, columns = line_table(layout, "bands"), line_table(layout, "times")
    slots = columns.shape[1]
    in_column = columns.to_table(query)[..., None, :] * _with_class(columns, *key)[..., None, :, :]  # (.., slots, j, d)
    anchors = rows.to_table(columns.from_table(in_column))  # (B, H, bands, slots, j, d)
    scores = anchors @ _with_class(rows, *key2)[:, :, :, None].transpose(-2, -1)  # (.., slots, j, k)
    mask_j = _attendable(columns, key[1])[:, None, :, None].expand(-1, -1, -1, slots, -1)  # (B, 1, times, slots, j)
    mask = rows.to_table(columns.from_table(mask_j))[..., None] & _attendable(rows, key[1])[:, None, :, None, None]
    weights = _softmax(scores, mask)
    second = columns.to_table(rows.from_table(weights @ _with_class(rows, *value2)[:, :, :, None]))  # (.., slots, j, d)
    return columns.from_table((second * _with_class(columns, *value)[..., None, :, :]).sum(dim=4))


def _with_class(lines: LineTable, patches: Tensor, class_tokens: Tensor) -> Tensor:
    """Append the class tokens to each line: (B, H, lines, slots + c, d)."""
    table = lines.to_table(patches)
    return torch.cat([table, class_tokens[:, :, None].expand(-1, -1, table.shape[2], -1, -1)], dim=3)


def _attendable(lines: LineTable, class_tokens: Tensor) -> Tensor:
    """Return a mask (B, lines, slots + c), True at slots that can be attended to."""
    valid = lines.valid
    return torch.cat([valid, valid.new_ones(*valid.shape[:2], class_tokens.shape[2])], dim=2)


def _softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last two axes jointly, where `mask` is true; fully masked rows of padding stay finite."""
    flat = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).flatten(-2)
    weights: Tensor = flat.softmax(dim=-1)
    return weights.view_as(scores)


def build(config: TwoSimplicialConfig, context: MixerContext) -> TwoSimplicialAttention:
    """Build the mixer from its options and the widths of the encoder."""
    return TwoSimplicialAttention(config, context.dim, context.num_heads)


@hookimpl
def asda_mixers() -> Iterable[MixerSpec[TwoSimplicialConfig]]:
    """Offer `two_simplicial`."""
    return [
        MixerSpec(
            name="two_simplicial",
            config=TwoSimplicialConfig,
            build=build,
            summary="experimental: attends to pairs of a token of its column and one of its row",
            source="2-simplicial attention (arXiv 2507.02754); the row x column form is new here",
        )
    ]
