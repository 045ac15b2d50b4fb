"""Attention on noise as a plan of its own, which needs no HEAR task and no heareval."""

import csv
from pathlib import Path

import pytest

from asda_core.errors import ConfigError
from asda_hear.ablation import estimate
from asda_hear.ablation.noise_metric import CONTROL_METRIC, NOISE_METRIC
from asda_hear.ablation.plan import load_plan
from asda_hear.ablation.run import run_plan
from asda_hear.cli import main
from asda_hear.reporting.report import write_report
from tests.hear.plans import change_plan, tone_plan, work_on


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    file = tone_plan(tmp_path)
    text = file.read_text().replace("tasks:\n  folder: tasks\n", "")
    file.write_text(text)
    change_plan(file, noise_attention={"audio": ["audio"], "clips": 3, "snr_db": [10, 0]})
    return file


def test_a_plan_of_noise_alone(plan: Path, tmp_path: Path) -> None:
    work = work_on(plan, tmp_path / "out")
    assert not work.tasks
    rows = run_plan(work)
    kinds = ("noise at {} dB", "same place, clean ({} dB)", "change by noise ({} dB)")
    conditions = {kind.format(ratio) for kind in kinds for ratio in (10, 0)}
    assert len(rows) == 4 * len(conditions)  # of the log-mel baseline there is nothing to measure
    assert {row["task"] for row in rows} == conditions
    assert {row["metric"] for row in rows} == {NOISE_METRIC, CONTROL_METRIC}
    assert len({row["clips"] for row in rows}) == 1
    for row in rows:
        clips = [float(value) for value in row["folds"].split()]
        assert len(clips) == 3
        assert all(0 < value < 10 or row["task"].startswith("change") for value in clips)
    noise, clean, change = ([float(value) for value in row["folds"].split()] for row in rows[:3])
    assert change == pytest.approx([n - c for n, c in zip(noise, clean, strict=True)], abs=2e-6)
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("noise-*.json")}
    assert len(files) == 4
    assert run_plan(work_on(plan, tmp_path / "out")) == rows
    assert {file: file.stat().st_mtime_ns for file in files} == files  # nothing was done again
    change_plan(plan, noise_attention={"audio": ["audio"], "clips": 2, "snr_db": [10]})
    fewer = run_plan(work_on(plan, tmp_path / "out"))
    assert len(fewer) == 4 * 3
    assert len(fewer[0]["folds"].split()) == 2


def test_the_estimate(plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["ablate", str(plan), "--out", str(out), "--dry-run"]) == 0
    assert "attention on noise: " in capsys.readouterr().out
    assert not out.exists()


def test_nothing_is_measured_to_estimate_nothing(plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is made for it either."""
    for name in ("measure_model", "pretrain"):
        monkeypatch.setattr(estimate, name, lambda *given, **more: pytest.fail("measured or trained"))
    change_plan(plan, set={"steps": 0})
    work = work_on(plan, tmp_path / "out")
    baseline, *trainings = work.units()
    assert estimate._noise_seconds(work, [baseline], tmp_path / "pilot") == 0  # log-mel has no attention
    monkeypatch.setattr(estimate, "unit_noise_rows", lambda *given: [])
    assert estimate._noise_seconds(work, trainings, tmp_path / "pilot") == 0


def test_what_it_leaves(plan: Path, tmp_path: Path) -> None:
    work = work_on(plan, tmp_path / "out")
    table = write_report(work, run_plan(work))
    out = tmp_path / "out"
    assert "noise at 10 dB" in table
    assert "1 is even attention" in table
    with (out / "scores.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4 * 6 * 3
    with (out / "noise.csv").open() as file:
        told = list(csv.DictReader(file))
    assert {row["what"] for row in told if row["mixer"] == "differential"} == {
        "map 1", "map 2", "difference, net", "difference, absolute",
    }  # fmt: skip
    assert {row["what"] for row in told if row["mixer"] == "standard"} == {"map 1"}
    assert not (out / "leaderboard.csv").exists()
    assert "noise at 10 dB" in (out / "report.html").read_text()


def test_plans_share_a_store(plan: Path, tmp_path: Path) -> None:
    """A second plan with a folder of its own finds the trainings of the first."""
    work = work_on(plan, tmp_path / "first")
    run_plan(work)
    second = work_on(plan, tmp_path / "second", store=tmp_path / "first")
    rows = run_plan(second)
    assert len(rows) == 24
    assert sorted(file.name for file in (tmp_path / "second").iterdir() if not file.name.startswith(".")) == [
        "rows.csv"
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audio": []}, "noise_attention.audio must name the clips"),
        ({"audio": ["audio"], "snr": [0]}, "unknown config key 'snr'. Did you mean 'snr_db'"),
        ({"audio": ["audio"], "snr_db": []}, "snr_db must be one or more"),
        ({"audio": ["audio"], "clips": 0}, "clips must be at least 1"),
        ({"audio": ["audio"], "noise": "nope.wav"}, r"noise_attention.noise: no file at .*nope\.wav"),
    ],
)
def test_wrong_plans(plan: Path, changes: dict[str, object], message: str) -> None:
    change_plan(plan, noise_attention=changes)
    with pytest.raises(ConfigError, match=message):
        load_plan(plan)


def test_no_axis_stands_in_a_column_of_noise(plan: Path) -> None:
    for name in ("num_clips", "mean_ratio_of_clips", "share"):
        change_plan(plan, axes={name: {"a": {}, "b": {"steps": 1}}})
        with pytest.raises(ConfigError, match=f"an axis cannot be named '{name}': the table has a column"):
            load_plan(plan)


def test_a_plan_must_ask_something(plan: Path) -> None:
    change_plan(plan, noise_attention=None)
    with pytest.raises(ConfigError, match="needs tasks, or noise_attention"):
        load_plan(plan)


def test_mixers_without_maps_are_refused_before_anything_runs(plan: Path, tmp_path: Path) -> None:
    change_plan(plan, axes={"encoder.mixer": ["standard", "mamba"]})
    with pytest.raises(ConfigError, match=r"cell encoder.mixer mamba: .*mamba.* no attention maps"):
        work_on(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.heareval
def test_tables_of_what_a_plan_no_longer_asks_go(plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    change_plan(plan, seeds=[0], axes={"encoder.mixer": ["standard", "differential"]})
    assert main(["ablate", str(plan), "--out", str(out)]) == 0
    assert (out / "noise.csv").exists()
    change_plan(plan, noise_attention=None, tasks={"folder": "tasks"})
    assert main(["ablate", str(plan), "--out", str(out), "--report"]) == 0
    assert not (out / "noise.csv").exists()


def test_clips_are_known_by_what_they_hold(plan: Path) -> None:
    noise = load_plan(plan).noise
    assert noise is not None
    same = load_plan(plan).noise
    assert same is not None
    assert same.file_name == noise.file_name
    content = bytearray(noise.files[0].read_bytes())
    content[-2] ^= 1
    noise.files[0].write_bytes(content)
    other = load_plan(plan).noise
    assert other is not None
    assert other.file_name != noise.file_name
