"""Differential attention V2: twice the queries on the same keys and values, lambda a sigmoid of each token."""

from collections.abc import Iterable
from dataclasses import dataclass

from asda_core.contracts import MixerContext, MixerSpec, hookimpl
from asda_core.model.attention import Heads, Lambda, LambdaMode, SubtractiveAttention, initial_lambda


@dataclass(frozen=True)
class DifferentialV2Config:
    """Settings of differential attention V2; the defaults are the published ones.

    Attributes:
        lambda_mode: "token" (published), "vectors", "scalars" or "fixed".
        lambda_init: initial lambda in the other modes; null takes `0.8 - 0.6 exp(-0.3 layer)`.
        qkv_bias: whether query, key and value have a bias.
    """

    lambda_mode: LambdaMode = "token"
    lambda_init: float | None = None
    qkv_bias: bool = False


def build(config: DifferentialV2Config, context: MixerContext) -> SubtractiveAttention:
    """`O(2i) - sigmoid(lambda_i(token)) O(2i + 1)`: 2 H query heads, two neighbours per key and value head.

    **Source**: Microsoft, "Differential Transformer V2" (January 2026), note and released code.
    **Differs**: in `qkv` the even query heads come first, then the odd ones.
    """
    width = context.dim // context.num_heads
    start = initial_lambda(config.lambda_mode, config.lambda_init, context.layer)
    weight = Lambda(config.lambda_mode, start, width, context.num_heads, context.dim)
    shape = Heads(context.num_heads, context.num_heads, width, width, shared_keys=True)
    return SubtractiveAttention(context.dim, shape, weight, norm=False, bias=config.qkv_bias)


@hookimpl
def asda_mixers() -> Iterable[MixerSpec[DifferentialV2Config]]:
    """Offer `differential_v2`."""
    return [
        MixerSpec(
            name="differential_v2",
            config=DifferentialV2Config,
            build=build,
            summary="twice the query heads on shared keys and values, lambda a sigmoid of each token, no norm",
            source="Differential Transformer V2 (Microsoft 2026)",
        )
    ]
