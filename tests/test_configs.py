"""Every config that comes with the package, and how many there are."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from asda_core.assemble import build_encoder, plugin_origins, with_all_options
from asda_core.catalog import Catalog
from asda_core.config import PluginChoice, RunConfig
from asda_core.config_io import load_run_config, parse
from asda_core.pretrain.latent_regression import LatentRegressionConfig
from asda_core.pretrain.loop import pretrain
from asda_core.settings.strict_yaml import read_yaml
from asda_hear.ablation.plan import load_plan
from asda_hear.ablation.run import check_plan

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
PLANS = sorted((Path(__file__).parents[1] / "configs" / "ablations").glob("*.yaml"))
PARAMETERS = {
    "asda_base": 92_364_288,
    "eat_base": 85_254_144,
    "eat_large": 302_575_616,
    "asda_small": 1_979_520,
    "asda_tiny": 893_696,
    "mfcc_gram": 9_524_224,
    "ssast_base": 85_648_128,
    "ssamba_tiny": 6_921_984,
}


def test_how_many() -> None:
    assert sorted(file.stem for file in CONFIGS) == sorted(PARAMETERS)
    assert {file.stem for file in PLANS} == {
        "adapters", "class_token", "class_token_scan", "frame_weight", "lambda", "lambda_placement",
        "lambda_token_weight", "masking", "mixers", "noise_attention", "objectives", "real_audio",
    }  # fmt: skip


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_config(file: Path, catalog: Catalog) -> None:
    config = load_run_config(file)
    assert set(plugin_origins(catalog, config)) == {"front end", "mixer", "objective"}
    with_all_options(catalog, config)  # all options are right
    with torch.device("meta"):
        encoder = build_encoder(catalog, config.encoder)
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    assert parameters == PARAMETERS[file.stem]
    header = file.read_text(encoding="utf-8").split("\n\n")[0]
    assert f"{parameters:,}" in header
    assert f"asda pretrain configs/{file.name}" in header


def test_published_settings() -> None:
    asda, eat = (load_run_config(file) for file in CONFIGS if file.stem in ("asda_base", "eat_base"))
    assert asda == RunConfig()
    assert (asda.steps, asda.optimizer.warmup_steps, asda.encoder.mlp_ratio) == (800_000, 106_666, 3.5)
    assert (eat.steps, eat.optimizer.warmup_steps, eat.encoder.mlp_ratio) == (400_000, 53_333, 4.0)
    assert eat.encoder.mixer == PluginChoice("standard")
    assert parse(LatentRegressionConfig, eat.objective.options).utterance_weight == 1.0
    published = LatentRegressionConfig()
    assert (published.clones, published.utterance_weight, published.utterance_rows) == (16, 0.5, 12 * 16)
    assert (published.mask.hidden_share, published.mask.block, published.mask.adjust) == (0.8, 5, 0.07)


@pytest.mark.parametrize("file", PLANS, ids=lambda file: file.stem)
def test_plan(file: Path, catalog: Catalog, audio_folder: Path, tmp_path: Path) -> None:
    """Every cell of every plan can be built; audio, and what adapters begin with, stand in for what is not here."""
    assert f"asda-hear ablate configs/ablations/{file.name}" in file.read_text(encoding="utf-8")
    plain = read_yaml(file)
    assert (file.parent / plain["base"]).is_file()
    plain |= {"base": str(file.parent / plain["base"]), "data": [str(audio_folder)]}
    if "init" in plain:
        first = replace(load_run_config(file.parent / "../asda_tiny.yaml"), steps=0)
        plain["init"] = str(
            pretrain(first, sorted(audio_folder.iterdir()), tmp_path / "first", catalog, progress=False)
        )
    if "noise_attention" in plain:
        plain["noise_attention"]["audio"] = [str(audio_folder)]
    (tmp_path / file.name).write_text(yaml.safe_dump(plain))
    check_plan(load_plan(tmp_path / file.name), catalog)


@pytest.mark.parametrize(
    ("name", "dim", "heads", "millions"),
    [
        ("ssast_base", 192, 3, 5.49),
        ("ssast_base", 384, 6, 21.59),
        ("ssast_base", 768, 12, 85.65),
        ("ssamba_tiny", 192, 3, 6.92),
        ("ssamba_tiny", 384, 3, 25.35),
        ("ssamba_tiny", 768, 3, 96.70),
    ],
)
def test_published_sizes(name: str, dim: int, heads: int, millions: float, catalog: Catalog) -> None:
    """Tiny, small and base of SSAST and SSAMBA have the published numbers of parameters."""
    config = replace(load_run_config(name).encoder, dim=dim, num_heads=heads)
    with torch.device("meta"):
        encoder = build_encoder(catalog, config)
    assert sum(parameter.numel() for parameter in encoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)
