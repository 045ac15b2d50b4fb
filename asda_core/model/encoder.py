"""The encoder: patches, a class token, L blocks. It receives built mixers and knows nothing of plugins."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from asda_core.config import EncoderConfig
from asda_core.layout import TokenLayout, insert_column, remove_column
from asda_core.model.block import Block, Mlp, init_linear_layers
from asda_core.model.patches import PatchEmbedding


@dataclass(frozen=True)
class Encoded:
    """What the encoder returns for a batch.

    Attributes:
        summary: (B, D) the class token, or the mean of the valid patches where there is none.
        tokens: (B, N, D) output of the last block at the patches, in the order they came in.
        layout: their places.
        layers: L x (B, N, D) output of each block's MLP at the patches, which latent regression regresses on.
    """

    summary: Float[Tensor, "batch dim"]
    tokens: Float[Tensor, "batch tokens dim"]
    layout: TokenLayout
    layers: tuple[Tensor, ...]


class Encoder(nn.Module):
    """Features -> `Encoded`, in two steps between which an objective may mask.

    `embed` makes patch tokens with positions; `encode` norms them, lets the class token join and runs the blocks.
    """

    def __init__(self, config: EncoderConfig, mixers: Sequence[nn.Module]) -> None:
        super().__init__()
        assert len(mixers) == config.depth, "one mixer per block"
        self.config = config
        self.patches = PatchEmbedding(config)
        self.input_norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.blocks = nn.ModuleList(Block(config, mixer) for mixer in mixers)
        for module in self.modules():
            if isinstance(module, Mlp):  # mixers initialise themselves
                init_linear_layers(module)
        self.class_token: nn.Parameter | None = None
        if config.class_token.position != "none":
            self.class_token = nn.Parameter(torch.randn(1, 1, config.dim))  # std 1, as released

    def forward(self, features: Float[Tensor, "batch bins frames"]) -> Encoded:
        """Embed and encode without masking."""
        return self.encode(*self.embed(features))

    def embed(
        self, features: Float[Tensor, "batch bins frames"]
    ) -> tuple[Float[Tensor, "batch patches dim"], TokenLayout]:
        """Patch tokens with their positions, and where they sit."""
        embedded: tuple[Tensor, TokenLayout] = self.patches(features)
        return embedded

    def encode(self, tokens: Float[Tensor, "batch tokens dim"], layout: TokenLayout) -> Encoded:
        """Norm the tokens, join the class token at its layer, run all blocks."""
        tokens = self.input_norm(tokens)
        layers: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            if self.class_token is not None and number == self.config.class_token.join_layer:
                tokens, layout = self._join(self.class_token, tokens, layout)
            tokens, layer = block(tokens, layout)
            layers.append(without_class(layer, layout))
        patches = without_class(tokens, layout)
        patch_layout = layout.without_class_token()
        column = layout.class_column
        summary = masked_mean(patches, patch_layout) if column is None else tokens[:, column]
        return Encoded(summary, patches, patch_layout, tuple(layers))

    def _join(self, class_token: Tensor, tokens: Tensor, layout: TokenLayout) -> tuple[Tensor, TokenLayout]:
        """Put the class token, normed like every input token, at its position."""
        column = {"first": 0, "middle": tokens.shape[1] // 2, "last": tokens.shape[1]}[self.config.class_token.position]
        token = self.input_norm(class_token).expand(len(tokens), -1, -1).to(tokens.dtype)
        return insert_column(tokens, token, column), layout.with_class_token(column)


def without_class(tokens: Tensor, layout: TokenLayout) -> Tensor:
    """The tokens (B, N, D) less the class token."""
    column = layout.class_column
    return tokens if column is None else remove_column(tokens, column)


def masked_mean(tokens: Tensor, layout: TokenLayout) -> Tensor:
    """Mean (B, D) over the tokens that are not padding."""
    if layout.padding is None:
        return tokens.mean(dim=1)
    weight = layout.valid.to(tokens.dtype).unsqueeze(-1)
    return (tokens * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
