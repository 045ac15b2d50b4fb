"""DINT: differential attention whose rows sum to 1 again, since the mean attention of all tokens is added."""

from collections.abc import Iterable

from asda_core.contracts import MixerContext, MixerSpec, hookimpl
from asda_core.model.attention import SubtractionConfig, SubtractiveAttention, build_paired_attention


def build(config: SubtractionConfig, context: MixerContext) -> SubtractiveAttention:
    """`(A1 - lambda A2 + lambda G) v`; every row of G is the mean row of A1, so that rows sum to 1.

    **Source**: DINT Transformer (arXiv 2501.17486); the rest as in the Differential Transformer.
    **Differs**: bidirectional, so the mean is over all tokens that are not padding; G is never computed, since `G v`
    is the mean over tokens of `A1 v`.
    """
    return build_paired_attention(config, context.dim, context.num_heads, context.layer, add_mean=True)


@hookimpl
def asda_mixers() -> Iterable[MixerSpec[SubtractionConfig]]:
    """Offer `dint`."""
    return [
        MixerSpec(
            name="dint",
            config=SubtractionConfig,
            build=build,
            summary="differential_v1 plus lambda times the mean row of the first map: rows sum to 1",
            source="DINT Transformer (arXiv 2501.17486)",
        )
    ]
