"""Differential attention of ASDA: a second softmax map is subtracted from the first."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from asda_core.contracts import MixerContext, MixerSpec, hookimpl
from asda_core.errors import ConfigError
from asda_core.layout import TokenLayout
from asda_core.model.attention import AttentionMaps, softmax_map, split_heads
from asda_core.model.block import init_linear_layers
from asda_core.model.recomputation import with_recomputation
from asda_core.model.subtraction import Method, attention_terms, difference


@dataclass(frozen=True)
class DifferentialConfig:
    """Settings of differential attention; the defaults are those of the released code.

    Attributes:
        lambda_init: weight of the second map, any number; 0 leaves only the first.
        lambda_learned: whether lambda is trained from there, one number per head; the release keeps it fixed.
        output_scale: factor after the LayerNorm, 1 - 0.05 in the release, where it does not depend on lambda.
        sub_norm_eps: of that LayerNorm; the release uses 1e-5 here and 1e-6 elsewhere.
        qkv_bias: whether query, key and value have a bias.
    """

    lambda_init: float = 0.1
    lambda_learned: bool = False
    output_scale: float = 0.95
    sub_norm_eps: float = 1e-5
    qkv_bias: bool = True

    def __post_init__(self) -> None:
        if self.sub_norm_eps < 0:
            raise ConfigError(f"encoder.mixer.options.sub_norm_eps must not be negative, not {self.sub_norm_eps}.")


class DifferentialAttention(nn.Module):
    """`scale * LayerNorm((A1 - lambda A2) v)`, `Ai = softmax(qi ki^T / sqrt(d))`, then a linear map.

    Both maps have all heads at full width, so queries and keys take twice the parameters of standard attention. The
    LayerNorm spans the full width. The rows of `qk` are q1, q2, k1, k2, with D rows each.

    How the difference is computed depends on the machine and the number of tokens, and changes it only by rounding
    (`asda_core.model.subtraction`); `by_formula` True computes both maps and subtracts them, in N^2 memory.

    **Source**: ASDA (Interspeech 2025), released attention module.
    **Differs** from the Differential Transformer (Ye et al. 2025), which halves the heads, learns lambda from vectors
    and norms each head. The learned lambda, one number per head, is an addition.
    """

    def __init__(self, config: DifferentialConfig, dim: int, num_heads: int) -> None:
        super().__init__()
        if not math.isfinite(config.lambda_init):
            raise ConfigError(f"encoder.mixer.options.lambda_init must be finite, not {config.lambda_init}.")
        self.num_heads = num_heads
        self.by_formula = False
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
        """Attend to all tokens that are not padding, with both maps, and take the difference."""
        query1, query2, key1, key2 = split_heads(self.qk(tokens), 4, self.num_heads)
        value = self.v(tokens).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, H, N, D/H)
        way: Method | None = "formula" if self.by_formula else None
        mixed = attention_terms(query1, query2, key1, key2, value, self.weight, layout, way)
        if self.by_formula:
            return self._projected(*mixed, self.weight)
        return with_recomputation(self._projected, *mixed, self.weight, modules=(self.norm, self.proj))

    def maps(self, tokens: Float[Tensor, "batch tokens dim"], layout: TokenLayout) -> AttentionMaps:
        """Return the softmax maps A1 and A2 (each row sums to 1), and lambda per head."""
        query1, query2, key1, key2 = split_heads(self.qk(tokens), 4, self.num_heads)
        return AttentionMaps(softmax_map(query1, key1, layout), softmax_map(query2, key2, layout), self.weight.detach())

    def _projected(self, signal: Tensor, noise: Tensor | None, weight: Tensor) -> Tensor:
        mixed = difference(signal, noise, weight).transpose(1, 2).flatten(2)
        projected: Tensor = self.proj(self.norm(mixed) * self.output_scale)
        return projected


def build(config: DifferentialConfig, context: MixerContext) -> DifferentialAttention:
    """Build the mixer from its options and the widths of the encoder."""
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
