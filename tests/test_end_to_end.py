"""A plan from end to end through heareval, with a stranger's mixer, a failing cell and a stop in the middle."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from asda_core.catalog import Catalog, load_catalog
from asda_core.errors import AsdaError
from asda_hear.ablation import cells as cells_module
from asda_hear.ablation.plan import load_plan
from asda_hear.ablation.report import write_report
from asda_hear.ablation.run import CellsFailed, prepare, run_plan
from asda_hear.evaluate.labels import assign_splits, clips_from_folders
from asda_hear.evaluate.tasks import TaskConfig, build_task
from tests.conftest import BUILT_IN, TINY

pytestmark = pytest.mark.heareval


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Catalog:
    monkeypatch.syspath_prepend(Path(__file__).parent / "sample_plugin")
    import asda_sample_mean

    sys.modules.pop("asda_sample_mean")
    return load_catalog(*BUILT_IN, asda_sample_mean, installed=False)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for label, hertz in (("low", 200), ("high", 2000)):
        for number in range(9):
            tone = np.sin(2 * np.pi * hertz * generator.uniform(0.8, 1.2) * np.arange(8_000) / 16_000)
            file = tmp_path / "audio" / label / f"{label}{number}.wav"
            file.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(file, 0.3 * tone + 0.01 * generator.normal(size=8_000), 16_000)
    grid = {"max_epochs": [9], "hidden_dim": [16], "lr": [0.01]}
    config = TaskConfig("tones", clip_seconds=0.5, evaluation_params={"task_specific_param_grid": grid})
    build_task(config, assign_splits(clips_from_folders(tmp_path / "audio"), {}, 3), tmp_path / "tasks", progress=False)
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({**TINY, "steps": 2}))
    file = tmp_path / "plan.yaml"
    axes = {"mixer": {"standard": {"encoder.mixer": "standard"}, "mean": {"encoder.mixer": "mean"}}}
    file.write_text(
        yaml.safe_dump(
            {
                "base": "base.yaml",
                "data": ["audio"],
                "tasks": {"folder": "tasks"},
                "axes": axes,
                "seeds": [0, 1],
                "baselines": {"log-mel": "log_mel"},
                "evaluation": {"grid": "faster", "grid_points": 1},
            },
            sort_keys=False,
        )
    )
    return file


def test_plan_with_a_strangers_mixer(
    plan: Path, plugins: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asda_hear.api.installed_catalog", lambda: plugins)  # heareval calls load_model itself
    calls: list[str] = []
    pretrain = cells_module.pretrain

    def stopped(config: object, files: object, folder: Path, *rest: object) -> Path:
        calls.append(folder.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return pretrain(config, files, folder, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(cells_module, "pretrain", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_plan(load_plan(plan), tmp_path / "out", progress=False, catalog=plugins)
    rows = run_plan(load_plan(plan), tmp_path / "out", progress=False, catalog=plugins)
    assert calls[2] == calls[3]
    assert len(calls) == 5  # two, the stopped one, it again, and the fourth
    with (tmp_path / "out" / "rows.csv").open() as file:
        written = list(csv.DictReader(file))
    assert len(written) == len(rows) == 5
    assert [(row["model"], row["mixer"], row["seed"]) for row in written] == [
        ("log-mel", "", ""), ("", "standard", "0"), ("", "standard", "1"), ("", "mean", "0"), ("", "mean", "1"),
    ]  # fmt: skip
    assert all(0 <= float(row["score"]) <= 1 for row in written)
    assert "mean=(given)-0" in written[-1]["plugins"]
    table = write_report(load_plan(plan), rows, tmp_path / "out")
    assert table.count("\n| ") == 4  # head, baseline, two mixers


def test_one_cell_that_fails(plan: Path, plugins: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asda_hear.api.installed_catalog", lambda: plugins)
    text = yaml.safe_load(plan.read_text())
    text["axes"] = {"rate": {"wild": {"optimizer": {"peak_lr": 1e30, "warmup_steps": 0}, "steps": 9}, "good": {}}}
    text["seeds"] = [0]
    plan.write_text(yaml.safe_dump(text))
    with pytest.raises(CellsFailed, match=r"1 of 3 trainings and baselines failed.*rate wild.*no longer finite") as failure:
        run_plan(load_plan(plan), tmp_path / "out", progress=False, catalog=plugins)
    assert "| good |" in write_report(load_plan(plan), failure.value.rows, tmp_path / "out")
    assert len((tmp_path / "out" / "rows.csv").read_text().splitlines()) == 1 + 2
    assert len(list((tmp_path / "out").rglob("error.txt"))) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axes": {"groups": {"bad": {"objective.options.decoder.groups": 5}}}}, "cell groups bad.*not a multiple of"),
        ({"axes": {"encoder.mixer.options.lamda": [0.1]}}, "cell encoder.mixer.options.lamda 0.1.*unknown config key"),
        ({"options": {"scene_poolin": "mean"}}, "Did you mean 'scene_pooling'"),
    ],
)
def test_mistakes_show_before_anything_runs(
    plan: Path, plugins: Catalog, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    plan.write_text(yaml.safe_dump({**yaml.safe_load(plan.read_text()), **changes}))
    with pytest.raises(AsdaError, match=message):
        prepare(load_plan(plan), tmp_path / "out", catalog=plugins)
    assert not (tmp_path / "out").exists()
