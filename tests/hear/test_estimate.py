"""`ablate --dry-run` on plans with nothing to train, and the commands that a page shows."""

import json
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from asda_core.catalog import Catalog
from asda_hear.ablation import estimate
from asda_hear.ablation.cells import remaining_tasks
from asda_hear.ablation.estimate import estimate_remaining
from asda_hear.ablation.run import run_plan
from asda_hear.cli import main
from asda_hear.reporting.report import cells_command
from tests.hear.plans import MIXERS, change_plan, tone_plan, work_on

pytestmark = pytest.mark.heareval


def test_a_plan_that_needs_no_audio(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step is left, so none is measured; evaluations are, of an untrained model."""
    plan = tone_plan(tmp_path, set={"steps": 0}, data=[], seeds=[0])
    assert main(["ablate", str(plan), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "2 different trainings, 2 to do" in printed
    assert "\ntraining: 0 s\n" in printed
    assert "not measured" not in printed
    monkeypatch.setattr(estimate, "PILOT_CLIPS", -1)
    assert main(["ablate", str(plan), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "\ntraining: 0 s\nevaluation: not measured yet" in capsys.readouterr().out


def test_cells_of_no_steps_stand_for_no_kind(tmp_path: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """They differ in `steps` alone from those that are trained, whose name a measured step bears."""
    monkeypatch.setattr(estimate, "PILOT_CLIPS", -1)
    plan = tone_plan(tmp_path, axes={"steps": [0, 2]}, seeds=[0])
    work = work_on(plan, tmp_path / "out", catalog)
    found = estimate_remaining(work, work.units())
    assert list(found.step_seconds) == ["steps 2"]
    assert found.training == 2 * found.step_seconds["steps 2"]


def test_commands_say_the_seed_of_the_search(tmp_path: Path, catalog: Catalog) -> None:
    for seed, said in ((42, []), (7, ["--seed", "7"])):
        plan = tone_plan(tmp_path / str(seed), evaluation={"grid": "faster", "grid_points": 1, "seed": seed})
        work = work_on(plan, tmp_path / "out", catalog)
        words = shlex.split(cells_command(work, work.plan.cells[:1]))
        assert words[-2:] == (said or ["--threads", "1"])


def test_only_what_is_missing_is_estimated(tmp_path: Path, catalog: Catalog) -> None:
    """A task, or a way to hear, that is added to a finished plan does not count the others again."""
    plan = tone_plan(tmp_path, seeds=[0], set={"steps": 1})
    work = work_on(plan, tmp_path / "out", catalog)
    run_plan(work)
    assert [remaining_tasks(work, unit) for unit in work.units()] == [[]] * 3
    (task,) = work.tasks
    shutil.copytree(task, task.with_name("more-v1.0.0-full"))
    metadata = json.loads((task / "task_metadata.json").read_text())
    (task.with_name("more-v1.0.0-full") / "task_metadata.json").write_text(
        json.dumps({**metadata, "task_name": "more"})
    )
    change_plan(plan, axes={"mixer": MIXERS, "options.scene_pooling": ["mean", "summary"]})
    work = work_on(plan, tmp_path / "out", catalog)
    more, old = "more-v1.0.0-full", task.name
    left = [remaining_tasks(work, unit) for unit in work.units()]
    assert sorted(left, key=len) == [[more], [more, *sorted([more, old])], [more, *sorted([more, old])]]
    scored = estimate._scored_seconds(work)[old]
    found = estimate_remaining(work, [unit for unit in work.units() if remaining_tasks(work, unit)])
    assert found.training == 0
    assert found.evaluation is not None
    assert found.evaluation > 2 * scored


def test_a_first_step_that_took_longest_does_not_make_steps_free(
    tmp_path: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first training of a process also pays for what is made once."""
    clock = iter([0.0, 5.0, 5.0, 8.0])
    monkeypatch.setattr(estimate, "pretrain", lambda *_: None)
    monkeypatch.setattr(estimate, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    work = work_on(tone_plan(tmp_path), tmp_path / "out", catalog)
    seconds = estimate._step_seconds(work, work.plan.cells[0], tmp_path)
    assert seconds == pytest.approx(3.0 / (1 + estimate.MEASURED_STEPS))
