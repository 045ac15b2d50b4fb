"""The convolutional decoder: student patches and noise -> predictions for all patches."""

import itertools
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm

from asda_core.errors import ConfigError
from asda_core.model.recomputation import with_recomputation

NORM_EPS = 1e-5
"""Epsilon of the LayerNorm over channels. **Source**: released code (PyTorch's default)."""


@dataclass(frozen=True)
class DecoderConfig:
    """Shape of the decoder; `dim` must be a multiple of `groups`, and so must the encoder's width."""

    dim: int = 768
    layers: int = 6
    kernel: int = 3
    groups: int = 16

    def __post_init__(self) -> None:
        for name in ("dim", "layers", "kernel", "groups"):
            if getattr(self, name) < 1:
                raise ConfigError(f"objective.options.decoder.{name} must be at least 1, not {getattr(self, name)}.")
        if self.kernel % 2 == 0:
            raise ConfigError(
                f"objective.options.decoder.kernel must be odd, so that the grid keeps its size, not {self.kernel}."
            )


class ConvolutionalDecoder(nn.Module):
    """Grouped 2-D convolutions over the grid, each with LayerNorm over channels, GELU, and a residual.

    There is no residual where the widths differ, which is possible only in the first layer.

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
        self,
        patches: Float[Tensor, "batch patches dim"],
        grid: tuple[int, int],
        columns: Int[Tensor, "batch hidden"] | None = None,
    ) -> Float[Tensor, "batch predicted dim"]:
        """Predict all patches, or the requested ones, from patches in raster order.

        Channels stay last in memory: patches arrive that way, norms need it, and convolutions are fastest with it.

        Args:
            patches: all positions of the grid.
            grid: (time steps, bands).
            columns: columns of the patches to predict, individual for each row; None predicts all.
        """
        times, bands = grid
        tokens = patches.reshape(len(patches), times, bands, -1)  # (B, times, bands, D)
        for number, convolution in enumerate(self.convolutions, 1):
            new = convolution(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            if number == len(self.convolutions):  # other patches are not needed from here on
                tokens, new = (tensor.flatten(1, 2) for tensor in (tokens, new))
                if columns is not None:
                    tokens, new = take_tokens(tokens, columns), take_tokens(new, columns)
            new = with_recomputation(_normalised_gelu, new)
            tokens = new + tokens if new.shape == tokens.shape else new
        predicted: Tensor = self.proj(tokens)
        return predicted


def _normalised_gelu(new: Tensor) -> Tensor:
    return gelu(layer_norm(new, new.shape[-1:], eps=NORM_EPS))


def take_tokens(
    tokens: Float[Tensor, "batch tokens dim"],
    columns: Int[Tensor, "rows n"],
    clip_indices: Int[Tensor, " rows"] | None = None,
) -> Float[Tensor, "rows n dim"]:
    """Gather selected tokens for each row, copied a whole token at a time.

    Args:
        tokens: of clips.
        columns: columns of the selected tokens, individual for each row.
        clip_indices: clip of each row, so that clips need not be repeated for their clones; None: one row per clip.
    """
    if clip_indices is None:
        clip_indices = torch.arange(len(tokens), device=tokens.device)
    rows = (clip_indices.unsqueeze(1) * tokens.shape[1] + columns).flatten()
    return tokens.flatten(0, 1).index_select(0, rows).view(*columns.shape, tokens.shape[-1])
