"""Many processes on one store: no cell is done twice, a killed one's cell is taken up again, Slurm's door works."""

import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout

from asda_core.errors import AsdaError, ConfigError
from asda_core.system.command_line import EXIT_STOPPED
from asda_core.system.workers import Shard, WorkerResults
from asda_hear.ablation import cells, jobs
from asda_hear.ablation.cells import ERROR_FILE, is_done
from asda_hear.ablation.jobs import run_jobs, submit_jobs
from asda_hear.ablation.run import CLAIM_FILE, CellsFailed, run_plan
from asda_hear.cli import main
from asda_hear.evaluate.runner import evaluate
from asda_hear.reporting.report import plan_command, write_report
from tests.hear.plans import change_plan, tone_plan, work_on
from tests.waiting import WAIT_SECONDS, wait_until

pytestmark = pytest.mark.heareval


def begin(plan: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "asda_hear.cli", "ablate", str(plan), "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def times_begun(out: Path) -> dict[str, int]:
    """Cell -> how often its training was begun: TensorBoard opens a file each time."""
    return {folder.name: len(list(folder.glob("tensorboard/events*"))) for folder in (out / "cells").iterdir()}


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "rows.csv").open() as file:
        return list(csv.DictReader(file))


def test_two_processes_race(tmp_path: Path) -> None:
    """Both are given the same plan at once; both end with the whole table."""
    plan, out = tone_plan(tmp_path), tmp_path / "out"
    both = [begin(plan, out) for _ in range(2)]
    printed = [process.communicate(timeout=WAIT_SECONDS)[0].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert sorted(times_begun(out).values()) == [1, 1, 1, 1]
    assert len(rows_of(out)) == 1 + 4
    assert all(text.count("| differential |") == 1 for text in printed)
    logs = list(out.glob("*/*/hear-*/heareval.log"))
    assert len(logs) == 5
    done = [json.loads((log.parent / "tones-v1.0.0-full" / "seconds.json").read_text()) for log in logs]
    assert all(seconds["embedding"] > 0 and seconds["prediction"] > 0 for seconds in done)


def test_a_killed_process_loses_its_cell_to_another(tmp_path: Path) -> None:
    plan, out = tone_plan(tmp_path, set={"steps": 60, "checkpoint_every": 5, "log_every": 1}), tmp_path / "out"
    first = begin(plan, out)
    wait_until(lambda: list((tmp_path / "out").glob("cells/*/step-*")), "a saved step")
    first.kill()
    first.communicate()
    (killed,) = (folder.name for folder in (out / "cells").iterdir() if (folder / "log.jsonl").exists())
    assert not (out / "cells" / killed / "model.safetensors").exists()
    rows = run_plan(work_on(plan, out))
    assert len(rows) == 1 + 4
    begun = times_begun(out)
    assert begun.pop(killed) == 2
    assert set(begun.values()) == {1}
    steps = [json.loads(line)["step"] for line in (out / "cells" / killed / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 61))  # gone on with, none twice


def test_what_another_process_holds_is_waited_for(tmp_path: Path) -> None:
    """A unit that is held is left alone until it is free, and everything else is done meanwhile."""
    plan, out = tone_plan(tmp_path, seeds=[0], baselines={}), tmp_path / "out"
    work = work_on(plan, out)
    held, free = work.units()
    held.folder.mkdir(parents=True)
    hold = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); "
    hold += "print(1, flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(held.folder / CLAIM_FILE)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"1\n"
    process = begin(plan, out)
    wait_until(lambda: is_done(work, free), "the other cell")
    time.sleep(1.5)
    assert process.poll() is None
    assert not (held.folder / "config.yaml").exists()
    other.kill()
    other.communicate()
    process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 0
    assert is_done(work, held)


def test_jobs_and_a_failing_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wild = {"optimizer": {"peak_lr": 1e30, "warmup_steps": 0}, "steps": 9}
    plan, out = tone_plan(tmp_path, axes={"rate": {"wild": wild, "good": {}}}, seeds=[0]), tmp_path / "out"
    with pytest.raises(
        CellsFailed, match=r"1 trainings and baselines failed: .*rate wild.*no longer finite"
    ) as failure:
        run_jobs(work_on(plan, out), 2, Shard())
    assert len(failure.value.results) == 2
    assert len(list(out.rglob(ERROR_FILE))) == 1
    assert main(["ablate", str(plan), "--out", str(out), "--report"]) == 0
    page = (out / "report.html").read_text()
    assert "no longer finite" in page
    assert "Traceback" in page


def test_shards_share_nothing_and_cover_all(tmp_path: Path) -> None:
    work = work_on(tone_plan(tmp_path), tmp_path / "out")
    parts = [work.units(Shard(index, 3)) for index in (1, 2, 3)]
    names = [unit.name for part in parts for unit in part]
    assert sorted(names) == sorted(unit.name for unit in work.units())
    rows = run_plan(work, Shard(1, 3))
    assert len(rows) == len(parts[0]) == 2
    with pytest.raises(ConfigError, match="must be one of 1/3 to 3/3, not 4"):
        Shard(4, 3)


def test_the_command_that_makes_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a shell reads it, from where it is shown."""
    folder = tmp_path / "my plans"
    folder.mkdir()
    plan = tone_plan(folder)
    monkeypatch.chdir(folder)
    usual = work_on(plan, Path("results/plan"))
    assert plan_command(usual) == "asda-hear ablate plan.yaml"
    monkeypatch.chdir(tmp_path)
    words = shlex.split(plan_command(work_on(plan, folder / "out", store=tmp_path / "a store")))
    assert words == ["asda-hear", "ablate", "my plans/plan.yaml", "--out", "my plans/out", "--store", "a store"]
    assert main([*words[1:], "--report"]) == 0
    table = (folder / "out" / "table.md").read_text()
    assert "No results yet." in table
    assert main(words[1:]) == 0
    assert f"Made by `{shlex.join(words)}`" in (folder / "out" / "table.md").read_text()


def test_a_budget_that_is_not_spent_is_not_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of processes that were asked to stop."""
    work = work_on(tone_plan(tmp_path, budget={"hours": 100}), tmp_path / "out")
    jobs._report(work, Shard(), [], 0.0, WorkerResults([EXIT_STOPPED, EXIT_STOPPED], []))
    assert "is spent" not in capsys.readouterr().err
    jobs._report(work, Shard(), [], 0.0, WorkerResults([0, EXIT_STOPPED], []))
    assert "the budget of 100.0 hours is spent; 5 trainings and baselines remain" in capsys.readouterr().err


def test_the_budget_of_hours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tone_plan(tmp_path, budget={"hours": 1e-9})
    assert run_plan(work_on(plan, tmp_path / "out")) == []
    assert "the budget of 1e-09 hours is spent; 5 trainings and baselines remain" in capsys.readouterr().err
    run_jobs(work_on(plan, tmp_path / "out"), 2, Shard())
    assert "the budget of 1e-09 hours is spent; 5 trainings and baselines remain" in capsys.readouterr().err
    change_plan(plan, budget={"steps": 1})
    work = work_on(plan, tmp_path / "out")
    assert {cell.config.steps for cell in work.plan.cells} == {1}


def test_submitits_local_executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, out = tone_plan(tmp_path), tmp_path / "out"
    rows = submit_jobs(work_on(plan, out), 2, "local", {"timeout_min": 5})
    assert len(rows) == 5
    assert sorted(times_begun(out).values()) == [1, 1, 1, 1]
    assert len(list((out / "submitit").glob("*_log.err"))) == 2
    with pytest.raises(ConfigError, match="submitit: .*nonsense"):
        submit_jobs(work_on(plan, out), 1, "local", {"nonsense": 5})
    again = jobs.ClusterJob(plan, out, out).checkpoint()
    assert again.function.plan_file == plan
    monkeypatch.setattr(jobs, "submitit", None)
    with pytest.raises(ConfigError, match="submitit is not installed"):
        submit_jobs(work_on(plan, out), 1, "local", {})


def test_options_share_a_training(tmp_path: Path) -> None:
    """Another way of hearing a model trains nothing anew; an axis that is added later keeps what is there."""
    plan, out = tone_plan(tmp_path, seeds=[0]), tmp_path / "out"
    run_plan(work_on(plan, out))
    before = times_begun(out)
    axes = {"mixer": {"standard": {"encoder.mixer": "standard"}, "differential": {"encoder.mixer": "differential"}}}
    change_plan(plan, axes={**axes, "options.scene_pooling": ["mean", "summary"]})
    rows = run_plan(work_on(plan, out))
    assert len(rows) == 1 + 2 * 2
    assert times_begun(out) == before
    assert len({row["cell"] for row in rows if row["cell"]}) == 2
    assert len({row["score"] for row in rows}) > 1
    work = work_on(plan, out)
    write_report(work, rows)
    page = (out / "report.html").read_text()
    assert page.count("--option scene_pooling=summary") == len(work.units()[1:]) * 2  # each training for both lines
    folders = {folder.name for folder in next(iter((out / "cells").iterdir())).glob("hear-*")}
    assert len(folders) == 2  # a default that is written out is no evaluation of its own


def test_dry_run_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It writes nothing, and what it says shrinks to nothing once all is done."""
    plan, out = tone_plan(tmp_path, seeds=[0]), tmp_path / "out"
    assert main(["ablate", str(plan), "--out", str(out), "--dry-run", "--jobs", "2"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("  to do  ") == 3
    assert (
        "2 cells x 1 task; 2 different trainings, 2 to do; 3 of 3 trainings and baselines remain to be run "
        "or evaluated." in printed
    )
    assert "s per step of mixer standard" in printed
    assert "evaluation: " in printed
    assert "with --jobs 2" in printed
    assert not out.exists()
    run_plan(work_on(plan, out))
    assert main(["ablate", str(plan), "--out", str(out), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("done") == 3
    assert "together" not in printed


def test_terminated_jobs_leave_a_store_to_go_on_with(tmp_path: Path) -> None:
    """SIGTERM to `--jobs` reaches the processes, which save their step; the same command goes on."""
    plan, out = tone_plan(tmp_path, set={"steps": 400, "log_every": 1}, baselines={}), tmp_path / "out"
    command = [sys.executable, "-m", "asda_hear.cli", "ablate", str(plan), "--out", str(out), "--jobs", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_until(lambda: len(list(out.glob("cells/*/log.jsonl"))) == 2, "two trainings")
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 130
    for folder in (out / "cells").iterdir():
        with FileLock(folder / CLAIM_FILE, timeout=0):  # nobody holds it any more
            assert list(folder.glob("step-*"))
    change_plan(plan, set={"steps": 400, "log_every": 1})
    work = work_on(plan, out)
    assert not any(is_done(work, unit) for unit in work.units())


def test_processes_that_all_die_are_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = work_on(tone_plan(tmp_path), tmp_path / "out")
    monkeypatch.setattr(jobs.sys, "executable", "/bin/false")
    with pytest.raises(
        AsdaError, match=r"5 trainings and baselines remain, and the processes exited with codes \[1, 1\]"
    ):
        run_jobs(work, 2, Shard())


def test_two_reports_at_once(tmp_path: Path) -> None:
    """Processes that wait for the same last cell write their tables at the same moment."""
    plan, out = tone_plan(tmp_path, seeds=[0]), tmp_path / "out"
    work = work_on(plan, out)
    rows = run_plan(work)
    with ThreadPoolExecutor(4) as pool:
        tables = list(pool.map(lambda _: write_report(work, rows), range(8)))
    assert len(set(tables)) == 1
    assert not list(out.glob(".*.part"))


def test_a_terminal_that_closes_ends_the_workers(tmp_path: Path) -> None:
    plan, out = tone_plan(tmp_path, set={"steps": 400, "log_every": 1}, baselines={}), tmp_path / "out"
    command = [sys.executable, "-m", "asda_hear.cli", "ablate", str(plan), "--out", str(out), "--jobs", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_until(lambda: len(list(out.glob("cells/*/log.jsonl"))) == 2, "two trainings")
    process.kill()  # nothing that it could catch: the system tells its workers
    process.communicate(timeout=WAIT_SECONDS)

    def all_free() -> bool:
        try:
            for folder in (out / "cells").iterdir():
                with FileLock(folder / CLAIM_FILE, timeout=0):
                    pass
        except Timeout:
            return False
        return True

    wait_until(all_free, "the end of the workers")
    assert all(list(folder.glob("step-*")) for folder in (out / "cells").iterdir())


def test_plans_of_one_store_may_call_different_baselines_the_same(tmp_path: Path) -> None:
    plan, store = tone_plan(tmp_path, seeds=[0], baselines={"base": "log_mel"}), tmp_path / "store"
    run_plan(work_on(plan, tmp_path / "a", store=store))
    change_plan(plan, baselines={"base": "base.yaml"})
    run_plan(work_on(plan, tmp_path / "b", store=store))
    done = {file: file.stat().st_mtime_ns for file in store.rglob("evaluation.json")}
    assert len(done) == 2 + 2
    change_plan(plan, baselines={"base": "log_mel"})
    run_plan(work_on(plan, tmp_path / "a", store=store))
    assert {file: file.stat().st_mtime_ns for file in store.rglob("evaluation.json")} == done


def test_one_way_of_hearing_that_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named, where it is first of those that share a training too, and the others are done."""
    plan, out = tone_plan(tmp_path, axes={"options.scene_pooling": ["summary", "mean"]}, seeds=[0]), tmp_path / "out"

    def failing(*given: Any, **more: Any) -> None:
        options = given[4]
        if options:
            raise ConfigError("no summary today.")
        evaluate(*given, **more)

    monkeypatch.setattr(cells, "evaluate", failing)
    assert main(["ablate", str(plan), "--out", str(out)]) == 1
    told = capsys.readouterr().err
    (name,) = (folder.name for folder in (out / "cells").iterdir())
    assert f"{name} (seed 0): OptionsFailed: options.scene_pooling summary: ConfigError: no summary today." in told
    table = (out / "table.md").read_text()
    assert f"Not in the table: {name} (seed 0) failed: " in table
    assert "failed: OptionsFailed: options.scene_pooling summary: ConfigError: no summary today." in table
    assert "today.." not in table
    assert "| mean |" in table


def test_the_teacher_beside_the_student(tmp_path: Path) -> None:
    """It is in the last step of a run alone, and both share the training."""
    plan, out = tone_plan(tmp_path, axes={"options.weights": ["student", "teacher"]}, seeds=[0]), tmp_path / "out"
    change_plan(plan, set={"steps": 6, "objective.options.teacher.decay_start": 0.0, "optimizer.peak_lr": 0.01})
    rows = [row for row in run_plan(work_on(plan, out)) if row["cell"]]
    assert [row["options.weights"] for row in rows] == ["student", "teacher"]
    assert len({row["cell"] for row in rows}) == 1
    work = work_on(plan, out)
    (unit,) = (unit for unit in work.units() if unit.cells)
    heard = {cells.model_path(work, unit, cell.options) for cell in unit.cells}
    assert heard == {str(unit.folder / "model.safetensors"), str(unit.folder)}
    shutil.rmtree(unit.folder / "step-00000006")
    assert cells.is_done(work, unit), "scores stay when the steps of a run are deleted"


def test_the_teacher_of_every_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is not trained has none, and is heard as it is; the estimate scores what it has trained for a step."""
    plan, out = tone_plan(tmp_path, seeds=[0], options={"weights": "teacher"}), tmp_path / "out"
    assert main(["ablate", str(plan), "--out", str(out), "--dry-run"]) == 0
    assert "2 cells x 1 task" in capsys.readouterr().out
    rows = run_plan(work_on(plan, out))
    assert [bool(row["cell"]) for row in rows] == [False, True, True]
