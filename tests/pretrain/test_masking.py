"""Masks: exact counts, blocks, determinism."""

import pytest
import torch

from asda_core.errors import ConfigError
from asda_core.pretrain.masking import MaskConfig, block_masks, num_blocks, num_kept, split_columns


@pytest.mark.parametrize(
    ("patches", "kept", "blocks"), [(512, 102, 5), (256, 51, 2), (128, 25, 1), (92, 18, 0), (64, 12, 0), (1, 1, 0)]
)
def test_published_counts(patches: int, kept: int, blocks: int) -> None:
    assert num_kept(patches, MaskConfig()) == kept
    assert num_blocks(patches, MaskConfig()) == blocks


@pytest.mark.parametrize("grid", [(64, 8), (7, 8), (1, 1), (3, 2), (63, 1)])
@pytest.mark.parametrize("block", [1, 4, 5])
def test_every_mask_keeps_as_many(grid: tuple[int, int], block: int, generator: torch.Generator) -> None:
    config = MaskConfig(block=block)
    hidden = block_masks(grid, 9, config, generator)
    patches = grid[0] * grid[1]
    assert hidden.shape == (9, patches)
    assert (hidden.sum(1) == patches - num_kept(patches, config)).all()


def test_kept_patches_come_in_blocks(generator: torch.Generator) -> None:
    """Neighbours are kept together far more often than chance (0.2) would have it."""
    kept = ~block_masks((64, 8), 500, MaskConfig(), generator).view(-1, 64, 8)
    together = (kept[:, 1:] & kept[:, :-1]).sum() / kept[:, :-1].sum()
    assert together > 0.6


def test_same_seed_same_masks() -> None:
    draws = [block_masks((16, 8), 4, MaskConfig(), torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*draws)


def test_split_columns(generator: torch.Generator) -> None:
    hidden = block_masks((16, 8), 4, MaskConfig(), generator)
    kept, gone = split_columns(hidden)
    assert not hidden.gather(1, kept).any()
    assert hidden.gather(1, gone).all()
    assert (kept.diff(dim=1) > 0).all()
    assert torch.cat([kept, gone], 1).sort().values.equal(torch.arange(128).expand(4, -1))


@pytest.mark.parametrize("options", [{"hidden_share": 1.0}, {"hidden_share": 0.0}, {"block": 0}])
def test_wrong_settings(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        MaskConfig(**options)  # type: ignore[arg-type]
