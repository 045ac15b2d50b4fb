"""Predictions are kept without code in the file, and score as heareval's."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from asda_core.errors import TaskError
from asda_hear.demo import make_corpus
from asda_hear.evaluate.clip_predictions import (
    CLIP_PREDICTIONS_FILE,
    ClipPredictions,
    can_score,
    read_predictions,
    scorer,
    write_predictions,
)
from asda_hear.evaluate.runner import evaluate
from asda_hear.evaluate.task_checks import EvaluationConfig, find_tasks
from asda_hear.reporting.comparing import compare_predictions

TARGETS = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], bool)
SAID = np.array([[0.9, 0.8], [0.7, 0.6], [0.5, 0.7], [0.1, 0.2]], np.float32)


def score(items: ClipPredictions, *chosen: list[int]) -> float:
    """Of all clips, or of those with these numbers in each fold, with repeats."""
    sizes = [len(targets) for targets, _ in items.folds]
    counts = (
        [np.bincount(each, minlength=size) for each, size in zip(chosen, sizes, strict=True)]
        if chosen
        else [np.ones(size) for size in sizes]
    )
    return float(scorer(items)([each[:, None].astype(np.float32) for each in counts])[0])


def write_task(folder: Path, folds: list[str], metric: str = "top1_acc", embedding_type: str = "scene") -> None:
    mode = "trainvaltest" if folds == ["test"] else "presplit_kfold"
    splits = ["train", "valid", "test"] if folds == ["test"] else folds
    metadata = {"embedding_type": embedding_type, "evaluation": [metric], "split_mode": mode, "splits": splits}
    (folder / "task_metadata.json").write_text(json.dumps(metadata))
    for number, fold in enumerate(folds):
        said = torch.from_numpy(SAID) + number
        tensors = {"target": torch.from_numpy(TARGETS).float(), "prediction": said, "prediction_logit": said}
        (folder / f"{fold}.predictions.pkl").write_bytes(pickle.dumps(tensors))


@pytest.mark.parametrize("folds", [["test"], ["fold00", "fold01", "fold02"]])
def test_kept_and_read(tmp_path: Path, folds: list[str]) -> None:
    write_task(tmp_path, folds, "mAP")
    write_predictions(tmp_path)
    items = read_predictions(tmp_path)
    assert items is not None
    assert items.metric == "mAP"
    assert len(items.folds) == len(folds)
    for number, (targets, said) in enumerate(items.folds):
        assert targets.dtype == bool
        assert said.dtype == np.float32
        np.testing.assert_array_equal(targets, TARGETS)
        np.testing.assert_array_equal(said, SAID + number)


def test_events_are_not_kept_and_old_items_go(tmp_path: Path) -> None:
    write_task(tmp_path, ["test"])
    write_predictions(tmp_path)
    write_task(tmp_path, ["test"], embedding_type="event")
    write_predictions(tmp_path)
    assert not (tmp_path / CLIP_PREDICTIONS_FILE).exists()
    assert read_predictions(tmp_path) is None


def test_missing_predictions_are_named(tmp_path: Path) -> None:
    write_task(tmp_path, ["fold00", "fold01"])
    (tmp_path / "fold01.predictions.pkl").unlink()
    with pytest.raises(TaskError, match="fold01.predictions.pkl"):
        write_predictions(tmp_path)


class RunsCode:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


class RunsCodeInside(RunsCode):
    """As a tensor's own storage, which torch would unpickle freely."""

    def __reduce__(self) -> Any:
        inner = self.file.with_name("inner.pt")
        torch.save(RunsCode(self.file), inner)
        return torch.storage._load_from_bytes, (inner.read_bytes(),)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [RunsCode, RunsCodeInside])
def test_a_pickle_cannot_run_code(tmp_path: Path, kind: type[RunsCode]) -> None:
    write_task(tmp_path, ["test"])
    bad = kind(tmp_path / "ran")
    (tmp_path / "test.predictions.pkl").write_bytes(pickle.dumps({"target": bad, "prediction": bad}))
    with pytest.raises(TaskError, match="cannot read heareval's predictions"):
        write_predictions(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [[1, 2], {"target": torch.zeros(2, 2)}, {"target": 1, "prediction": 2}])
def test_other_content_is_refused(tmp_path: Path, content: object) -> None:
    write_task(tmp_path, ["test"])
    (tmp_path / "test.predictions.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(TaskError, match=r"test\.predictions\.pkl"):
        write_predictions(tmp_path)


def test_damaged_items_are_none(tmp_path: Path) -> None:
    write_task(tmp_path, ["test"])
    write_predictions(tmp_path)
    file = tmp_path / CLIP_PREDICTIONS_FILE
    whole = file.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"PK" + b"\0" * 50, pickle.dumps([1])):
        file.write_bytes(damaged)
        assert read_predictions(tmp_path) is None
    for place in range(0, len(whole), 7):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        read_predictions(tmp_path)  # whatever it finds, it does not raise
    with file.open("wb") as out:
        np.save(out, SAID)
    assert read_predictions(tmp_path) is None
    np.savez(file, metric=np.array("top1_acc"))
    assert read_predictions(tmp_path) is None
    np.savez(file, metric=np.array("top1_acc"), targets_0=TARGETS, predictions_0=SAID[:2])
    assert read_predictions(tmp_path) is None
    objects = np.array([{}], dtype=object)
    np.savez(file, metric=np.array("top1_acc"), targets_0=objects, predictions_0=objects)
    assert read_predictions(tmp_path) is None


def test_accuracies_by_hand() -> None:
    targets = np.eye(24, dtype=bool)[[0, 13, 5, 23]]
    said = np.eye(24, dtype=np.float32)[[0, 1, 5, 20]]  # right, an octave below, right, wrong
    folds = ((targets, said), (targets[:1], said[:1]))
    assert score(ClipPredictions("top1_acc", folds)) == score(ClipPredictions("pitch_acc", folds)) == (2 / 4 + 1) / 2
    assert score(ClipPredictions("chroma_acc", folds)) == (3 / 4 + 1) / 2
    assert score(ClipPredictions("top1_acc", folds), [3, 3, 0, 1], [0]) == (1 / 4 + 1) / 2


def test_mean_average_precision_by_hand() -> None:
    """First class: positives at ranks 1 and 3, (1/1 + 2/3) / 2. Second: at ranks 2 and 3, (1/2 + 2/3) / 2."""
    assert score(ClipPredictions("mAP", ((TARGETS, SAID),))) == pytest.approx(
        ((1 + 2 / 3) / 2 + (1 / 2 + 2 / 3) / 2) / 2
    )
    without = np.array(TARGETS)
    without[:, 1] = False
    items = ClipPredictions("mAP", ((without, SAID),))
    assert score(items) == pytest.approx((1 + 2 / 3) / 2 / 2)  # a class without a clip in the fold is 0, as in heareval
    assert score(ClipPredictions("mAP", ((TARGETS, SAID),)), [0, 3]) == 1  # one that only the draw empties is not
    assert score(ClipPredictions("mAP", ((np.zeros_like(without), SAID),))) == 0


def test_area_under_curve_by_hand() -> None:
    """First class: 3 of 4 pairs are in order. Second: 0.6 and 0.7 against 0.8 and 0.2, 2 of 4."""
    items = ClipPredictions("aucroc", ((TARGETS, SAID),))
    assert score(items) == pytest.approx((3 / 4 + 2 / 4) / 2)
    assert np.isnan(score(items, [3, 3]))
    assert score(items, [0, 1]) == pytest.approx((1 + 0) / 2)


@pytest.mark.parametrize("value", [False, True])
def test_a_class_of_no_or_all_clips_of_a_fold_leaves_no_area(value: bool) -> None:
    """heareval's value is NaN, so that there is no difference for an interval to surround."""
    one_sided = np.array(TARGETS)
    one_sided[:, 1] = value
    items = ClipPredictions("aucroc", ((one_sided, SAID),))
    assert np.isnan(score(items))
    found = compare_predictions([items], [items])
    assert found is not None
    assert np.isnan([found.low, found.high]).all()


def test_the_interval_over_clips_surrounds_the_difference_where_classes_have_no_clip() -> None:
    """Three of six classes have none in the fold: scikit-learn, and with it heareval, gives each 0."""
    generator = np.random.default_rng(0)
    targets = np.zeros((60, 6), bool)
    targets[:, :3] = generator.random((60, 3)) < 0.4
    noise = generator.normal(size=(2, *targets.shape))
    said = [(targets * signal + each).astype(np.float32) for signal, each in zip((1.5, 0.3), noise, strict=True)]
    ours, theirs = ([ClipPredictions("mAP", ((targets, each),))] for each in said)
    by_class = [[average_precision_score(targets[:, index], each[:, index]) for index in range(3)] for each in said]
    values = np.sum(by_class, axis=1) / 6
    assert [score(ours[0]), score(theirs[0])] == pytest.approx(values)
    found = compare_predictions(ours, theirs)
    assert found is not None
    assert found.low < values[0] - values[1] < found.high


@pytest.mark.parametrize("metric", ["mAP", "aucroc"])
def test_rankings_of_resamples_are_those_of_scikit_learn(metric: str) -> None:
    """Ties, empty classes and clips that are drawn again among them."""
    measure = average_precision_score if metric == "mAP" else roc_auc_score
    generator = np.random.default_rng(0)
    for _ in range(20):
        targets = generator.random((12, 5)) < 0.3
        said = generator.integers(4, size=(12, 5)).astype(np.float32)
        chosen = generator.integers(12, size=12)
        truth, values = targets[chosen], said[chosen]
        told = truth.any(axis=0) & ~(truth.all(axis=0) & (metric == "aucroc"))
        wanted = np.mean([measure(truth[:, c], values[:, c]) for c in np.flatnonzero(told)]) if told.any() else np.nan
        if not targets.any(axis=0).all():  # classes that the fold has not, as in heareval
            wanted *= targets.any(axis=0).mean() if metric == "mAP" else np.nan
        assert score(ClipPredictions(metric, ((targets, said),)), list(chosen)) == pytest.approx(wanted, nan_ok=True)


def test_what_can_be_scored() -> None:
    assert all(map(can_score, ("top1_acc", "pitch_acc", "chroma_acc", "mAP", "aucroc")))
    assert not can_score("event_onset_200ms_fms")
    with pytest.raises(TaskError, match="event_onset_200ms_fms"):
        score(ClipPredictions("event_onset_200ms_fms", ((TARGETS, SAID),)))


@pytest.mark.heareval
def test_the_score_is_that_of_heareval(tmp_path: Path) -> None:
    found = make_corpus(tmp_path / "corpus")
    tasks = find_tasks(found)
    for task in tasks:
        metadata = json.loads((task / "task_metadata.json").read_text())
        metadata["evaluation_params"]["task_specific_param_grid"] |= {
            "max_epochs": [6],
            "check_val_every_n_epoch": [3],
        }
        (task / "task_metadata.json").write_text(json.dumps(metadata))
    scores = evaluate("log_mel", tasks, tmp_path / "out", EvaluationConfig("faster", 1), progress=False)
    kept = 0
    for theirs in scores:
        write_predictions(tmp_path / "out" / theirs.task)
        items = read_predictions(tmp_path / "out" / theirs.task)
        if items is not None:
            assert score(items) == pytest.approx(theirs.score, abs=1e-6)
            kept += 1
    assert kept == len(scores) - 1  # one task is of events
