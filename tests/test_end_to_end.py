"""A plan from end to end through heareval, with a stranger's mixer, a failing cell and a stop in the middle."""

import csv
import sys
from pathlib import Path

import pytest

from asda_core.catalog import Catalog, load_catalog
from asda_core.errors import AsdaError
from asda_hear.ablation import cells as cells_module
from asda_hear.ablation.run import CellsFailed, run_plan
from asda_hear.reporting.report import write_report
from tests.conftest import BUILT_IN
from tests.hear.plans import change_plan, tone_plan, work_on

pytestmark = pytest.mark.heareval


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Catalog:
    monkeypatch.syspath_prepend(Path(__file__).parent / "sample_plugin")
    import asda_sample_mean

    sys.modules.pop("asda_sample_mean")
    return load_catalog(*BUILT_IN, asda_sample_mean, installed=False)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return tone_plan(
        tmp_path, axes={"mixer": {"standard": {"encoder.mixer": "standard"}, "mean": {"encoder.mixer": "mean"}}}
    )


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
        run_plan(work_on(plan, tmp_path / "out", plugins))
    rows = run_plan(work_on(plan, tmp_path / "out", plugins))
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
    table = write_report(work_on(plan, tmp_path / "out", plugins), rows)
    assert table.count("\n| ") == 5  # head, rule, two mixers, baseline


def test_one_cell_that_fails(plan: Path, plugins: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asda_hear.api.installed_catalog", lambda: plugins)
    wild = {"optimizer": {"peak_lr": 1e30, "warmup_steps": 0}, "steps": 9}
    change_plan(plan, axes={"rate": {"wild": wild, "good": {}}}, seeds=[0])
    with pytest.raises(
        CellsFailed, match=r"1 of 3 trainings and baselines failed.*rate wild.*no longer finite"
    ) as failure:
        run_plan(work_on(plan, tmp_path / "out", plugins))
    assert "| good |" in write_report(work_on(plan, tmp_path / "out", plugins), failure.value.results)
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
    change_plan(plan, **changes)
    with pytest.raises(AsdaError, match=message):
        work_on(plan, tmp_path / "out", plugins)
    assert not (tmp_path / "out").exists()
