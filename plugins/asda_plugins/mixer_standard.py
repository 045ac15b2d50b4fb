"""Standard multi-head self-attention, as in EAT."""

from collections.abc import Iterable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from asda_core.contracts import MixerContext, MixerSpec, hookimpl
from asda_core.layout import TokenLayout
from asda_core.model.attention import AttentionMaps, softmax_map, split_heads
from asda_core.model.block import init_linear_layers


@dataclass(frozen=True)
class StandardConfig:
    """Settings of standard attention: whether query, key and value have a bias."""

    qkv_bias: bool = True


class StandardAttention(nn.Module):
    """`softmax(q k^T / sqrt(d)) v` per head, then a linear map.

    **Source**: Vaswani et al. 2017, equation 1; released EAT code.
    """

    def __init__(self, config: StandardConfig, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=config.qkv_bias)
        self.proj = nn.Linear(dim, dim)
        init_linear_layers(self)

    def forward(
        self, tokens: Float[Tensor, "batch tokens dim"], layout: TokenLayout
    ) -> Float[Tensor, "batch tokens dim"]:
        """Attend to all tokens that are not padding."""
        query, key, value = split_heads(self.qkv(tokens), 3, self.num_heads)
        allowed = None if layout.padding is None else layout.valid[:, None, None, :]
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        projected: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return projected

    def maps(self, tokens: Float[Tensor, "batch tokens dim"], layout: TokenLayout) -> AttentionMaps:
        """Return the softmax map; its rows sum to 1, and it is 0 on padding."""
        query, key, _ = split_heads(self.qkv(tokens), 3, self.num_heads)
        return AttentionMaps(softmax_map(query, key, layout))


def build(config: StandardConfig, context: MixerContext) -> StandardAttention:
    """Build the mixer from its options and the widths of the encoder."""
    return StandardAttention(config, context.dim, context.num_heads)


@hookimpl
def asda_mixers() -> Iterable[MixerSpec[StandardConfig]]:
    """Offer `standard`."""
    return [
        MixerSpec(
            name="standard",
            config=StandardConfig,
            build=build,
            summary="multi-head self-attention, one softmax map per head",
            source="Vaswani et al. 2017, eq. 1; EAT (Chen et al. 2024), released code",
        )
    ]
