"""Scores are those of scikit-learn or of a hand, for sets of every size, and their intervals hold what they promise."""

import math
import time

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score, roc_auc_score

from asda_core.errors import ConfigError, TaskError
from asda_core.finetune import bootstrap
from asda_core.finetune.bootstrap import Ranking, draw_counts, limit_resamples, resample
from asda_core.finetune.scoring import class_ap_and_auc, confusion_matrix, d_prime, intervals, per_class, score

NAMES = ("dog", "rain", "siren", "engine", "speech")


def one_label(
    num_clips: int, num_classes: int = 5, distance: float = 1.5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Targets and scores: normal noise, and `distance` more for the label."""
    generator = np.random.default_rng(seed)
    targets = np.eye(num_classes, dtype=np.uint8)[generator.integers(num_classes, size=num_clips)]
    return targets, (generator.normal(size=targets.shape) + distance * targets).astype(np.float32)


def many_labels(num_clips: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Any number of labels per clip, scores rounded so that many are equal."""
    generator = np.random.default_rng(seed)
    targets = (generator.random((num_clips, 5)) < [0.05, 0.2, 0.5, 0.8, 0.95]).astype(np.uint8)
    return targets, np.round(generator.normal(size=targets.shape) + targets).astype(np.float32)


def test_numbers_of_a_hand() -> None:
    targets = np.array([[1, 0], [1, 0], [0, 1], [0, 1]])
    given = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.6, 0.4]])
    found = score(targets, given, ("a", "b"), single=True)
    # class a from the top: clip 0 yes, 3 no, 1 yes, 2 no: precision 1 and 2/3; three of four pairs are in order
    assert found.values["accuracy"] == 0.5
    assert found.values["mAP"] == pytest.approx((1 + 2 / 3) / 2)
    assert found.values["AUC"] == pytest.approx(0.75)
    assert found.values["d_prime"] == pytest.approx(math.sqrt(2) * 0.6744897501960817)
    assert (found.num_clips, found.num_classes, found.resamples) == (4, 2, 1000)


@pytest.mark.parametrize("num_clips", [1, 2, 7, 99, 100, 101])
def test_every_clip_counts_in_sets_of_any_size(num_clips: int) -> None:
    targets, given = one_label(num_clips)
    found = score(targets, given, NAMES, single=True, resamples=50)
    present = [each for each in range(5) if targets[:, each].any()]
    expected = [average_precision_score(targets[:, each], given[:, each]) for each in present]
    assert found.num_clips == num_clips
    assert found.num_classes == len(present)
    assert found.values["mAP"] == pytest.approx(np.mean(expected), abs=1e-12)
    assert found.values["accuracy"] == np.mean(targets.argmax(axis=1) == given.argmax(axis=1))
    if num_clips > 1:
        areas = [roc_auc_score(targets[:, each], given[:, each]) for each in present]
        assert found.values["AUC"] == pytest.approx(np.mean(areas), abs=1e-12)


@pytest.mark.parametrize("targets_kind", [np.uint8, bool, np.float32])
def test_several_labels(targets_kind: type) -> None:
    targets, given = many_labels(301)
    found = score(targets.astype(targets_kind), given, NAMES, single=False, resamples=20)
    assert found.values["mAP"] == pytest.approx(average_precision_score(targets, given, average="macro"), abs=1e-12)
    assert found.values["AUC"] == pytest.approx(roc_auc_score(targets, given, average="macro"), abs=1e-12)
    assert found.values["accuracy"] is None
    assert "accuracy" not in found.intervals
    assert found.notes == ("accuracy is left out: it needs exactly one label for every clip",)


def test_of_equal_scores_the_lowest_index_is_predicted() -> None:
    assert score(np.array([[1, 0, 0]]), np.zeros((1, 3)), NAMES[:3], single=True).values["accuracy"] == 1
    assert score(np.array([[0, 1, 0]]), np.zeros((1, 3)), NAMES[:3], single=True).values["accuracy"] == 0


def test_classes_without_a_positive_clip_leave_the_means() -> None:
    targets, given = one_label(60, num_classes=2)
    alone = score(targets, given, NAMES[:2], single=True)
    wider, lower = (np.pad(array, ((0, 0), (0, 3)), constant_values=low) for array, low in ((targets, 0), (given, -9)))
    found = score(wider, lower, NAMES, single=True)
    assert found.values == alone.values
    assert found.num_classes == 2
    left_out = "3 classes without a positive clip are left out of the macro means: siren, engine, speech"
    assert found.notes == (left_out,)
    assert [row["AP"] for row in per_class(wider, lower, NAMES, single=True)][2:] == [None] * 3


def test_many_names_are_cut_short() -> None:
    names = [f"c{number}" for number in range(30)]
    notes = score(np.eye(30)[:2], np.eye(30)[:2], names, single=True).notes
    assert notes[0].startswith("28 classes")
    assert notes[0].endswith("c10, c11 and 18 more")


def test_a_fold_with_a_single_class() -> None:
    targets, given = np.zeros((7, 2)), np.random.default_rng(0).normal(size=(7, 2))
    targets[:, 1] = 1
    found = score(targets, given, ("a", "b"), single=True)
    assert found.values["mAP"] == pytest.approx(1)
    assert found.values["AUC"] is found.values["d_prime"] is None
    assert "AUC needs clips with and without a label: class b is in every clip" in found.notes
    assert "AUC and d_prime are left out: no class has clips with and without it" in found.notes
    assert set(found.intervals) == {"accuracy", "mAP"}


def test_a_single_clip_has_no_intervals() -> None:
    found = score(np.array([[1, 0]]), np.array([[2.0, 1.0]]), ("a", "b"), single=True)
    assert found.values == {"accuracy": 1.0, "mAP": 1.0, "AUC": None, "d_prime": None}
    assert (found.intervals, found.resamples) == ({}, 0)
    assert "intervals are left out: they need at least 2 clips" in found.notes


def test_no_labels_at_all() -> None:
    found = score(np.zeros((3, 2)), np.ones((3, 2)), ("a", "b"), single=False)
    assert set(found.values.values()) == {None}
    assert (found.num_classes, found.intervals) == (0, {})
    assert "mAP is left out: no class has a positive clip" in found.notes


@pytest.mark.parametrize(("sign", "area"), [(1, 1), (-1, 0)])
def test_an_infinite_d_prime_is_left_out(sign: int, area: int) -> None:
    targets = np.eye(2)[[0, 1] * 6]
    found = score(targets, sign * targets, ("a", "b"), single=True)
    assert found.values["AUC"] == area
    assert found.values["d_prime"] is None
    assert f"d_prime is left out: it is infinite where AUC is {area}" in found.notes
    note = "the interval of accuracy has zero width: 12 clips show no spread, which is no evidence of precision"
    assert note in found.notes


def test_d_prime_without_a_finite_interval() -> None:
    """AUC is 1 in so many resamples that the interval of d' would have no end."""
    targets, given = np.eye(2)[[0] * 5 + [1] * 5], np.zeros((10, 2))
    given[:, 1] = [0, 1, 2, 3, 5.5, 5, 6, 7, 8, 9]
    given[:, 0] = -given[:, 1]
    found = score(targets, given, ("a", "b"), single=True)
    assert found.values["d_prime"] is not None
    assert found.intervals["AUC"][1] == 1
    assert "d_prime" not in found.intervals
    assert any(note.startswith("d_prime has no interval") for note in found.notes)


@pytest.mark.parametrize("area", [0.5, 0.6, 0.9, 0.999])
def test_d_prime_is_the_distance_of_two_normal_distributions(area: float) -> None:
    found = d_prime(area)
    assert found is not None
    assert 0.5 * (1 + math.erf(found / 2)) == pytest.approx(area)  # P(x < y) of normal x, y at that distance


@pytest.mark.parametrize(
    ("targets", "given", "message"),
    [
        (np.eye(2), np.array([[0.1, math.nan], [math.nan, 0.2]]), r"clip 0, class rain, is nan.*\(2 in total\)"),
        (np.eye(2), np.array([[0.1, 0.2], [math.inf, 0.2]]), "clip 1, class dog, is inf; expected a finite number"),
        (np.array([[1, 0], [0, 2]]), np.eye(2), "target of clip 1, class rain, is 2; expected 0 or 1"),
        (np.array([[1, math.nan]]), np.eye(2)[:1], "target of clip 0, class rain, is nan"),
        (np.eye(3), np.eye(3), r"\(3, 3\).*expected \(clips, 2\)"),
        (np.eye(2), np.eye(2)[:1], r"targets have the shape \(2, 2\) and scores \(1, 2\)"),
        (np.array([0, 1]), np.array([0.1, 0.2]), r"shape \(2,\)"),
        (np.zeros((0, 2)), np.zeros((0, 2)), "0 clips and 2 classes"),
        (np.array([[1, 0], [1, 1]]), np.eye(2), "clip 1 has 2 labels; expected exactly one"),
        (np.array([[1, 0], [0, 0]]), np.eye(2), "clip 1 has 0 labels"),
    ],
)
def test_what_cannot_be_scored_is_refused(targets: np.ndarray, given: np.ndarray, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        score(targets, given, ("dog", "rain"), single=True)
    with pytest.raises(TaskError, match=message):
        per_class(targets, given, ("dog", "rain"), single=True)


def test_resamples_below_zero_are_refused_and_zero_gives_no_intervals() -> None:
    targets, given = one_label(20)
    with pytest.raises(ConfigError, match="resamples is -1"):
        score(targets, given, NAMES, single=True, resamples=-1)
    found = score(targets, given, NAMES, single=True, resamples=0)
    assert (found.intervals, found.resamples, found.notes) == ({}, 0, ())


def test_per_class_rows_are_those_of_sklearn() -> None:
    targets, given = one_label(101)
    rows = per_class(targets, given, NAMES, single=True)
    true, predicted = targets.argmax(axis=1), given.argmax(axis=1)
    for key, metric in (("recall", recall_score), ("precision", precision_score), ("F1", f1_score)):
        assert [row[key] for row in rows] == pytest.approx(metric(true, predicted, average=None))
    assert [row["class"] for row in rows] == list(NAMES)
    assert [row["clips"] for row in rows] == targets.sum(axis=0).tolist()
    assert [row["AUC"] for row in rows] == pytest.approx(roc_auc_score(targets, given, average=None))


def test_per_class_of_several_labels() -> None:
    targets, given = many_labels(50)
    rows = per_class(targets, given, NAMES, single=False)
    assert {tuple(row) for row in rows} == {("class", "clips", "AP", "AUC")}
    assert [row["AP"] for row in rows] == pytest.approx(average_precision_score(targets, given, average=None))


def test_confusions() -> None:
    true, predicted = [0, 0, 0, 0, 1, 2], [0, 2, 2, 1, 1, 1]
    targets, given = np.eye(4)[true], np.eye(4)[predicted]
    expected = [[1, 1, 2, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert confusion_matrix(targets, given).tolist() == expected
    rows = per_class(targets, given, NAMES[:4], single=True)
    assert [row["confused_with"] for row in rows] == ["siren", None, "rain", None]
    assert rows[1]["precision"] == pytest.approx(1 / 3)
    assert rows[2]["recall"] == rows[2]["precision"] == rows[2]["F1"] == 0
    assert rows[3]["recall"] is rows[3]["precision"] is rows[3]["F1"] is rows[3]["AP"] is None


@pytest.mark.parametrize("make", [one_label, many_labels])
def test_resampled_areas_are_those_of_sklearn_on_repeated_clips(make) -> None:  # type: ignore[no-untyped-def]
    targets, given = make(40)
    truth, weights = targets > 0, draw_counts(np.random.default_rng(1), 40, 30)
    for index in range(5):
        found = np.stack(Ranking(truth[:, index], given[:, index].astype(float)).ap_and_auc(weights), axis=1)
        for resampled, pair in zip(weights.T, found, strict=True):
            clips = np.repeat(np.arange(40), resampled.astype(int))
            expected = np.stack(class_ap_and_auc(truth[clips], given[clips].astype(float)))[:, index]
            np.testing.assert_allclose(pair, expected, atol=1e-12)


def test_resampled_means_leave_out_what_a_resample_does_not_hold() -> None:
    targets, given = one_label(6)  # with few clips some class is missing from most resamples
    truth, scores = targets > 0, given.astype(np.float64)
    found = resample(truth, scores, 60, seed=3)
    weights = draw_counts(np.random.default_rng(3), 6, 60)
    for drawn, column in zip(weights.T, found.T, strict=True):
        clips = np.repeat(np.arange(6), drawn.astype(int))
        expected = score(targets[clips], given[clips], NAMES, single=True, resamples=0).values
        for name, value in zip(("accuracy", "mAP", "AUC"), column, strict=True):
            assert value == pytest.approx(math.nan if expected[name] is None else expected[name], nan_ok=True)


def test_a_resample_is_as_large_as_the_set_and_fair() -> None:
    weights = draw_counts(np.random.default_rng(0), 50, 2000)
    assert (weights.sum(axis=0) == 50).all()
    assert np.abs(weights.mean(axis=1) - 1).max() < 5 / math.sqrt(2000)
    assert weights.var() == pytest.approx(1 - 1 / 50, rel=0.05)


def test_large_sets_are_resampled_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    targets, given = one_label(40)
    truth, scores = targets > 0, given.astype(np.float64)
    whole = resample(truth, scores, 401, seed=0)
    for cells in (1, 100):  # one resample at a time, and two
        monkeypatch.setattr(bootstrap, "BLOCK_CELLS", cells)
        parts = resample(truth, scores, 401, seed=0)
        assert parts.shape == whole.shape == (3, 401)
        np.testing.assert_allclose(parts.mean(axis=1), whole.mean(axis=1), atol=0.02)
        np.testing.assert_allclose(parts.std(axis=1), whole.std(axis=1), rtol=0.15)


def test_large_sets_take_fewer_resamples() -> None:
    assert limit_resamples(400, 10, 1000) == 1000
    assert limit_resamples(20_000, 527, 1000) == 379
    assert limit_resamples(10_000_000, 527, 1000) == 100
    assert limit_resamples(10_000_000, 527, 20) == 20
    assert limit_resamples(1, 10, 1000) == 0


def test_the_same_seed_gives_the_same_intervals() -> None:
    targets, given = one_label(50)
    first, again, other = (score(targets, given, NAMES, True, 100, seed).intervals for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_a_thousand_resamples_take_a_moment() -> None:
    targets, given = one_label(400, 10)
    start = time.perf_counter()
    found = score(targets, given, [str(number) for number in range(10)], single=True)
    assert time.perf_counter() - start < 3
    assert found.resamples == 1000
    for name, value in found.values.items():
        low, high = found.intervals[name]
        assert value is not None
        assert low < value < high


def test_intervals_of_accuracy_hold_the_true_accuracy() -> None:
    """95 of 100 intervals should; with 200 sets, 88 to 99 leave room for chance."""
    generator, held = np.random.default_rng(0), 0
    for _ in range(200):
        targets = np.eye(2)[generator.integers(2, size=150)]
        right = generator.random(150) < 0.7
        given = np.where(right[:, None], targets, 1 - targets)
        low, high = score(targets, given, ("a", "b"), single=True, resamples=200).intervals["accuracy"]
        held += low <= 0.7 <= high
    assert 0.88 <= held / 200 <= 0.99


def test_intervals_of_map_hold_the_expected_map_where_classes_are_small() -> None:
    """Eight clips per class: unless the bias of the resamples is taken off, 69 of 100 intervals hold it."""
    points, found = [], []
    for seed in range(200):
        targets, given = one_label(400, 50, seed=seed)
        truth, scores, once = targets > 0, given.astype(np.float64), np.ones((400, 1), np.float32)
        present = np.flatnonzero(truth.any(axis=0))
        points.append(np.mean([Ranking(truth[:, each], scores[:, each]).ap_and_auc(once)[0] for each in present]))
        drawn = resample(truth, scores, 200, seed)
        found.append(intervals({"accuracy": None, "mAP": float(points[-1]), "AUC": None}, drawn)["mAP"])
    held = np.mean([low <= np.mean(points) <= high for low, high in found])
    assert 0.88 <= held <= 0.99
