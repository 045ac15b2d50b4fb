"""Features -> patch tokens with fixed or learned positions.

A spectrogram of T frames and F bins is cut into a grid of patches, (T // 16) x (F // 16) in the published setting::

      bins  +----+----+----+--       each patch -> one token of width D
            | 1  | 3  | 5  |         frames beyond a multiple of 16 are dropped
            | 0  | 2  | 4  |         raster order: time is the slow index, band the fast one
            +----+----+----+--
              frames ->
"""

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate

from asda_core.config import EncoderConfig, PositionConfig
from asda_core.devices import to_device
from asda_core.errors import ConfigError
from asda_core.layout import TokenLayout
from asda_core.model.block import INIT_STD

POSITION_WAVELENGTH = 10_000.0
"""Base of the geometric series of wavelengths. **Source**: Vaswani et al. 2017, section 3.5."""


class PatchEmbedding(nn.Module):
    """Linear projection of each patch plus a position embedding: fixed 2-D sine-cosine, or a learned table.

    **Source**: released code, local encoder (a convolution whose stride is its size) and fixed position table.
    **Differs**: positions are computed for the grid of the input, so its length is not limited; the released table ends
    after 768 time steps. A learned table is SSAST's, adapted to other grids by `adapt_positions` at every call, not
    once before fine-tuning.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        size = (config.patch_frames, config.patch_bins)
        self.dim = config.dim
        self.position_config = config.positions
        self.projection = nn.Conv2d(1, config.dim, kernel_size=size, stride=(config.step_frames, config.step_bins))
        nn.init.xavier_uniform_(self.projection.weight.view(config.dim, -1))
        self.table: nn.Parameter | None = None
        if config.positions.type == "learned":
            times, bands = config.positions.grid
            self.table = nn.Parameter(torch.empty(1, times * bands, config.dim))
            nn.init.trunc_normal_(self.table, std=INIT_STD)

    def no_weight_decay(self) -> list[str]:
        """The learned positions; see `no_decay_ids`."""
        return ["table"]

    def forward(
        self, features: Float[Tensor, "batch bins frames"]
    ) -> tuple[Float[Tensor, "batch patches dim"], TokenLayout]:
        """Cut into patches, project, add positions.

        Raises:
            ConfigError: there are fewer frames or bins than in one patch.
        """
        frames, bins = self.projection.kernel_size
        if features.shape[2] < frames or features.shape[1] < bins:
            raise ConfigError(
                f"features of {features.shape[1]} bins and {features.shape[2]} frames hold no patch of "
                f"{bins} bins and {frames} frames."
            )
        maps = self.projection(features.transpose(1, 2).unsqueeze(1))  # (B, D, T/16, F/16)
        grid = (maps.shape[2], maps.shape[3])
        patches = maps.flatten(2).transpose(1, 2)  # (B, N, D)
        return patches + self.positions(grid).to(patches), TokenLayout.full(len(features), grid, features.device)

    def positions(self, grid: tuple[int, int]) -> Float[Tensor, "patches dim"]:
        """Position embeddings for a grid of (time steps, bands), in raster order, on the model's device."""
        if self.table is None:
            return to_device(sine_cosine_positions(grid, self.dim), self.projection.weight.device)
        return adapt_positions(self.table, self.position_config, grid)[0]


def patch_values(
    features: Shaped[Tensor, "batch bins frames"], config: EncoderConfig
) -> Shaped[Tensor, "batch patches values"]:
    """Return the features of each patch, in raster order; within a patch, bin by bin, each bin along its frames."""
    bands = features.unfold(1, config.patch_bins, config.step_bins)  # (B, bands, T, bins)
    patches = bands.unfold(2, config.patch_frames, config.step_frames)  # (B, bands, times, bins, frames)
    return patches.transpose(1, 2).flatten(3).flatten(1, 2)


def adapt_positions(
    table: Float[Tensor, "one stored dim"], config: PositionConfig, grid: tuple[int, int]
) -> Float[Tensor, "one patches dim"]:
    """Adapt a learned table to another grid: crop the middle of a longer axis, interpolate a shorter one linearly.

    Args:
        table: in raster order.
        config: the grid of the table, and the number of bands used in between when interpolating to more time steps.
        grid: requested (time steps, bands).

    **Source**: SSAST, released code (`through_bands` 8).
    **Differs**: where the table has too many bands, the release crops them to the number of time steps.
    """
    times, bands = config.grid
    if grid == tuple(config.grid) and not config.adapt_own_grid:
        return table
    maps = table.reshape(1, times, bands, -1).permute(0, 3, 1, 2)  # (1, D, T', bands)
    if grid[0] < times:
        maps = maps[:, :, times // 2 - grid[0] // 2 :][:, :, : grid[0]]
    else:
        maps = _interpolated(maps, (grid[0], config.through_bands or bands))
    first = bands // 2 - grid[1] // 2
    cuts = grid[1] < bands and first + grid[1] <= maps.shape[3]  # 'through_bands' may have left fewer
    maps = maps[..., first : first + grid[1]] if cuts else _interpolated(maps, grid)
    adapted: Tensor = maps.flatten(2).transpose(1, 2)
    return adapted


def _interpolated(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return maps if maps.shape[2:] == size else interpolate(maps, size, mode="bilinear", align_corners=False)


def sine_cosine_positions(grid: tuple[int, int], dim: int) -> Float[Tensor, "patches dim"]:
    """Fixed position embeddings of a grid in raster order, on the CPU.

    The first half of the channels encodes the band, the second the time step; each half is
    `[sin(p w_0) .. sin(p w_k), cos(p w_0) .. cos(p w_k)]` with `w_i = 10000 ** (-i / (dim / 4))`.

    Args:
        grid: (time steps, bands).
        dim: width, a multiple of 4.

    **Source**: MAE's 2-D sine-cosine table as the released code uses it (band first, though time is the slow index).
    """
    values = _sine_cosine_values.__wrapped__ if torch.compiler.is_compiling() else _sine_cosine_values
    return torch.from_numpy(values(grid, dim)).clone()


@lru_cache(maxsize=64)
def _sine_cosine_values(grid: tuple[int, int], dim: int) -> NDArray[np.float32]:
    """The values in NumPy, since a cached tensor would keep the mode and device in which it was made."""
    num_times, num_bands = grid
    frequencies = POSITION_WAVELENGTH ** (-np.arange(dim // 4, dtype=np.float64) / (dim // 4))
    angles = [np.arange(places, dtype=np.float64)[:, None] * frequencies for places in (num_bands, num_times)]
    bands, times = [np.concatenate([np.sin(each), np.cos(each)], axis=1).astype(np.float32) for each in angles]
    return np.concatenate([np.tile(bands, (num_times, 1)), np.repeat(times, num_bands, axis=0)], axis=1)
