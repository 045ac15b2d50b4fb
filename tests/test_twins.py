"""The benchmarks' naive twin of the pre-training step has our loss and our gradients."""

import sys
from pathlib import Path

import pytest
import torch

from asda_core.assemble import build_parts
from asda_core.catalog import Catalog
from asda_core.config import RunConfig
from asda_core.pretrain.masking import block_masks

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_the_step_is_that_of_the_twin(catalog: Catalog, tiny: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from twins import set_by_formula, step_loss

    parts = build_parts(catalog, tiny)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 128, 96, generator=generator)
    settings, grid = parts.objective.config, tiny.encoder.grid(128, 96)
    rows = 2 * settings.clones
    hidden = block_masks(grid, rows, settings.mask, generator)
    noise = torch.randn(rows, grid[0] * grid[1], tiny.encoder.dim, generator=generator)
    trained = [p for part in (parts.encoder, parts.objective) for p in part.parameters() if p.requires_grad]
    ours = parts.objective.loss_for(parts.encoder, features, hidden, noise).total
    mine = torch.autograd.grad(ours, trained, allow_unused=True)
    set_by_formula(parts.encoder, True)
    set_by_formula(parts.objective.teacher.encoder, True)
    twin = step_loss(parts.objective, parts.encoder, features, hidden, noise)
    theirs = torch.autograd.grad(twin, trained, allow_unused=True)
    torch.testing.assert_close(ours, twin, rtol=1e-5, atol=0.0)
    largest = max(float(each.abs().max()) for each in theirs if each is not None)
    for one, other in zip(mine, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert (one - other).abs().max() < 1e-5 * largest
    sys.modules.pop("twins")
