"""Operations of the published models, and that counting changes nothing."""

import pytest
import torch

from asda_core.assemble import build_encoder
from asda_core.catalog import Catalog
from asda_core.cli import main
from asda_core.config_io import load_run_config
from asda_core.model.flops import encoder_flops

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
