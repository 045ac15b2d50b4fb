"""Operations of the published models, and that counting changes nothing."""

import pytest
import torch

from asda_core.assemble import build_encoder, build_front_end
from asda_core.catalog import Catalog
from asda_core.cli import main
from asda_core.config import RunConfig
from asda_core.config_io import load_run_config
from asda_core.inference.framing import num_frames
from asda_core.model.flops import GIGA, encoder_flops
from asda_hear.ablation.size import model_size

PUBLISHED = {
    ("asda_base", 1024): 109.16,
    ("asda_base", 512): 51.05,
    ("asda_base", 128): 12.22,
    ("eat_base", 1024): 97.05,
    ("eat_base", 512): 46.19,
    ("eat_base", 128): 11.22,
}
"""(config, frames) -> GFLOPs. **Source**: counted on the released code."""


@pytest.mark.parametrize(("name", "frames"), PUBLISHED)
def test_operations(name: str, frames: int, catalog: Catalog) -> None:
    with torch.device("meta"):
        encoder = build_encoder(catalog, load_run_config(name).encoder)
    assert round(encoder_flops(encoder, 128, frames) / 1e9, 2) == PUBLISHED[name, frames]
    if name == "asda_base":
        assert not any(block.mixer.by_formula for block in encoder.blocks)


@pytest.mark.parametrize(("name", "text"), [("asda_base", "109.16"), ("eat_base", "97.05"), ("eat_large", "335.98")])
def test_show(name: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", name]) == 0
    assert f"{text} GFLOPs per clip of 10.255 s (1,024 frames)" in capsys.readouterr().out


def test_the_size_of_a_cell_is_not_rounded(tiny: RunConfig, catalog: Catalog) -> None:
    """A small encoder takes some thousandths of a GFLOP, of which tables show three digits."""
    front_end = build_front_end(catalog, tiny.front_end)
    frames = num_frames(round(tiny.data.clip_seconds * front_end.sample_rate), front_end)
    operations = encoder_flops(build_encoder(catalog, tiny.encoder), int(front_end.num_bins), frames)
    assert operations < GIGA / 100
    assert model_size(catalog, tiny)["gflops"] * GIGA == pytest.approx(operations, rel=1e-9)
