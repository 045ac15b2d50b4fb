"""What scores belong to: they stay while the audio that they were made of is there, and go when it changes."""

import hashlib
import json
from pathlib import Path

import pytest

from asda_core.errors import TaskError
from asda_core.system.files import model_digest
from asda_hear.evaluate.identity import (
    SEARCH_STAMP,
    identity_at,
    is_scored,
    stamps,
    stored_identity,
    task_identity,
    weights_identity,
)
from asda_hear.evaluate.runner import Evaluation, finished_scores
from asda_hear.evaluate.scores import SCORE_FILE
from asda_hear.evaluate.task_audio import resample_task
from asda_hear.evaluate.task_checks import EvaluationConfig, find_tasks
from asda_hear.evaluate.tasks import Clip, TaskConfig, build_task
from tests.hear.test_tasks import write

CONFIG = EvaluationConfig()


@pytest.fixture
def task(tmp_path: Path) -> Path:
    return build(tmp_path, 48_000)


def build(folder: Path, *rates: int) -> Path:
    clips = [Clip(write(folder / "in" / f"{n}.wav", 0.1), f"fold0{n}", ("x",)) for n in range(3)]
    return build_task(TaskConfig("t", sample_rates=rates), clips, folder / "tasks", progress=False)


def keep(folder: Path, identity: str) -> None:
    """Scores of a task that was known by this."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SCORE_FILE).write_text(
        json.dumps({"test": {"test_score": 0.5, "validation_score": 0.5, "test_top1_acc": 0.5}})
    )
    (folder / "task_metadata.json").write_text('{"evaluation": ["top1_acc"]}')
    (folder / SEARCH_STAMP).write_text(json.dumps(stamps("log_mel", {}, identity, CONFIG)[1]))


def is_kept(out: Path, task: Path) -> bool:
    today = task_identity(task)
    found = finished_scores("log_mel", {task: today}, out, CONFIG, {})
    assert bool(found) == is_scored(out / task.name, stamps("log_mel", {}, today, CONFIG)[1], task)
    return bool(found)


def former_identity(task: Path) -> str:
    """As versions before this told a task."""
    digest = hashlib.sha256()
    for file in sorted(path for path in task.rglob("*") if path.is_file()):
        digest.update(str(file.relative_to(task)).encode())
        facts = file.stat()
        text = file.suffix in (".json", ".csv")
        digest.update(file.read_bytes() if text else f"{facts.st_size} {facts.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


@pytest.mark.parametrize("rate", [16_000, 96_000])
def test_another_rate_throws_no_scores_away(task: Path, tmp_path: Path, rate: int) -> None:
    out = tmp_path / "out"
    keep(out / task.name, identity_at(task, 16_000))
    assert is_kept(out, task)
    resample_task(task, rate, progress=False)
    (task / ".DS_Store").touch()
    (task / "48000" / "fold00" / "._0.wav").touch()
    (task / "README.txt").touch()
    assert is_kept(out, task)
    assert stored_identity(out / task.name, task, task_identity(task)) == identity_at(task, 48_000)


@pytest.mark.parametrize("file", ["fold01.json", "task_metadata.json", "labelvocabulary.csv", "48000/fold01/1.wav"])
def test_another_content_does(task: Path, tmp_path: Path, file: str) -> None:
    out = tmp_path / "out"
    keep(out / task.name, identity_at(task, 16_000))
    resample_task(task, 16_000, progress=False)
    (task / file).write_bytes((task / file).read_bytes() + b" ")
    assert not is_kept(out, task)


def test_the_config_beside_a_foreign_model_counts(tmp_path: Path) -> None:
    """It says what no tensor shows, as the number of heads."""
    (tmp_path / "model.safetensors").write_bytes(b"tensors")
    alone = weights_identity(str(tmp_path))
    found = set()
    for text in ("{}", '{"num_heads": 8}'):
        (tmp_path / "config.json").write_text(text)
        found |= {weights_identity(str(tmp_path)), model_digest(tmp_path / "model.safetensors")}
    assert len(found | {alone}) == 3
    assert all(each.startswith(f"{alone}+") for each in found)


def test_what_was_heard_counts(tmp_path: Path) -> None:
    """Of two rates the one that the model hears, whichever is higher."""
    task, out = build(tmp_path, 16_000, 48_000), tmp_path / "out"
    keep(out / task.name, identity_at(task, 16_000))
    assert is_kept(out, task)
    high, low = (task / rate / "fold01" / "1.wav" for rate in ("48000", "16000"))
    high.write_bytes(high.read_bytes() + b" ")
    assert is_kept(out, task)
    low.write_bytes(low.read_bytes() + b" ")
    assert not is_kept(out, task)


def test_scores_of_earlier_versions_count(tmp_path: Path) -> None:
    """Every file counted then; with one rate and nothing else, it is the same digest."""
    task, out = build(tmp_path, 16_000, 48_000), tmp_path / "out"
    (task / ".DS_Store").touch()
    keep(out / task.name, former_identity(task))
    assert is_kept(out, task)
    sound = task / "16000" / "fold01" / "1.wav"
    sound.write_bytes(sound.read_bytes() + b" ")
    assert not is_kept(out, task)
    single = build(tmp_path / "single", 16_000)
    assert task_identity(single) == former_identity(single)


def test_neighbours_that_cannot_be_read(task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in (("cut", '{"task_na'), ("empty", "{}"), ("list", "[]")):
        (task.parent / name).mkdir()
        (task.parent / name / "task_metadata.json").write_text(text)
    assert find_tasks(task.parent, ["t"]) == [task]
    said = capsys.readouterr().err.splitlines()
    assert [line.startswith(f"warning: {task.parent / name} is skipped: ") for name, line in
            zip(("cut", "empty", "list"), said, strict=True)] == 3 * [True]  # fmt: skip
    assert said[1].endswith("task_metadata.json lacks task_name.")
    assert [path.name for path in find_tasks(task.parent, ["cut"])] == [
        "cut"
    ]  # what is asked for shows when it is read
    assert f"{task.parent / 'cut'} is skipped" not in capsys.readouterr().err
    with pytest.raises(TaskError, match="cut is not a HEAR task: task_metadata.json: JSONDecodeError"):
        Evaluation("log_mel", task.parent / "out", CONFIG, {}).score(task.parent / "cut")


@pytest.mark.parametrize("text", ["a: " + "[" * 5_000, "encoder: {mixer: nobody}", "no: yaml: at: all"])
def test_a_config_that_cannot_be_loaded_has_an_identity(tmp_path: Path, text: str) -> None:
    """It is told when it is opened."""
    (tmp_path / "bad.yaml").write_text(text)
    assert len(weights_identity(str(tmp_path / "bad.yaml"))) == 16
