"""The benchmarks' naive twin of the pre-training step has our loss and our gradients."""

import re
import subprocess
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


def test_what_is_measured_on_a_gpu_runs_without_one() -> None:
    """The same script with small sizes: results are compared, and every part prints its lines."""
    small = ["encoder.depth=1", "encoder.dim=64", "encoder.num_heads=4", "data.clip_seconds=1"]
    small += ["objective.options={clones: 2, decoder: {dim: 64, layers: 1, groups: 4}}"]
    sizes = ["--clips", "1", "2", "--tokens", "16", "--size", "64", "--rounds", "1", "--profile", "3"]
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--device", "cpu", *sizes, "--set", *small]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert len(re.findall(r"^ +1 x 16 +(?:forward|training) .* x the formula", printed, re.MULTILINE)) == 2
    assert len(re.findall(r"^ +(?:twin|ours) .* clips/s .* of the products' rate", printed, re.MULTILINE)) == 4
    assert "Self CPU time total" in printed
