"""The encoder: patches, a class token, L blocks. It receives built mixers and does not depend on plugins."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from asda_core.config import EncoderConfig
from asda_core.layout import TokenLayout, gather_tokens, insert_column, mean_over_valid
from asda_core.model.block import INIT_STD, Block, Mlp, init_linear_layers
from asda_core.model.norms import make_norm
from asda_core.model.patches import PatchEmbedding


@dataclass(frozen=True)
class EncoderOutput:
    """Output of the encoder for a batch.

    Attributes:
        summary: (B, D) the class token (mean over several), or without one the mean of the valid patches.
        tokens: (B, N, D) output of the last block (and the final norm) at the patches, in input order.
        layout: their positions in the grid.
        layers: L x (B, N, D) output of each block's MLP (without one, its mixer) at the patches, the regression target
            of latent regression; empty if not requested.
        outputs: (B, N, D) at the patches after each requested block, keyed by block number from 1; 0 is the input of
            the first block.
    """

    summary: Float[Tensor, "batch dim"]
    tokens: Float[Tensor, "batch tokens dim"]
    layout: TokenLayout
    layers: tuple[Tensor, ...]
    outputs: Mapping[int, Tensor] = field(default_factory=dict)


class Encoder(nn.Module):
    """Features -> `EncoderOutput`, in two steps between which an objective may mask.

    `embed` returns patch tokens with positions; `encode` normalises them, inserts the class token and runs the blocks.
    """

    def __init__(self, config: EncoderConfig, mixers: Sequence[nn.Module]) -> None:
        super().__init__()
        assert len(mixers) == config.depth, "one mixer per block"
        self.config = config
        self.patches = PatchEmbedding(config)
        self.input_norm = make_norm(config) if config.input_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(config, mixer) for mixer in mixers)
        for module in self.modules():
            if isinstance(module, Mlp):  # mixers initialise themselves
                init_linear_layers(module)
        self.final_norm = make_norm(config) if config.final_norm else nn.Identity()
        self.class_token: nn.Parameter | None = None
        if config.class_token.position != "none":
            # std 1 as in the released ASDA; with a learned position table, the std of that table
            std = 1.0 if config.positions.type == "sine_cosine" else INIT_STD
            self.class_token = nn.Parameter(torch.randn(1, config.class_token.count, config.dim) * std)

    @property
    def typed_blocks(self) -> list[Block]:
        """The blocks in order, under their own type, which PyTorch's module lists do not state."""
        return cast(list[Block], list(self.blocks))

    def no_weight_decay(self) -> list[str]:
        """The class token; see `no_decay_ids`."""
        return ["class_token"]

    def forward(
        self, features: Float[Tensor, "batch bins frames"], outputs: Collection[int] = (), layers: bool = True
    ) -> EncoderOutput:
        """Embed and encode without masking; `outputs` and `layers` as in `encode`."""
        return self.encode(*self.embed(features), outputs, layers)

    def embed(
        self, features: Float[Tensor, "batch bins frames"]
    ) -> tuple[Float[Tensor, "batch patches dim"], TokenLayout]:
        """Return patch tokens with their positions added, and their layout."""
        embedded: tuple[Tensor, TokenLayout] = self.patches(features)
        return embedded

    def encode(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        layout: TokenLayout,
        outputs: Collection[int] = (),
        layers: bool = True,
    ) -> EncoderOutput:
        """Normalise the tokens, insert the class token at its layer, run all blocks.

        Args:
            tokens, layout: as returned by `embed`, or a subset of these.
            outputs: numbers of the blocks whose outputs are kept; even ones if blocks are wired in pairs.
            layers: whether the outputs of the MLPs are kept; they take L times the memory of the tokens.
        """
        if self.config.token_order == "time":
            return self._encode(tokens, layout, outputs, layers)
        order = layout.frequency_order()
        ordered = layout.select(torch.arange(len(tokens), device=tokens.device), order)
        encoded = self._encode(gather_tokens(tokens, order), ordered, outputs, layers)
        back = order.argsort(dim=1)
        placed = tuple(gather_tokens(layer, back) for layer in encoded.layers)
        block_outputs = {number: gather_tokens(output, back) for number, output in encoded.outputs.items()}
        return EncoderOutput(encoded.summary, gather_tokens(encoded.tokens, back), layout, placed, block_outputs)

    def _encode(self, tokens: Tensor, layout: TokenLayout, outputs: Collection[int], layers: bool) -> EncoderOutput:
        """`encode` with the tokens in the given order."""
        tokens = self.input_norm(tokens)
        mlp_outputs: list[Tensor] = []
        block_outputs = {0: tokens} if 0 in outputs else {}
        step = 1 if self.config.wiring == "sequential" else 2
        for number in range(0, len(self.blocks), step):
            if self.class_token is not None and 0 <= self.config.class_token.join_layer - number < step:
                tokens, layout = self._join(self.class_token, tokens, layout)
            tokens, *branches = self._run(number, tokens, layout)
            if layers:
                mlp_outputs += [layout.without_class(branch) for branch in branches]
            if number + step in outputs:
                block_outputs[number + step] = layout.without_class(tokens)
        for _ in range(2 if self.config.wiring == "released" else 1):
            tokens = self.final_norm(tokens)
        patches = layout.without_class(tokens)
        patch_layout = layout.without_class_token()
        column = layout.class_column
        if column is None:
            summary = mean_over_valid(patches, patch_layout)
        else:
            summary = tokens[:, column : column + layout.class_count].mean(dim=1)
        return EncoderOutput(summary, patches, patch_layout, tuple(mlp_outputs), block_outputs)

    def _run(self, number: int, tokens: Tensor, layout: TokenLayout) -> tuple[Tensor, ...]:
        """Run a block, or a pair whose second block reads the reversed sequence; return tokens and each MLP output."""
        forward, first = self.blocks[number](tokens, layout)
        if self.config.wiring == "sequential":
            return forward, first
        backward, second = self.blocks[number + 1](tokens.flip(1), layout.reversed())
        both = forward + backward.flip(1)
        return both / 2 if self.config.wiring == "paired" else both, first, second.flip(1)

    def _join(self, class_token: Tensor, tokens: Tensor, layout: TokenLayout) -> tuple[Tensor, TokenLayout]:
        """Insert the class token, normalised like every input token, at its position."""
        column = {"first": 0, "middle": tokens.shape[1] // 2, "last": tokens.shape[1]}[self.config.class_token.position]
        token = self.input_norm(class_token).expand(len(tokens), -1, -1).to(tokens.dtype)
        return insert_column(tokens, token, column), layout.with_class_token(column, token.shape[1])
