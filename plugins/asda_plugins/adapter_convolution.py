"""Convolutional adapters (ConvPass) as AI-CL uses them: a small 3x3 convolution over the time-frequency grid."""

from collections.abc import Iterable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from asda_core.adapting import ParallelAdapter, blocks_to_adapt
from asda_core.contracts import AdapterContext, AdapterSpec, hookimpl
from asda_core.errors import ConfigError
from asda_core.layout import TokenLayout
from asda_core.model.block import Block
from asda_core.model.encoder import Encoder

QUICK_GELU_SLOPE = 1.702
"""Slope of the sigmoid that approximates the normal CDF. **Source**: Hendrycks & Gimpel 2016, section 2."""


@dataclass(frozen=True)
class ConvolutionConfig:
    """Settings of convolutional adapters; the defaults are those of AI-CL's first task (later tasks: `width` 32).

    Attributes:
        width: channels of the convolution.
        dropout: share of hidden units that are dropped after it in training.
        beside_mixer: one in parallel with each mixer, reading the same input.
        beside_mlp: one in parallel with each MLP; blocks without an MLP get none.
    """

    width: int = 64
    dropout: float = 0.1
    beside_mixer: bool = True
    beside_mlp: bool = True

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ConfigError(f"adapter.options.width must be at least 1, not {self.width}.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"adapter.options.dropout must lie in [0, 1), not {self.dropout}.")
        if not (self.beside_mixer or self.beside_mlp):
            raise ConfigError("adapter.options: nothing to attach; set beside_mixer: true or beside_mlp: true.")


class GridConvolution(nn.Module):
    """`W_up Dropout(QGELU(Conv3x3(QGELU(W_down u))))`, QGELU(x) = x sigmoid(1.702 x), with W_up starting at 0.

    The convolution runs over the grid of (time steps, bands), with zeros around it and where tokens were dropped::

        tokens ---- W_down ---- scattered to the grid ---- convolution ---- gathered again ---- W_up
        class tokens (and padding, which no other token sees): each as its own 1 x 1 grid, so only the kernel's centre

    **Source**: AI-CL (arXiv 2302.14314), released code: Xavier for W_down and the kernel, all biases zero.
    **Differs**: the release requires a full grid with exactly one class token in front. Its grid has the bands first,
    so its kernels are transposed. ConvPass (Jie & Deng 2022) itself starts the kernel's centre at the identity.
    """

    def __init__(self, config: ConvolutionConfig, dim: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, config.width)
        self.convolution = nn.Conv2d(config.width, config.width, kernel_size=3, padding=1)
        self.dropout = nn.Dropout(config.dropout)
        self.up = nn.Linear(config.width, dim)
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.xavier_uniform_(self.convolution.weight)
        nn.init.zeros_(self.up.weight)
        for layer in (self.down, self.convolution, self.up):
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(
        self, tokens: Float[Tensor, "batch tokens dim"], layout: TokenLayout
    ) -> Float[Tensor, "batch tokens dim"]:
        """Project down, convolve over the grid and project up."""
        hidden = self._convolved(quick_gelu(self.down(tokens)), layout)
        projected: Tensor = self.up(self.dropout(quick_gelu(hidden)))
        return projected

    def _convolved(self, hidden: Tensor, layout: TokenLayout) -> Tensor:
        """Return the output of the convolution (B, N, h) at the grid cell of each token."""
        times, bands = layout.grid
        outside = times * bands  # an extra cell for tokens that must not be seen
        cell = layout.index.masked_fill(layout.is_class | ~layout.valid, outside)
        cell = cell.unsqueeze(-1).expand_as(hidden)
        cells = hidden.new_zeros(len(hidden), outside + 1, hidden.shape[-1]).scatter(1, cell, hidden)
        maps = cells[:, :outside].transpose(1, 2).reshape(len(hidden), -1, times, bands)
        convolved = self.convolution(maps).flatten(2).transpose(1, 2)
        on_grid: Tensor = convolved.gather(1, cell.clamp(max=outside - 1))
        isolated = linear(hidden, self.convolution.weight[:, :, 1, 1], self.convolution.bias)
        return on_grid.where(cell < outside, isolated)


class ConvolutionAdapter:
    """Add a `GridConvolution` parallel to the mixer, to the MLP, or to both, of every block.

    **Source**: AI-CL (arXiv 2302.14314, Interspeech 2023), released code; ConvPass (Jie & Deng 2022).
    **Differs**: both read normed tokens there; in a post-norm block they read what the mixer and the MLP read.
    """

    def __init__(self, config: ConvolutionConfig, dim: int) -> None:
        self.config = config
        self.dim = dim

    def attach(self, encoder: Encoder) -> None:
        """Wrap mixers and MLPs of the encoder.

        Raises:
            ConfigError: the adapter is already attached, or there is nothing to attach it to.
        """
        blocks = blocks_to_adapt(encoder, "convolution", GridConvolution)
        if not self.config.beside_mixer and all(block.mlp is None for block in blocks):
            raise ConfigError(
                "convolution: beside_mlp requires an MLP, but encoder.mlp_ratio is 0; set beside_mixer: true."
            )
        for block in blocks:
            if self.config.beside_mixer:
                block.mixer = ParallelAdapter(block.mixer, self._new_adapter(block))
            if self.config.beside_mlp and block.mlp is not None:
                block.mlp = ParallelAdapter(block.mlp, self._new_adapter(block))

    def _new_adapter(self, block: Block) -> GridConvolution:
        """Create an adapter with the block's device, dtype and training mode."""
        return GridConvolution(self.config, self.dim).to(next(block.parameters())).train(block.training)


def quick_gelu(values: Tensor) -> Tensor:
    """Return `x sigmoid(1.702 x)`, an approximation of GELU."""
    return values * (QUICK_GELU_SLOPE * values).sigmoid()


def build(config: ConvolutionConfig, context: AdapterContext) -> ConvolutionAdapter:
    """Build the adapter from its options and the width of the encoder."""
    return ConvolutionAdapter(config, context.dim)


@hookimpl
def asda_adapters() -> Iterable[AdapterSpec[ConvolutionConfig]]:
    """Offer `convolution`."""
    return [
        AdapterSpec(
            name="convolution",
            config=ConvolutionConfig,
            build=build,
            summary="a small 3x3 convolution over the time-frequency grid, parallel to mixer and MLP",
            source="AI-CL (arXiv 2302.14314, Interspeech 2023), released code; ConvPass (Jie & Deng 2022)",
        )
    ]
