"""`asda-hear evaluate --jobs`: the scores of one process, nothing twice, whatever is killed or fails."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock, Timeout

from asda_core.system import workers
from asda_core.system.files import disk_time
from asda_core.system.workers import with_options
from asda_hear.cli import main
from asda_hear.demo import make_corpus
from asda_hear.evaluate.clip_predictions import CLIP_PREDICTIONS_FILE
from asda_hear.evaluate.pairs import EvaluationFailed, EvaluationSetup, Pair
from asda_hear.evaluate.scoring import score_pairs
from asda_hear.evaluate.task_checks import EvaluationConfig, find_tasks
from asda_hear.work_queue import read_failure, write_failure
from tests.waiting import WAIT_SECONDS, wait_until

pytestmark = pytest.mark.heareval
QUICK = EvaluationConfig(grid="faster", grid_points=2)
CONFIG = """
encoder: {dim: 32, depth: 1, num_heads: 2}
objective: {name: latent_regression, options: {decoder: {dim: 32}}}
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, of which one has three folds, with trainings that take seconds."""
    found = make_corpus(tmp_path_factory.mktemp("corpus"))
    shutil.rmtree(found / "demo_events-v1.0.0-full")
    set_epochs(found, 12)
    return found


def set_epochs(tasks: Path, epochs: int) -> None:
    for task in find_tasks(tasks):
        metadata = json.loads((task / "task_metadata.json").read_text())
        grid = {"max_epochs": [epochs], "check_val_every_n_epoch": [3], "patience": [epochs]}
        metadata["evaluation_params"]["task_specific_param_grid"] |= grid
        (task / "task_metadata.json").write_text(json.dumps(metadata))


def command(tasks: Path, out: Path, *more: str) -> list[str]:
    quick = ["--grid", "faster", "--grid-points", "2", "--model", "log_mel"]
    return ["evaluate", "--tasks", str(tasks), "--out", str(out), *quick, *more]


def pairs(tasks: Path, out: Path) -> EvaluationSetup:
    return EvaluationSetup([Pair("log_mel", "log_mel", task) for task in find_tasks(tasks)], out, QUICK, {})


def test_the_scores_of_one_process(tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To the last digit, for two models; done once; the tables are those of one process."""
    model = tmp_path / "small.yaml"
    model.write_text(CONFIG)
    assert main(command(tasks, tmp_path / "one", str(model))) == 0
    one = capsys.readouterr().out
    assert main(command(tasks, tmp_path / "two", str(model), "--jobs", "2")) == 0
    assert capsys.readouterr().out == one
    for name in ("scores.json", "scores.csv", "scores.md"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert len(json.loads((tmp_path / "two" / "scores.json").read_text())) == 4
    files = [*(tmp_path / "one").rglob(CLIP_PREDICTIONS_FILE)]  # what each model said about every clip
    assert len(files) == 4
    for file in files:
        with np.load(file) as said, np.load(tmp_path / "two" / file.relative_to(tmp_path / "one")) as other:
            assert said.files == other.files
            assert all(np.array_equal(said[name], other[name]) for name in said.files)
    logs = "".join(file.read_text() for file in (tmp_path / "two").glob("*/heareval.log"))
    assert logs.count("Best Grid Point Validation Score") == 4  # none twice
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "two").rglob("*.predictions.pkl")}
    assert main(command(tasks, tmp_path / "two", str(model), "--jobs", "2")) == 0
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "two").rglob("*.predictions.pkl")}


def test_a_killed_process_loses_its_pair_to_another(tasks: Path, tmp_path: Path) -> None:
    """SIGKILL between two trainings: the finished one is not done again, and the scores are those of a whole run."""
    out = tmp_path / "out"
    arguments = [sys.executable, "-m", "asda_hear.cli", *command(tasks, out, "--task", "demo_kind")]
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_until(lambda: list(out.rglob("trainings/0001.pt")), "a training")
    process.kill()
    process.communicate(timeout=WAIT_SECONDS)
    (first,) = out.rglob("trainings/0001.pt")
    assert not list(out.rglob("evaluation.json"))
    kept = first.stat().st_mtime_ns
    scores = score_pairs(pairs(tasks, out), progress=False)
    assert first.stat().st_mtime_ns == kept
    assert scores == score_pairs(pairs(tasks, tmp_path / "whole"), progress=False)


def test_an_error_loses_nothing_else(tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One task's audio is damaged: the other is scored and in the table; mended, the same command does the rest."""
    own, out = tmp_path / "tasks", tmp_path / "out"
    shutil.copytree(tasks, own)
    sound = next((own / "demo_kind-v1.0.0-full" / "16000").rglob("*.wav"))
    good = sound.read_bytes()
    sound.write_bytes(b"no sound")
    for jobs in ("1", "2"):
        assert main(command(own, out, "--jobs", jobs)) == 1
        printed = capsys.readouterr()
        assert "1 of 2 evaluations failed, the others are done: log_mel on demo_kind-v1.0.0-full: " in printed.err
        assert printed.out == ""
        rows = json.loads((out / "scores.json").read_text())
        assert [row["task"] for row in rows] == ["demo_pitch-v1.0.0-full"]
        assert "Traceback" in (out / "log_mel" / "demo_kind-v1.0.0-full.error.txt").read_text()
    sound.write_bytes(good)
    assert main(command(own, out, "--jobs", "2")) == 0
    assert len(json.loads((out / "scores.json").read_text())) == 2
    assert not list(out.rglob("*.error.txt"))


def test_what_another_process_holds_is_left_to_it(tasks: Path, tmp_path: Path) -> None:
    """And it is taken up when that process dies."""
    work = pairs(tasks, tmp_path / "out")
    held, free = work.pairs
    claim = work.claim_file(held)
    claim.parent.mkdir(parents=True)
    hold = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); "
    hold += "print(1, flush=True); sys.stdin.read()"
    other = subprocess.Popen([sys.executable, "-c", hold, str(claim)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"1\n"
    arguments = [sys.executable, "-m", "asda_hear.cli", *command(tasks, tmp_path / "out")]
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_until(lambda: (claim.parent / free.task.name / "evaluation.json").exists(), "the other pair")
    time.sleep(1.5)
    assert process.poll() is None
    assert not (claim.parent / held.task.name).exists()
    other.kill()
    other.communicate()
    process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 0
    assert (claim.parent / held.task.name / "evaluation.json").exists()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_ctrl_c_ends_all(tasks: Path, tmp_path: Path, how: signal.Signals) -> None:
    """In the middle of two trainings; nobody holds a pair afterwards, and nothing half-trained is a score."""
    own, out = tmp_path / "tasks", tmp_path / "out"
    shutil.copytree(tasks, own)
    set_epochs(own, 4000)
    process = subprocess.Popen(
        [sys.executable, "-m", "asda_hear.cli", *command(own, out, "--jobs", "2")],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    claims = [out / "log_mel" / f".{task.name}.claim" for task in find_tasks(own)]
    wait_until(lambda: len(list(out.rglob("trainings/settings.json"))) == 2, "two trainings")
    time.sleep(1)
    os.kill(process.pid, how)
    process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == (-signal.SIGKILL if how == signal.SIGKILL else 130)

    def all_free() -> bool:
        try:
            for claim in claims:
                with FileLock(claim, timeout=0):
                    pass
        except Timeout:
            return False
        return True

    wait_until(all_free, "the end of the workers")
    assert not list(out.rglob("evaluation.json"))
    assert not list(out.rglob("*.error.txt"))


def test_processes_that_die_are_told(
    tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers.sys, "executable", "/bin/false")
    assert main(command(tasks, tmp_path / "out", "--jobs", "3")) == 1
    said = capsys.readouterr().err
    assert "not scored: log_mel on demo_kind-v1.0.0-full, log_mel on demo_pitch-v1.0.0-full" in said
    assert "codes [1, 1]" in said  # no more processes than pairs
    assert main(command(tasks, tmp_path / "out", "--jobs", "0")) == 1
    assert "--jobs must be at least 1, not 0" in capsys.readouterr().err


def test_what_has_just_failed_elsewhere_is_not_tried_again(tasks: Path, tmp_path: Path) -> None:
    work = pairs(tasks, tmp_path / "out")
    for pair in work.pairs:
        work.error_file(pair).parent.mkdir(parents=True, exist_ok=True)
        work.error_file(pair).write_text("Traceback\nValueError: as another process says\n")
        later = time.time() + 60
        os.utime(work.error_file(pair), (later, later))
    with pytest.raises(EvaluationFailed, match="2 of 2 evaluations failed.*as another process says") as failure:
        score_pairs(work, progress=False)
    assert failure.value.results == []


def test_a_model_that_cannot_be_opened(tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Said once, and not that the same command goes on."""
    (tmp_path / "bad.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    for jobs in ("1", "2"):
        assert main(command(tasks, tmp_path / "out", str(tmp_path / "bad.safetensors"), "--jobs", jobs)) == 1
        printed = capsys.readouterr().err
        assert printed.count("cannot read") == 1
        assert "run the same command again" not in printed


def test_failures_of_several_lines_and_odd_names(tmp_path: Path) -> None:
    """Told whole, by names of files that are no text too; of an earlier version the end of its traceback."""
    file = tmp_path / "folder" / "error.txt"
    file.parent.mkdir()
    first = write_failure(file, ValueError("a: one\n  b: a\udce4.wav\n"))
    assert first.startswith("ValueError: a: one; b: a")
    assert read_failure(file) == "ValueError: a: one; b: a\\udce4.wav"
    assert read_failure(file, since=disk_time(tmp_path) + 1) == ""
    assert read_failure(tmp_path / "none.txt") == ""
    file.write_text("Traceback (most recent call last):\n  x\nValueError: old\n")
    assert read_failure(file) == "ValueError: old"


def test_options_go_before_two_dashes() -> None:
    assert with_options(["embed", "--", "-a.wav"], ["--jobs", "1"]) == ["embed", "--jobs", "1", "--", "-a.wav"]
    assert with_options(["embed", "a.wav", "--"], ["--jobs", "1"]) == ["embed", "a.wav", "--jobs", "1"]
    assert with_options(["embed", "a.wav"], ["--jobs", "1"]) == ["embed", "a.wav", "--jobs", "1"]
