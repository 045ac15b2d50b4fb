"""The real tools: hearvalidator and the unmodified heareval, in process, on today's stack."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from asda_core.errors import ConfigError
from asda_hear.cli import main
from asda_hear.demo import make_corpus
from asda_hear.evaluate import commands, compat, runner
from asda_hear.evaluate.clip_predictions import read_predictions
from asda_hear.evaluate.commands import MODEL_NOTE, claim_names, named_models
from asda_hear.evaluate.compat import TrainingCache, hear_tools
from asda_hear.evaluate.identity import SEARCH_STAMP, task_identity
from asda_hear.evaluate.runner import evaluate, finished_scores
from asda_hear.evaluate.scores import SCORE_FILE, TaskScore, read_task_score, to_csv, to_json, to_markdown, write_tables
from asda_hear.evaluate.task_audio import resample_task
from asda_hear.evaluate.task_checks import EvaluationConfig, find_tasks
from asda_hear.evaluate.tasks import Clip, TaskConfig, build_task

pytestmark = pytest.mark.heareval

SCORES = {"a": 0.5, "b": math.nan}
QUICK = EvaluationConfig(grid="faster", grid_points=2)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("corpus")
    found = make_corpus(folder)
    for task in find_tasks(found):  # the demo's own grid is longer than this test needs
        metadata = json.loads((task / "task_metadata.json").read_text())
        metadata["evaluation_params"]["task_specific_param_grid"] |= {
            "max_epochs": [12],
            "check_val_every_n_epoch": [3],
        }
        (task / "task_metadata.json").write_text(json.dumps(metadata))
    return found


def results(score: TaskScore) -> tuple[object, ...]:
    return (score.task, score.metric, score.folds, sorted(score.metrics.items()))


def test_validator(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "asda_hear"]) == 0
    printed = capsys.readouterr()
    assert "Interval between timestamps is 40.0ms" in printed.out
    assert printed.out.endswith("Looks good!\n")
    assert "warn" not in printed.err.lower()


def test_validator_of_a_module_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "nosuchmodule"]) == 1
    assert "error: module 'nosuchmodule' cannot be imported" in capsys.readouterr().err


def test_three_kinds_of_task(tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "--tasks", str(tasks), "--model", "log_mel", "--out", str(tmp_path), "--grid-points", "2"]
    assert main(command) == 0
    first = capsys.readouterr().out
    assert "| log_mel | demo_events-v1.0.0-full | event_onset_200ms_fms |" in first
    assert "| log_mel | demo_kind-v1.0.0-full | top1_acc |" in first
    assert (tmp_path / "scores.md").read_text() == first
    rows = json.loads((tmp_path / "scores.json").read_text())
    assert [len(row["folds"]) for row in rows] == [1, 3, 1]
    assert next(row for row in rows if row["metric"] == "top1_acc")["score"] > 1.5 / 6  # chance is 1 of 6
    assert (tmp_path / "scores.csv").read_text().startswith("model,task,metric,primary,value,deviation,folds\n")
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.predictions.pkl")}
    assert before
    assert main(command) == 0
    assert capsys.readouterr().out == first
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.predictions.pkl")} == before


@pytest.mark.parametrize(("name", "after"), [("demo_kind", 3), ("demo_events", 1)])
def test_goes_on_after_a_kill(
    tasks: Path, tmp_path: Path, name: str, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed behind a training and run again: no training is done twice, and every score is that of a whole run."""
    task = find_tasks(tasks, [name])
    whole = evaluate("log_mel", task, tmp_path / "whole", QUICK, progress=False)
    keep, done = compat._save_training, []

    def killed(file: Path, *rest: object) -> None:
        keep(file, *rest)
        done.append(file.name)
        if len(done) == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(compat, "_save_training", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate("log_mel", task, tmp_path / "parts", QUICK, progress=False)
    monkeypatch.setattr(runner, "_embed", lambda *_: pytest.fail("embeddings were there"))
    parts = evaluate("log_mel", task, tmp_path / "parts", QUICK, progress=False)
    assert results(parts[0]) == results(whole[0])
    assert len(done) == len(set(done)) == len(list((tmp_path / "parts").rglob("trainings/*.pt")))


def test_ctrl_c_within_a_training_stops(tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lightning swallows Ctrl-C and would give heareval a half-trained predictor."""
    task = find_tasks(tasks, ["demo_pitch"])
    whole = evaluate("log_mel", task, tmp_path / "whole", QUICK, progress=False)
    step, calls = torch.optim.Adam.step, []

    def pressed(self: torch.optim.Adam, *rest: object, **named: object) -> object:
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *rest, **named)

    # A shell that starts us in the background has SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", pressed)
        with pytest.raises(KeyboardInterrupt):
            evaluate("log_mel", task, tmp_path / "parts", QUICK, progress=False)
    signal.signal(signal.SIGINT, before)
    assert not list((tmp_path / "parts").rglob("trainings/*.pt"))
    assert results(evaluate("log_mel", task, tmp_path / "parts", QUICK, progress=False)[0]) == results(whole[0])


def test_changed_audio_and_a_damaged_stamp_are_done_anew(tasks: Path, tmp_path: Path) -> None:
    task = tmp_path / "tasks" / "demo_pitch-v1.0.0-full"
    shutil.copytree(tasks / task.name, task)
    embeddings = tmp_path / "out" / task.name / "test.embeddings.npy"
    evaluate("log_mel", [task], tmp_path / "out", EvaluationConfig("faster", 1), progress=False)
    before = embeddings.read_bytes()
    (tmp_path / "out" / task.name / "evaluation.json").write_text("")  # as a kill in the middle of a write leaves it
    evaluate("log_mel", [task], tmp_path / "out", EvaluationConfig("faster", 1), progress=False)
    assert embeddings.read_bytes() == before
    for file in (task / "16000" / "test").glob("*.wav"):
        soundfile.write(file, np.zeros(16_000), 16_000)
    evaluate("log_mel", [task], tmp_path / "out", EvaluationConfig("faster", 1), progress=False)
    assert embeddings.read_bytes() != before


@pytest.mark.parametrize("name", ["test.predicted-scores.json", "task_metadata.json"])
def test_damaged_scores_are_made_again(tasks: Path, tmp_path: Path, name: str) -> None:
    """By the same command, from the trainings that are there."""
    task, quick = tasks / "demo_pitch-v1.0.0-full", EvaluationConfig("faster", 1)
    first = evaluate("log_mel", [task], tmp_path, quick, progress=False)
    (tmp_path / task.name / name).write_text("{")
    identities = {task: task_identity(task)}
    assert finished_scores("log_mel", identities, tmp_path, quick, {}) == []
    assert results(evaluate("log_mel", [task], tmp_path, quick, progress=False)[0]) == results(first[0])
    assert len(finished_scores("log_mel", identities, tmp_path, quick, {})) == 1


def test_a_rate_that_is_added_changes_nothing(tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores and embeddings stay; another search takes the embeddings that are there."""
    task = tmp_path / "tasks" / "demo_pitch-v1.0.0-full"
    shutil.copytree(tasks / task.name, task)
    quick = EvaluationConfig("faster", 1)
    first = evaluate("log_mel", [task], tmp_path / "out", quick, progress=False)
    resample_task(task, 48_000, progress=False)
    monkeypatch.setattr(runner, "_embed", lambda *_: pytest.fail("embeddings were there"))
    evaluate("log_mel", [task], tmp_path / "out", QUICK, progress=False)
    assert evaluate("log_mel", [task], tmp_path / "out", quick, progress=False) == first
    monkeypatch.setattr(runner, "_predict", lambda *_: pytest.fail("scores were there"))
    assert evaluate("log_mel", [task], tmp_path / "out", quick, progress=False) == first


def test_another_seed_is_another_row_and_repeats(
    tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "--tasks", str(tasks), "--task", "demo_kind", "--model", "log_mel", "--out", str(tmp_path)]
    quick = ["--grid", "faster", "--grid-points", "2"]
    for seed in ("42", "1"):
        assert main([*command, *quick, "--seed", seed]) == 0
    rows = {row["model"]: row for row in json.loads((tmp_path / "scores.json").read_text())}
    assert sorted(rows) == ["log_mel", "log_mel-seed=1"]
    assert rows["log_mel"]["metrics"] != rows["log_mel-seed=1"]["metrics"]
    task, usual = find_tasks(tasks, ["demo_kind"]), tmp_path / "usual"
    assert list(evaluate("log_mel", task, usual, QUICK, progress=False)[0].folds) == rows["log_mel"]["folds"]
    again = EvaluationConfig(grid="faster", grid_points=2, seed=1)
    assert list(evaluate("log_mel", task, usual, again, progress=False)[0].folds) == rows["log_mel-seed=1"]["folds"]
    assert main([*command, "--seed", "-1"]) == 1
    assert "seed must be in" in capsys.readouterr().err


def test_models_of_one_name_are_refused(tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "--tasks", str(tasks), "--out", str(tmp_path / "out"), "--model", "x/mine", "y/mine"]
    assert main(command) == 1
    assert (
        "'x/mine' and 'y/mine' would both be named 'mine': give one a different label, as in other=y/mine"
        in capsys.readouterr().err
    )


def test_another_search_is_done_anew(tasks: Path, tmp_path: Path) -> None:
    task = find_tasks(tasks, ["demo_pitch"])
    evaluate("log_mel", task, tmp_path, QUICK, progress=False)
    stamp = tmp_path / "demo_pitch-v1.0.0-full" / "evaluation.json"
    assert json.loads(stamp.read_text())["grid_points"] == 2
    evaluate("log_mel", task, tmp_path, EvaluationConfig("faster", 1), progress=False)
    assert json.loads(stamp.read_text())["grid_points"] == 1


def test_scores_without_their_stamp_are_nobodys(tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped between the scores of a second search and its stamp: they must not pass for those of the first."""
    task, one, two = find_tasks(tasks, ["demo_pitch"]), QUICK, EvaluationConfig("faster", 2, seed=1)
    first = evaluate("log_mel", task, tmp_path, one, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(runner, "write_predictions", lambda folder: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            evaluate("log_mel", task, tmp_path, two, progress=False)
    assert (tmp_path / task[0].name / "test.predicted-scores.json").exists()
    assert not (tmp_path / task[0].name / "evaluation.json").exists()
    assert results(evaluate("log_mel", task, tmp_path, one, progress=False)[0]) == results(first[0])


def test_labels_that_look_like_something_else(tmp_path: Path) -> None:
    """pandas, by which heareval reads them, takes these for 1, nothing and a truth value."""
    rng = np.random.default_rng(0)
    clips = []
    for number in range(18):
        soundfile.write(tmp_path / f"{number}.wav", rng.normal(size=8000) * 0.1 * (1 + number % 3), 16_000)
        clips.append(Clip(tmp_path / f"{number}.wav", f"fold0{number // 6}", (("01", "NA", "true")[number % 3],)))
    task = build_task(TaskConfig("t", clip_seconds=0.5), clips, tmp_path / "tasks", progress=False)
    (score,) = evaluate("log_mel", [task], tmp_path / "out", EvaluationConfig("faster", 1), progress=False)
    assert len(score.folds) == 3
    kept = read_predictions(tmp_path / "out" / task.name)
    assert kept is not None
    assert [targets.shape for targets, _ in kept.folds] == [(6, 3)] * 3
    assert [targets.sum(axis=0).tolist() for targets, _ in kept.folds] == [[2, 2, 2]] * 3


@pytest.mark.parametrize("pattern", ["trainings/*.pt", "**/*.ckpt", "*.embeddings.npy", "*.target-labels.pkl"])
def test_files_that_were_cut_off_are_made_again(tasks: Path, tmp_path: Path, pattern: str) -> None:
    """As a full disk or a crash leaves them, of an evaluation that had not ended."""
    task = find_tasks(tasks, ["demo_pitch"])
    whole = evaluate("log_mel", task, tmp_path, QUICK, progress=False)
    folder = tmp_path / task[0].name
    (folder / "evaluation.json").unlink()
    (folder / "test.predicted-scores.json").unlink()
    found = list(folder.glob(pattern))
    assert found
    for file in found:
        os.truncate(file, 30)
    assert results(evaluate("log_mel", task, tmp_path, QUICK, progress=False)[0]) == results(whole[0])


def test_other_weights_under_the_same_name_are_another_model(tasks: Path, tmp_path: Path) -> None:
    """A run that was trained on, or other options, must not be given the scores of before."""
    task = find_tasks(tasks, ["demo_pitch"])
    config, out = tmp_path / "model.yaml", tmp_path / "out"
    text = "encoder: {dim: 32, depth: 1, num_heads: 2}\n"
    text += "objective: {name: latent_regression, options: {decoder: {dim: 32}}}\n"
    stamp = out / "demo_pitch-v1.0.0-full" / "embedding.json"
    seen = set()
    for seed, options in ((1, {}), (2, {}), (2, {"scene_pooling": "summary"})):
        config.write_text(f"{text}seed: {seed}\n")
        evaluate(str(config), task, out, EvaluationConfig("faster", 1), options, progress=False)
        seen.add((stamp.read_text(), (stamp.parent / "test.embeddings.npy").read_bytes()))
    assert len(seen) == 3


def test_the_shims_are_put_back() -> None:
    with hear_tools():
        from pytorch_lightning.loops import FitLoop

        assert sys.modules["tensorflow"].__version__ == "2.0.0"
        assert hasattr(FitLoop, "current_epoch")
    assert "tensorflow" not in sys.modules
    assert not hasattr(np, "Inf") or "torchmetrics" in sys.modules  # torchmetrics puts it back by itself
    assert not hasattr(FitLoop, "current_epoch")
    assert TrainingCache.current is None
    with warnings.catch_warnings():
        import tensorboard.compat  # must not have seen the stand-in

        assert tensorboard.compat is not None


def process_state() -> dict[str, object]:
    return {
        "environment": dict(os.environ),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),
        "random": random.getstate(),
    }


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_state_of_the_process_is_put_back(
    tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    """Also between two tasks: otherwise only the first embeddings or the first training would run in another mode."""
    embed, modes = runner._embed, []

    def embed_and_look(*arguments: object) -> None:
        modes.append(torch.are_deterministic_algorithms_enabled())
        embed(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "_embed", embed_and_look)
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    try:
        before = process_state()
        quick = EvaluationConfig("faster", 1)
        evaluate("log_mel", find_tasks(tasks, ["demo_kind", "demo_pitch"]), tmp_path / "m", quick, progress=False)
        assert process_state() == before
    finally:
        torch.use_deterministic_algorithms(False)
    assert modes == [deterministic] * 2


def test_score_tables() -> None:
    score = TaskScore("t-v1-full", "mAP", 0.5, (0.4, 0.6), {"mAP": 0.5, "d_prime": float("inf")}, 0.7)
    assert "| m | t-v1-full | mAP | 0.500 ± 0.141 | 2 |" in to_markdown([("m", score)])
    assert "m,t-v1-full,d_prime,0,inf" in to_csv([("m", score)])
    assert json.loads(to_json([("m", score)]))[0]["metrics"] == {"mAP": 0.5, "d_prime": None}


def test_tables_are_written_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk leaves the previous ones."""
    score = TaskScore("t-v1-full", "mAP", 0.5, (0.4, 0.6), {"mAP": 0.5}, 0.7)
    write_tables([("m", score)], tmp_path)
    before = {file.name: file.read_text(encoding="utf-8") for file in tmp_path.glob("scores.*")}
    assert len(before) == 3
    monkeypatch.setattr("asda_core.system.files.sync", lambda path: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        write_tables([("other", score)], tmp_path)
    assert {file.name: file.read_text(encoding="utf-8") for file in tmp_path.glob("*scores.*[!k]")} == before


def test_an_ascii_locale(tasks: Path, tmp_path: Path) -> None:
    """Bars of heareval and the sign of a deviation are not ASCII."""
    command = [sys.executable, "-X", "utf8=0", "-m", "asda_hear.cli", "evaluate", "--tasks", str(tasks)]
    command += ["--task", "demo_kind", "--grid", "faster", "--grid-points", "1", "--model", "log_mel"]
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}
    done = subprocess.run([*command, "--out", "out"], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"(\\xb1 deviation over folds)" in done.stdout
    assert "(± deviation over folds)" in (tmp_path / "out" / "scores.md").read_text(encoding="utf-8")
    assert all((tmp_path / "out" / f"scores.{suffix}").exists() for suffix in ("csv", "json"))


def test_no_scores_yet(tmp_path: Path) -> None:
    from asda_core.errors import TaskError

    with pytest.raises(TaskError, match="no scores yet"):
        read_task_score(tmp_path)


def test_an_archive_at_48_khz_works_as_it_is(tasks: Path, tmp_path: Path) -> None:
    """HEAR's archives hold 48 kHz alone; the audio at the model's rate is made beside the results."""
    source = resample_task(
        tasks / "demo_kind-v1.0.0-full", 48_000, tmp_path / "archive" / "demo_kind-v1", progress=False
    )
    before = sorted(source.rglob("*"))
    scores = evaluate("log_mel", [source], tmp_path / "out" / "log_mel", QUICK, progress=False)
    assert len(scores[0].folds) == 3
    assert sorted(source.rglob("*")) == before
    assert (tmp_path / "out" / "tasks-16000" / "demo_kind-v1" / "16000").is_dir()


def test_tables_hold_the_models_of_earlier_calls(tasks: Path, tmp_path: Path) -> None:
    config, out = tmp_path / "small.yaml", tmp_path / "out"
    text = "encoder: {dim: 32, depth: 1, num_heads: 2}\n"
    config.write_text(text + "objective: {name: latent_regression, options: {decoder: {dim: 32}}}\n")
    command = ["evaluate", "--tasks", str(tasks), "--task", "demo_pitch", "--out", str(out), "--grid", "faster"]
    for model in (str(config), "log_mel"):
        assert main([*command, "--grid-points", "1", "--model", model]) == 0
    rows = json.loads((out / "scores.json").read_text())
    assert [row["model"] for row in rows] == ["log_mel", "small"]
    assert "Not in the table" not in (out / "scores.md").read_text(encoding="utf-8")
    assert main([*command, "--grid-points", "2", "--model", "log_mel"]) == 0
    table = (out / "scores.md").read_text(encoding="utf-8")
    assert table.endswith("\n\nNot in the table: 1 other score in this folder.\n")
    assert "small" not in table


def test_labels_of_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scores of another model by the same name are not lost without a word."""
    small = "encoder: {dim: 32, depth: 1, num_heads: 2}\nobjective: {name: masked_patch}\n"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.yaml").write_text(small)
    first, second = (str(tmp_path / name / "mine.yaml") for name in ("one", "two"))
    out = tmp_path / "out"
    named = named_models([f"a={first}", second, "log_mel", f"b={second}"], {"scene_pooling": "mean"})
    assert named == {
        "a-scene_pooling=mean": first, "mine-scene_pooling=mean": second, "log_mel-scene_pooling=mean": "log_mel",
        "b-scene_pooling=mean": second,
    }  # fmt: skip
    for wrong in ("/x=y", "=y", ".x=y"):
        with pytest.raises(ConfigError, match="cannot be a label"):
            named_models([wrong], {})
    with pytest.raises(ConfigError, match="no path after 'a'; is a variable not set"):
        named_models(["a="], {})
    claim_names({"mine": first}, out)
    assert "mine is a config: its weights are random" in capsys.readouterr().err
    claim_names({"mine": second}, out)  # nothing is lost yet
    (out / "mine" / "task").mkdir()
    (out / "mine" / "task" / SCORE_FILE).write_text("{}")
    claim_names({"mine": second}, out)
    with pytest.raises(ConfigError, match=r"holds the scores of .*two/mine.yaml.*as in other=.*one/mine.yaml"):
        claim_names({"mine": first}, out)
    (tmp_path / "two" / "mine.yaml").unlink()  # moved, say
    claim_names({"mine": first}, out)


def test_the_label_of_the_baseline(tmp_path: Path) -> None:
    """No model takes a label that has scores of log_mel, nor the reverse; earlier versions did not record log_mel."""
    claim_names({"x": "log_mel", "y": "asda_tiny"}, tmp_path)
    for label, stamp in {"x": "{}", "y": "{}", "log_mel": '{"weights": "log_mel"}', "older": "{}"}.items():
        (tmp_path / label / "task").mkdir(parents=True)
        (tmp_path / label / "task" / SCORE_FILE).write_text("{}")
        (tmp_path / label / "task" / SEARCH_STAMP).write_text(stamp)
    claim_names({"x": "log_mel", "y": "asda_tiny", "older": "asda_tiny"}, tmp_path)
    with pytest.raises(ConfigError, match=r"holds the scores of .*asda_tiny\.yaml, which those of log_mel"):
        claim_names({"y": "log_mel"}, tmp_path)
    for label in ("x", "log_mel"):
        with pytest.raises(ConfigError, match=r"holds the scores of log_mel, .*as in other=asda_tiny"):
            claim_names({label: "asda_tiny"}, tmp_path)
    claim_names({"log_mel": "log_mel"}, tmp_path)
    assert json.loads((tmp_path / "log_mel" / MODEL_NOTE).read_text()) == {"model": "log_mel"}


def test_an_undefined_score_is_warned_of(
    tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(name, TaskScore("bells", "mAP", value, (value,), {"mAP": value}, value)) for name, value in SCORES.items()]
    monkeypatch.setattr(commands, "score_serially", lambda setup, parsed: rows)
    assert main(["evaluate", "--tasks", str(tasks), "--model", "log_mel", "--out", str(tmp_path)]) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert warned == [
        "warning: b on bells: mAP is NaN, undefined for the labels of this task (see `asda-hear tasks check`)."
    ]
