"""Differential attention of ASDA: a second softmax map is subtracted from the first."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from asda_core.contracts import MixerContext, MixerSpec, hookimpl
from asda_core.layout import TokenLayout
from asda_core.model.block import init_linear_layers


@dataclass(frozen=True)
class DifferentialConfig:
    """Settings of differential attention; the defaults are those found in the released code.

    Attributes:
        lambda_init: weight of the second map, any number; 0 leaves only the first.
        lambda_learned: whether it is trained from there, one number per head; the release keeps it fixed.
        output_scale: factor behind the LayerNorm, 1 - 0.05 in the release, where it does not follow lambda.
        sub_norm_eps: of that LayerNorm; the release uses 1e-5 here and 1e-6 elsewhere.
        qkv_bias: whether query, key and value have a bias.
    """

    lambda_init: float = 0.1
    lambda_learned: bool = False
    output_scale: float = 0.95
    sub_norm_eps: float = 1e-5
    qkv_bias: bool = True


class DifferentialAttention(nn.Module):
    """`scale * LayerNorm((A1 - lambda A2) v)`, `Ai = softmax(qi ki^T / sqrt(d))`, then a linear map.

    Both maps have all heads at full width, so queries and keys take twice the parameters of standard attention. The
    LayerNorm spans the full width. The rows of `qk` are, D at a time: q1, q2, k1, k2.

    **Source**: ASDA (Interspeech 2025), released attention module.
    **Differs** from the Differential Transformer (Ye et al. 2025), which halves the heads, learns lambda from vectors
    and norms each head. Learned lambda here is ours: one number per head.
    """

    def __init__(self, config: DifferentialConfig, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.output_scale = config.output_scale
        self.qk = nn.Linear(dim, 4 * dim, bias=config.qkv_bias)
        self.v = nn.Linear(dim, dim, bias=config.qkv_bias)
        self.norm = nn.LayerNorm(dim, eps=config.sub_norm_eps)
        self.proj = nn.Linear(dim, dim)
        weight = torch.full((num_heads, 1, 1), config.lambda_init)
        self.weight: Tensor  # lambda, per head
        if config.lambda_learned:
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight, persistent=False)
        init_linear_layers(self)

    def forward(
        self, tokens: Float[Tensor, "batch tokens dim"], layout: TokenLayout
    ) -> Float[Tensor, "batch tokens dim"]:
        """Let every token attend all tokens that are not padding, twice, and take the difference."""
        batch, num, dim = tokens.shape
        query1, query2, key1, key2 = (
            self.qk(tokens).view(batch, num, 4, self.num_heads, dim // self.num_heads).permute(2, 0, 3, 1, 4)
        )  # each (B, H, N, D/H)
        value = self.v(tokens).view(batch, num, self.num_heads, -1).transpose(1, 2)
        allowed = None if layout.padding is None else layout.valid[:, None, None, :]
        wanted = scaled_dot_product_attention(query1, key1, value, attn_mask=allowed)
        noise = scaled_dot_product_attention(query2, key2, value, attn_mask=allowed)
        difference = (wanted - self.weight * noise).transpose(1, 2).reshape(batch, num, dim)
        projected: Tensor = self.proj(self.norm(difference) * self.output_scale)
        return projected


def build(config: DifferentialConfig, context: MixerContext) -> DifferentialAttention:
    """Options and widths -> the mixer."""
    return DifferentialAttention(config, context.dim, context.num_heads)


@hookimpl
def asda_mixers() -> Iterable[MixerSpec[DifferentialConfig]]:
    """Offer `differential`."""
    return [
        MixerSpec(
            name="differential",
            config=DifferentialConfig,
            build=build,
            summary="two softmax maps per head, the second subtracted with weight lambda",
            source="ASDA (Interspeech 2025), released attention module",
        )
    ]
