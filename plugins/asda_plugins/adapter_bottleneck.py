"""Bottleneck adapters of AAT: two small linear layers parallel to the MLP, after the mixer, or both."""

from collections.abc import Iterable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from asda_core.adapting import ParallelAdapter, blocks_to_adapt
from asda_core.contracts import AdapterContext, AdapterSpec, hookimpl
from asda_core.errors import ConfigError
from asda_core.layout import TokenLayout
from asda_core.model.block import Block
from asda_core.model.encoder import Encoder

MAX_RATIO = 64
"""Sixteen times the hidden width of a usual MLP: more is assumed to be a mistake. **Source**: chosen here."""


@dataclass(frozen=True)
class BottleneckConfig:
    """Settings of bottleneck adapters; the defaults are AAT^M, and with `behind_mixer` in addition AAT^MS.

    Attributes:
        ratio: hidden width divided by D.
        beside_mlp: one in parallel with each MLP, reading the same input.
        behind_mixer: one in series after each mixer, with a skip connection around it.
    """

    ratio: float = 0.25
    beside_mlp: bool = True
    behind_mixer: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= MAX_RATIO:
            raise ConfigError(f"adapter.options.ratio must lie in (0, {MAX_RATIO}], not {self.ratio}.")
        if not (self.beside_mlp or self.behind_mixer):
            raise ConfigError("adapter.options: nothing to attach; set beside_mlp: true or behind_mixer: true.")


class Bottleneck(nn.Module):
    """`W2 GELU(W1 u + b1) + b2`, with W2 and b2 initialised to zero.

    **Source**: AAT (arXiv 2401.10544), released code: exact GELU, torch's default for W1, no scale, dropout or norm.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, hidden)
        self.activation = nn.GELU()
        self.up = nn.Linear(hidden, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(
        self, tokens: Float[Tensor, "batch tokens dim"], layout: TokenLayout
    ) -> Float[Tensor, "batch tokens dim"]:
        """Project down, apply the GELU and project up, for each token separately."""
        projected: Tensor = self.up(self.activation(self.down(tokens)))
        return projected


class BehindMixer(nn.Module):
    """`a + A(a)` with `a = mixer(u)`, inside the block's residual branch."""

    def __init__(self, inner: nn.Module, adapter: Bottleneck) -> None:
        super().__init__()
        self.inner = inner
        self.adapter = adapter

    def forward(
        self, tokens: Float[Tensor, "batch tokens dim"], layout: TokenLayout
    ) -> Float[Tensor, "batch tokens dim"]:
        """Apply the mixer, then the adapter."""
        mixed: Tensor = self.inner(tokens, layout)
        adapted: Tensor = mixed + self.adapter(mixed, layout)
        return adapted


class BottleneckAdapter:
    """Add a `Bottleneck` parallel to the MLP, after the mixer, or both, of every block.

    **Source**: AAT (arXiv 2401.10544): spatial and MLP adapter, released code.
    **Differs**: AAT's blocks are pre-norm, so mixer and MLP read normed tokens; in a post-norm block the MLP and the
    adapter parallel to it read the output of the first norm. AAT's unused adapter over the batch is omitted.
    """

    def __init__(self, config: BottleneckConfig, dim: int) -> None:
        self.config = config
        self.dim = dim
        self.hidden = int(dim * config.ratio)
        if not self.hidden:
            raise ConfigError(f"adapter.options.ratio {config.ratio} of encoder.dim {dim} gives no hidden units.")

    def attach(self, encoder: Encoder) -> None:
        """Wrap mixers and MLPs of the encoder.

        Raises:
            ConfigError: the adapter is already attached, or a block has no MLP.
        """
        blocks = blocks_to_adapt(encoder, "bottleneck", Bottleneck)
        if self.config.beside_mlp and any(block.mlp is None for block in blocks):
            raise ConfigError(
                "bottleneck: beside_mlp requires an MLP, but encoder.mlp_ratio is 0; "
                "set beside_mlp: false and behind_mixer: true."
            )
        for block in blocks:
            if self.config.behind_mixer:
                block.mixer = BehindMixer(block.mixer, self._new_adapter(block))
            if self.config.beside_mlp and block.mlp is not None:
                block.mlp = ParallelAdapter(block.mlp, self._new_adapter(block))

    def _new_adapter(self, block: Block) -> Bottleneck:
        """Create an adapter with the block's device and dtype."""
        return Bottleneck(self.dim, self.hidden).to(next(block.parameters()))


def build(config: BottleneckConfig, context: AdapterContext) -> BottleneckAdapter:
    """Build the adapter from its options and the width of the encoder."""
    return BottleneckAdapter(config, context.dim)


@hookimpl
def asda_adapters() -> Iterable[AdapterSpec[BottleneckConfig]]:
    """Offer `bottleneck`."""
    return [
        AdapterSpec(
            name="bottleneck",
            config=BottleneckConfig,
            build=build,
            summary="two small linear layers parallel to the MLP, after the mixer, or both",
            source="AAT (arXiv 2401.10544, ICASSP 2024), released code",
        )
    ]
