"""Grouped differential attention: few noise heads, each subtracted from several signal heads."""

from collections.abc import Iterable
from dataclasses import dataclass

from asda_core.contracts import MixerContext, MixerSpec, hookimpl
from asda_core.errors import ConfigError
from asda_core.model.attention import Heads, Lambda, SubtractionConfig, SubtractiveAttention, initial_lambda


@dataclass(frozen=True)
class GroupedDifferentialConfig(SubtractionConfig):
    """Settings of grouped differential attention: those of the family, and the number of signal heads per noise head.

    The paper finds a `ratio` of 3 to 4 best; `num_heads` must be a multiple of it.
    """

    ratio: int = 4


def build(config: GroupedDifferentialConfig, context: MixerContext) -> SubtractiveAttention:
    """`(A_i - lambda A'_(i // ratio)) v_i`: `num_heads` signal heads, `num_heads / ratio` noise heads.

    **Source**: Grouped Differential Attention (arXiv 2510.06949).
    **Differs**: the paper divides a fixed number of heads; here there are `num_heads` signal heads and the noise heads
    are added, so that widths stay integers.

    Raises:
        ConfigError: `ratio` does not divide the number of heads, or the initial value of lambda does not fit the mode.
    """
    if config.ratio < 1 or context.num_heads % config.ratio:
        raise ConfigError(
            f"encoder.mixer.options.ratio {config.ratio} does not divide encoder.num_heads {context.num_heads}."
        )
    width = context.dim // context.num_heads
    start = initial_lambda(config.lambda_mode, config.lambda_init, context.layer)
    weight = Lambda(config.lambda_mode, start, width, context.num_heads, context.dim)
    shape = Heads(context.num_heads, context.num_heads // config.ratio, width, width)
    return SubtractiveAttention(context.dim, shape, weight, config.head_norm, config.qkv_bias)


@hookimpl
def asda_mixers() -> Iterable[MixerSpec[GroupedDifferentialConfig]]:
    """Offer `grouped_differential`."""
    return [
        MixerSpec(
            name="grouped_differential",
            config=GroupedDifferentialConfig,
            build=build,
            summary="few noise heads, each subtracted from several signal heads",
            source="Grouped Differential Attention (arXiv 2510.06949)",
        )
    ]
