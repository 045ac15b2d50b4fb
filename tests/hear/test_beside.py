"""What stands in the tables of `asda-hear evaluate` beside the pairs of a call, and what is left out."""

import json
from pathlib import Path

import pytest

from asda_hear.cli import main
from asda_hear.evaluate.commands import comparable_scores
from asda_hear.evaluate.identity import SEARCH_STAMP, stamps, task_identity, weights_identity
from asda_hear.evaluate.pairs import EvaluationSetup, Pair
from asda_hear.evaluate.scores import SCORE_FILE
from asda_hear.evaluate.task_checks import EvaluationConfig, find_tasks
from asda_hear.evaluate.tasks import Clip, TaskConfig, build_task
from tests.hear.test_tasks import write

USUAL, FASTER = EvaluationConfig(), EvaluationConfig("faster")
FIRST, SECOND = "t1-v1.0.0-full", "t2-v1.0.0-full"


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    for name in ("t1", "t2"):
        clips = [Clip(write(tmp_path / "in" / f"{n}.wav", 0.1), f"fold0{n}", ("x",)) for n in range(3)]
        build_task(TaskConfig(name), clips, tmp_path / "tasks", progress=False)
    return tmp_path / "tasks"


def put(
    out: Path, name: str, task: Path, value: float, config: EvaluationConfig = USUAL, model: str = "log_mel"
) -> Path:
    """Scores as an earlier call has left them."""
    folder = out / name / task.name
    folder.mkdir(parents=True)
    score = {"test_score": value, "validation_score": value, "test_top1_acc": value, "test_loss": 1.0}
    (folder / SCORE_FILE).write_text(json.dumps({"fold00": score}))
    (folder / "task_metadata.json").write_text((task / "task_metadata.json").read_text())
    stamp = stamps(weights_identity(model), {}, task_identity(task), config)[1]
    (folder / SEARCH_STAMP).write_text(json.dumps(stamp))
    return folder


def calling(tasks: Path, out: Path, *names: str, config: EvaluationConfig = USUAL) -> EvaluationSetup:
    return EvaluationSetup([Pair("log_mel", "log_mel", task) for task in find_tasks(tasks, names)], out, config, {})


def found(work: EvaluationSetup) -> list[tuple[str, str]]:
    return [(model, score.task) for model, score in comparable_scores(work, warn=True)]


@pytest.mark.heareval
def test_a_second_task_keeps_the_first(tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One task after the other into one folder: both are in the tables."""
    out = tmp_path / "out"
    for number, task in enumerate(find_tasks(tasks)):
        put(out, "log_mel", task, number / 4)
    for name in ("t1", "t2"):
        assert main(["evaluate", "--tasks", str(tasks), "--task", name, "--model", "log_mel", "--out", str(out)]) == 0
        rows = {row["task"]: row["score"] for row in json.loads((out / "scores.json").read_text())}
        assert rows == {FIRST: 0.0, SECOND: 0.25}
    assert "warning" not in capsys.readouterr().err


def test_only_what_was_scored_alike(tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another grid is left out with a word; another seed, which the name of the row tells, is not."""
    out, (first, second) = tmp_path / "out", find_tasks(tasks)
    put(out, "alike", first, 0.5)
    put(out, "alike-seed=7", first, 0.6, EvaluationConfig(seed=7))
    put(out, "other", first, 0.7, FASTER)
    put(out, "other", second, 0.7, EvaluationConfig(grid_points=2, threads=2))
    assert found(calling(tasks, out, "t1")) == [("alike", FIRST), ("alike-seed=7", FIRST)]
    said = f"warning: excluded from the tables: other on {FIRST} (grid faster, not default); "
    said += f"other on {SECOND} (grid_points 2, not 8, threads 2, not 1)\n"
    assert capsys.readouterr().err == said
    assert found(calling(tasks, out, "t2", config=FASTER)) == [("other", FIRST)]
    assert comparable_scores(calling(tasks, out, "t1")) != []
    assert capsys.readouterr().err.count("excluded from the tables") == 1  # told only where it is asked


def test_a_task_that_was_built_anew(tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, (first, second) = tmp_path / "out", find_tasks(tasks)
    for task in (first, second):
        put(out, "other", task, 0.5)
    (first / "fold00.json").write_text('{"0.wav":["x"]}')
    assert found(calling(tasks, out, "t1")) == [("other", SECOND)]
    assert f"other on {FIRST} (the task has changed since)" in capsys.readouterr().err
    assert found(calling(tasks, out, "t2")) == [("other", FIRST), ("other", SECOND)]  # not asked for: not looked at


def test_a_model_that_was_trained_on(tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its scores on another task are those of another model."""
    out, (first, second), model = tmp_path / "out", find_tasks(tasks), tmp_path / "mine.yaml"
    model.write_text("seed: 1\n")
    put(out, "mine", first, 0.5, model=str(model))
    work = EvaluationSetup([Pair(str(model), "mine", second)], out, USUAL, {})
    assert found(work) == [("mine", FIRST)]
    model.write_text("seed: 22\n")
    assert found(work) == []
    assert f"mine on {FIRST} (the model has changed since)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        (SCORE_FILE, '{"fold00": {"test_sc', f"{SCORE_FILE}, or task_metadata.json beside it (JSONDecodeError"),
        (SCORE_FILE, "{}", f"{SCORE_FILE}, or task_metadata.json beside it (IndexError"),
        ("task_metadata.json", "", f"{SCORE_FILE}, or task_metadata.json beside it (JSONDecodeError"),
        (SEARCH_STAMP, "", "unfinished, or its evaluation.json is damaged"),
    ],
)
def test_damaged_scores_of_another_model(
    tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, text: str, reason: str
) -> None:
    out, first = tmp_path / "out", find_tasks(tasks)[0]
    put(out, "good", first, 0.5)
    (put(out, "other", first, 0.5) / file).write_text(text)
    assert found(calling(tasks, out, "t1")) == [("good", FIRST)]
    said = capsys.readouterr().err
    assert said.startswith("warning: excluded from the tables: other on ")
    assert reason in said
    assert said.count("\n") == 1
