"""The convolutional decoder: from the student's patches and noise to predictions for all patches."""

import itertools
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm

from asda_core.errors import ConfigError

NORM_EPS = 1e-5
"""Epsilon of the LayerNorm over channels. **Source**: released code (PyTorch's default)."""


@dataclass(frozen=True)
class DecoderConfig:
    """Shape of the decoder; `dim` must be a multiple of `groups`, and so must the encoder's width."""

    dim: int = 768
    layers: int = 6
    kernel: int = 3
    groups: int = 16


class ConvolutionalDecoder(nn.Module):
    """Grouped 2-D convolutions over the grid, each with LayerNorm over channels, GELU, and a residual.

    The residual is left out where the widths differ, which only the first layer can.

    **Source**: released code, two-dimensional decoder of data2vec 2.0 (norms without weights).
    """

    def __init__(self, config: DecoderConfig, dim: int) -> None:
        super().__init__()
        for name, width in (("objective.options.decoder.dim", config.dim), ("encoder.dim", dim)):
            if width % config.groups:
                raise ConfigError(
                    f"{name} {width} is not a multiple of objective.options.decoder.groups {config.groups}."
                )
        widths = [dim] + [config.dim] * config.layers
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, config.kernel, padding=config.kernel // 2, groups=config.groups)
            for before, after in itertools.pairwise(widths)
        )
        self.proj = nn.Linear(widths[-1], dim)

    def forward(
        self, patches: Float[Tensor, "batch patches dim"], grid: tuple[int, int]
    ) -> Float[Tensor, "batch patches dim"]:
        """Predict every patch from patches in raster order."""
        times, bands = grid
        maps = patches.transpose(1, 2).reshape(len(patches), -1, times, bands)  # (B, D, times, bands)
        for convolution in self.convolutions:
            new = convolution(maps)[:, :, :times, :bands]  # an even kernel gives one row and column too many
            new = layer_norm(new.movedim(1, -1), new.shape[1:2], eps=NORM_EPS).movedim(-1, 1)
            new = gelu(new)
            maps = new + maps if new.shape == maps.shape else new
        predicted: Tensor = self.proj(maps.flatten(2).transpose(1, 2))
        return predicted
