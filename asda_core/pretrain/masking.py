"""Inverse block masking: keep blocks of patches, hide the rest. Pure functions.

Several blocks are kept around random centres, then single cells are kept or hidden at random until exactly the
requested number is kept::

    . . . # # # # # . . . .      # kept (seen by the student), . hidden (predicted)
    . . . # # # # # . . # .      frequency upwards, time to the right
    . . . # # # # # . . . .

**Source**: released mask sampler (`inverse_mask`, `require_same_masks`), data2vec 2.0.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from asda_core.errors import ConfigError


@dataclass(frozen=True)
class MaskConfig:
    """Amount and shape of what is hidden.

    Attributes:
        hidden_share: fraction of the patches that the student does not see, in (0, 1).
        block: side length of a kept block, in patches.
        adjust: added to the kept fraction when the number of blocks is computed, since blocks overlap.
    """

    hidden_share: float = 0.8
    block: int = 5
    adjust: float = 0.07

    def __post_init__(self) -> None:
        if not 0 < self.hidden_share < 1:
            raise ConfigError(f"objective.options.mask.hidden_share must lie between 0 and 1, not {self.hidden_share}.")
        if self.block < 1:
            raise ConfigError(f"objective.options.mask.block must be at least 1, not {self.block}.")
        if not 0 <= 1 - self.hidden_share + self.adjust <= 1:
            raise ConfigError(
                f"objective.options.mask.adjust {self.adjust} moves the kept share {1 - self.hidden_share:g} "
                "outside 0..1."
            )


def num_kept(num_patches: int, config: MaskConfig) -> int:
    """Number of patches of a clip that the student sees: 102 of 512 in the published setting, at least one."""
    return max(1, int(num_patches * (1 - config.hidden_share)))


def num_blocks(num_patches: int, config: MaskConfig) -> int:
    """Number of blocks drawn: 5 for 512 patches; 0 for 92 or fewer, where masks are purely random."""
    return int(num_patches * (1 - config.hidden_share + config.adjust) / config.block**2)


def block_masks(
    grid: tuple[int, int], num_masks: int, config: MaskConfig, generator: torch.Generator
) -> Bool[Tensor, "masks patches"]:
    """Draw random block masks.

    Args:
        grid: (time steps, bands).
        num_masks: number of masks, one per clip and clone.
        config: hidden fraction and block shape.
        generator: a CPU generator; the only source of randomness.

    Returns:
        True where a patch is hidden, in raster order; every row hides the same number.
    """
    times, bands = grid
    num_patches = times * bands
    centres = torch.randint(num_patches, (num_masks, num_blocks(num_patches, config)), generator=generator)
    cells = torch.arange(num_patches)
    start = config.block // 2

    def inside(cell: Tensor, centre: Tensor) -> Tensor:
        distance = cell - (centre.unsqueeze(-1) - start)
        return (distance >= 0) & (distance < config.block)

    near = inside(cells // bands, centres // bands) & inside(cells % bands, centres % bands)  # (M, blocks, L)
    in_block = near.any(dim=1)
    # Cells of blocks come first, each group in random order: taking the first K trims or fills uniformly.
    rank = in_block.float() + torch.rand(num_masks, num_patches, generator=generator)
    kept = rank.topk(num_kept(num_patches, config), dim=1).indices
    return torch.ones(num_masks, num_patches, dtype=torch.bool).scatter_(1, kept, False)


def split_columns(
    hidden: Bool[Tensor, "masks patches"],
) -> tuple[Int[Tensor, "masks kept"], Int[Tensor, "masks hidden"]]:
    """Return the columns of kept and hidden patches, both in raster order; every row must hide equally many."""
    order = hidden.to(torch.uint8).argsort(dim=1, stable=True)
    kept = hidden.shape[1] - int(hidden[0].sum())
    return order[:, :kept], order[:, kept:]
