"""Deep visual prompts: learned tokens that every mixer sees and that are discarded after it."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from asda_core.adapting import blocks_to_adapt
from asda_core.contracts import AdapterContext, AdapterSpec, hookimpl
from asda_core.errors import ConfigError
from asda_core.layout import TokenLayout, insert_column
from asda_core.model.block import INIT_STD
from asda_core.model.encoder import Encoder


@dataclass(frozen=True)
class PromptConfig:
    """Settings of prompts.

    Attributes:
        count: prompts per block. The default is chosen here: Jia et al. choose between 1 and 200 for each task.
    """

    count: int = 10

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"adapter.options.count must be at least 1, not {self.count}.")


class PromptedMixer(nn.Module):
    """`plain + gate * (prompted - plain)`, with `plain = mixer(u)` and `prompted = mixer([P; u])` without the prompts.

    Prompts have no place in the grid. They are inserted directly before the class token, or first if there is none, and
    the layout counts them as class tokens, so that mixers which use the grid treat them as global.

    **Source**: Jia et al. 2022, section 3.2, VPT-deep.
    **Differs**:

    - The gate, one number per channel and initially zero, is an addition: attention gives weight even to prompts of
      zeros, so that attaching them would change the output. A gate of one gives Jia et al.'s method. It costs two
      passes of the mixer, in training and afterwards.
    - Prompts join at the mixer, in a pre-norm block after the norm, and are drawn with mean 0 and std 0.02; in the
      paper they join before the norm and are drawn from a uniform distribution. That they skip the MLP changes
      nothing: its output for them is discarded there too.
    - The prompts of AAT's released code overwrite the first patches from the second block on, and its first block
      never sees any (the result of the insertion is lost). Here all patches are kept, and every block has prompts.
    """

    def __init__(self, inner: nn.Module, prompts: Float[Tensor, "one count dim"]) -> None:
        super().__init__()
        self.inner = inner
        self.prompts = nn.Parameter(prompts)
        self.gate = nn.Parameter(prompts.new_zeros(prompts.shape[2]))

    def no_weight_decay(self) -> list[str]:
        """Exclude the prompts from weight decay: they are tokens, not weight matrices."""
        return ["prompts"]

    def forward(
        self, tokens: Float[Tensor, "batch tokens dim"], layout: TokenLayout
    ) -> Float[Tensor, "batch tokens dim"]:
        """Mix without and with prompts, and interpolate between the two outputs by the gate."""
        plain: Tensor = self.inner(tokens, layout)
        column = 0 if layout.class_column is None else layout.class_column
        count = self.prompts.shape[1]
        joined = insert_column(tokens, self.prompts.expand(len(tokens), -1, -1).to(tokens), column)
        prompted: Tensor = self.inner(joined, layout.with_class_token(column, count))
        without_prompts = torch.cat([prompted[:, :column], prompted[:, column + count :]], dim=1)
        return plain + self.gate * (without_prompts - plain)


class PromptAdapter:
    """Give the mixer of every block its own prompts; see `PromptedMixer`."""

    def __init__(self, config: PromptConfig, dim: int) -> None:
        self.config = config
        self.dim = dim

    def attach(self, encoder: Encoder) -> None:
        """Wrap the mixers of the encoder.

        Raises:
            ConfigError: the adapter is already attached.
        """
        for block in blocks_to_adapt(encoder, "prompt", PromptedMixer):
            prompts = torch.randn(1, self.config.count, self.dim) * INIT_STD
            block.mixer = PromptedMixer(block.mixer, prompts.to(next(block.parameters())))


def build(config: PromptConfig, context: AdapterContext) -> PromptAdapter:
    """Build the adapter from its options and the width of the encoder."""
    return PromptAdapter(config, context.dim)


@hookimpl
def asda_adapters() -> Iterable[AdapterSpec[PromptConfig]]:
    """Offer `prompt`."""
    return [
        AdapterSpec(
            name="prompt",
            config=PromptConfig,
            build=build,
            summary="learned tokens that every mixer attends to, with a gate",
            source="VPT-deep (Jia et al. 2022), section 3.2; the gate is an addition",
        )
    ]
