"""Low-rank adaptation (LoRA): a learned difference of low rank on the weights of linear layers."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from asda_core.adapting import blocks_to_adapt
from asda_core.contracts import AdapterContext, AdapterSpec, hookimpl
from asda_core.errors import ConfigError
from asda_core.model.block import Block
from asda_core.model.encoder import Encoder

AdaptedPart = Literal["mixer", "mlp", "both"]


@dataclass(frozen=True)
class LowRankConfig:
    """Settings of low-rank adaptation.

    Rank 8 is that of the paper's RoBERTa runs. Alpha is 16 as in the released script for RoBERTa base on SST-2
    (`roberta_base_sst2.sh`); the paper's appendix D has 8. Alpha acts much like the learning rate (section 4.1).

    Attributes:
        rank: of each difference; layers whose input or output is no wider than this are not adapted.
        alpha: the difference is alpha / rank times B A.
        where: whether the linear layers of the "mixer", of the "mlp" or of "both" are adapted.
    """

    rank: int = 8
    alpha: float = 16.0
    where: AdaptedPart = "mixer"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"adapter.options.rank must be at least 1, not {self.rank}.")
        if not 0 < self.alpha < math.inf:
            raise ConfigError(f"adapter.options.alpha must be a positive number, not {self.alpha}.")


class LowRank(nn.Module):
    """Parametrization of a weight W as `W + (alpha / rank) B A`, with B initialised to zero.

    **Source**: Hu et al. 2021, section 4.1; released code (A has torch's default for linear weights: Kaiming-uniform).
    **Differs**: the paper draws A from a normal distribution. There is no dropout before A: the difference is added to
    the weight and not to the output, so that it also works where a mixer reads `linear.weight`.
    """

    def __init__(self, weight: Float[Tensor, "out in"], rank: int, alpha: float) -> None:
        super().__init__()
        self.scale = alpha / rank
        self.down = nn.Parameter(weight.new_empty(rank, weight.shape[1]))  # A
        self.up = nn.Parameter(weight.new_zeros(weight.shape[0], rank))  # B
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """Return the adapted weight."""
        return weight + self.scale * (self.up @ self.down)


class LowRankAdapter:
    """Adapt every `nn.Linear` in the mixer, the MLP, or both, of every block.

    The weights are parametrized: the frozen one remains the same object, as `parametrizations.weight.original`. To
    merge after training, call for every such layer::

        torch.nn.utils.parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)

    A copy of the encoder (`copy.deepcopy`) shares the classes of such layers with the original, so that merging one
    breaks the other; and only the state dict can be pickled.

    **Source**: Hu et al. 2021, section 4.
    **Differs**: the paper adapts only the weights of queries and values. Here mixers differ, and queries, keys and
    values may be one layer, so all linear layers are adapted, each as a whole: parts of a fused layer share A.
    """

    def __init__(self, config: LowRankConfig) -> None:
        self.config = config

    def attach(self, encoder: Encoder) -> None:
        """Parametrize the weights.

        Raises:
            ConfigError: the adapter is already attached, or `where` matches no linear layer that is wide enough.
        """
        blocks = blocks_to_adapt(encoder, "low_rank", LowRank)
        modules = [module for block in blocks for module in self._adapted_modules(block)]
        linear = {layer: None for module in modules for layer in module.modules() if isinstance(layer, nn.Linear)}
        layers = [layer for layer in linear if min(layer.weight.shape) > self.config.rank]
        if not layers:
            raise ConfigError(
                f"low_rank: where: {self.config.where} matches no linear layer wider than rank: {self.config.rank}; "
                "`both` adapts mixers and MLPs (with encoder.mlp_ratio 0 there are no MLPs)."
            )
        for layer in layers:
            register_parametrization(layer, "weight", LowRank(layer.weight, self.config.rank, self.config.alpha))

    def _adapted_modules(self, block: Block) -> list[nn.Module]:
        """Return the modules of a block, mixer or MLP, that are adapted."""
        modules = {"mixer": block.mixer, "mlp": block.mlp}
        return [part for name, part in modules.items() if part is not None and self.config.where in (name, "both")]


def build(config: LowRankConfig, context: AdapterContext) -> LowRankAdapter:
    """Build the adapter from its options; its widths are those of the layers that it finds."""
    return LowRankAdapter(config)


@hookimpl
def asda_adapters() -> Iterable[AdapterSpec[LowRankConfig]]:
    """Offer `low_rank`."""
    return [
        AdapterSpec(
            name="low_rank",
            config=LowRankConfig,
            build=build,
            summary="a difference of low rank on the weights of linear layers; merges into them after training",
            source="LoRA (Hu et al. 2021), section 4",
        )
    ]
