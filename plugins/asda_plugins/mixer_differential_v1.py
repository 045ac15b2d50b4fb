"""Differential attention of the Differential Transformer: half the heads, values twice as wide, lambda from vectors."""

from collections.abc import Iterable
from dataclasses import dataclass

from asda_core.contracts import MixerContext, MixerSpec, hookimpl
from asda_core.errors import ConfigError
from asda_core.model.attention import Heads, Lambda, LambdaMode, SubtractiveAttention, lambda_start


@dataclass(frozen=True)
class DifferentialV1Config:
    """Settings of the Differential Transformer's attention; the defaults are the published ones.

    Attributes:
        lambda_mode: "vectors" (published), "scalars" (timm's `dual_lambda`), "fixed", or "token" (a sigmoid for each
            token and head, as in V2).
        lambda_init: what lambda starts from; null takes `0.8 - 0.6 exp(-0.3 layer)`. "token" has no start, and no gain.
        head_norm: whether each head is normed (RMS) and multiplied by `1 - lambda_init`.
        qkv_bias: whether query, key and value have a bias.
    """

    lambda_mode: LambdaMode = "vectors"
    lambda_init: float | None = None
    head_norm: bool = True
    qkv_bias: bool = False


def build(config: DifferentialV1Config, context: MixerContext) -> SubtractiveAttention:
    """`(A1 - lambda A2) v` with half the heads; as many parameters as standard attention.

    **Source**: Ye et al. 2025 (Differential Transformer), equations 1 to 4, released code.
    **Differs**: bidirectional and without rotary positions, as an audio encoder is; `proj` has a bias.
    """
    if context.num_heads % 2:
        raise ConfigError(f"differential_v1 takes heads in pairs; encoder.num_heads {context.num_heads} is odd.")
    heads, width = context.num_heads // 2, context.dim // context.num_heads
    start = lambda_start(config.lambda_mode, config.lambda_init, context.layer)
    weight = Lambda(config.lambda_mode, start, width, heads, context.dim)
    shape = Heads(heads, heads, width, 2 * width)
    return SubtractiveAttention(context.dim, shape, weight, config.head_norm, config.qkv_bias)


@hookimpl
def asda_mixers() -> Iterable[MixerSpec[DifferentialV1Config]]:
    """Offer `differential_v1`."""
    return [
        MixerSpec(
            name="differential_v1",
            config=DifferentialV1Config,
            build=build,
            summary="half the heads with two maps each, lambda learned from vectors, each head normed",
            source="Differential Transformer (Ye et al. 2025), eq. 1-4",
        )
    ]
