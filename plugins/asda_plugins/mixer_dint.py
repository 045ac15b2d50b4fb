"""DINT: differential attention whose rows sum to 1 again, by adding what all tokens attend on average."""

from collections.abc import Iterable
from dataclasses import dataclass

from asda_core.contracts import MixerContext, MixerSpec, hookimpl
from asda_core.errors import ConfigError
from asda_core.model.attention import Heads, Lambda, LambdaMode, SubtractiveAttention, lambda_start


@dataclass(frozen=True)
class DintConfig:
    """Settings of DINT attention; those of `differential_v1`.

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


def build(config: DintConfig, context: MixerContext) -> SubtractiveAttention:
    """`(A1 - lambda A2 + lambda G) v`; every row of G is the mean row of A1, so that rows sum to 1.

    **Source**: DINT Transformer (arXiv 2501.17486); the rest as in the Differential Transformer.
    **Differs**: bidirectional, so the mean is over all tokens that are not padding; G is never made, since `G v` is
    the mean over tokens of `A1 v`.
    """
    if context.num_heads % 2:
        raise ConfigError(f"dint takes heads in pairs; encoder.num_heads {context.num_heads} is odd.")
    heads, width = context.num_heads // 2, context.dim // context.num_heads
    start = lambda_start(config.lambda_mode, config.lambda_init, context.layer)
    weight = Lambda(config.lambda_mode, start, width, heads, context.dim)
    shape = Heads(heads, heads, width, 2 * width)
    return SubtractiveAttention(context.dim, shape, weight, config.head_norm, config.qkv_bias, add_mean=True)


@hookimpl
def asda_mixers() -> Iterable[MixerSpec[DintConfig]]:
    """Offer `dint`."""
    return [
        MixerSpec(
            name="dint",
            config=DintConfig,
            build=build,
            summary="differential_v1 plus lambda times the mean row of the first map: rows sum to 1",
            source="DINT Transformer (arXiv 2501.17486)",
        )
    ]
