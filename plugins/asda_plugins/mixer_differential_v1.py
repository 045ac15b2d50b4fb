"""Differential attention of the Differential Transformer: half the heads, values twice as wide, lambda from vectors."""

from collections.abc import Iterable

from asda_core.contracts import MixerContext, MixerSpec, hookimpl
from asda_core.model.attention import SubtractionConfig, SubtractiveAttention, build_paired_attention


def build(config: SubtractionConfig, context: MixerContext) -> SubtractiveAttention:
    """`(A1 - lambda A2) v` with half the heads and as many parameters as standard attention.

    **Source**: Ye et al. 2025 (Differential Transformer), equations 1 to 4, released code.
    **Differs**: bidirectional and without rotary positions, as usual in audio encoders; `proj` has a bias.
    """
    return build_paired_attention(config, context.dim, context.num_heads, context.layer)


@hookimpl
def asda_mixers() -> Iterable[MixerSpec[SubtractionConfig]]:
    """Offer `differential_v1`."""
    return [
        MixerSpec(
            name="differential_v1",
            config=SubtractionConfig,
            build=build,
            summary="half the heads with two maps each, lambda learned from vectors, each head normalised",
            source="Differential Transformer (Ye et al. 2025), eq. 1-4",
        )
    ]
