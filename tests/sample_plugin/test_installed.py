"""Run by `tox -e sample`, where this package is really installed by pip."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asda_core.catalog import load_catalog
from asda_core.cli import main
from asda_core.testing import check_mixer


def test_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["problems"] == []
    mine = next(plugin for plugin in listed["plugins"] if plugin["name"] == "mean")
    assert (mine["family"], mine["distribution"], mine["version"]) == ("mixer", "asda-sample-mean", "1.0")


def test_contract() -> None:
    check_mixer(load_catalog().find("mixer", "mean").spec)


def test_trains(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "noise.wav", 0.1 * np.random.default_rng(0).normal(size=32_000), 16_000)
    (tmp_path / "config.yaml").write_text(
        "encoder: {dim: 32, depth: 2, num_heads: 2, mixer: mean}\n"
        "objective: {name: latent_regression, options: {clones: 2, decoder: {dim: 32, layers: 1}}}\n"
        "data: {clip_seconds: 0.64, batch_size: 2}\nsteps: 3\n"
    )
    command = ["pretrain", str(tmp_path / "config.yaml"), "--data", str(tmp_path / "noise.wav")]
    assert main([*command, "--out", str(tmp_path / "run"), "--device", "cpu"]) == 0
    assert (tmp_path / "run" / "model.safetensors").is_file()
