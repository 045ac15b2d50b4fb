"""Metrics of a classifier: accuracy, mAP, AUC and d', over all clips and for each class."""

import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import ndtri

from asda_core.errors import ConfigError, TaskError, counted
from asda_core.finetune.bootstrap import limit_resamples, resample
from asda_core.finetune_config import RESAMPLES

ACCURACY, MEAN_AVERAGE_PRECISION, AUC, D_PRIME = "accuracy", "mAP", "AUC", "d_prime"
TAILS = (2.5, 97.5)
"""Percentiles between which 95 % of the resamples lie."""
MAX_NAMES = 10
"""Largest number of classes that one note names."""


@dataclass(frozen=True)
class Scores:
    """Metrics of a classifier on a set of clips.

    Attributes:
        values: accuracy, mAP and AUC in [0, 1], and d_prime; None where it cannot be computed, with a note.
        intervals: 95 % confidence intervals, of the values that have one.
        resamples: number of resamples behind the intervals; 0 without intervals.
        num_clips: number of clips.
        num_classes: number of classes in the mean of mAP; if fewer are in that of AUC, a note names the others.
        notes: one line for each thing that is excluded or unreliable.
    """

    values: Mapping[str, float | None]
    intervals: Mapping[str, tuple[float, float]]
    resamples: int
    num_clips: int
    num_classes: int
    notes: tuple[str, ...]


def score(
    targets: np.ndarray,
    outputs: np.ndarray,
    classes: Sequence[str],
    single: bool,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Scores:
    """Score all clips of a set at once, whatever their number.

    Accuracy is the share of clips whose largest score is that of their label; ties go to the lowest index. mAP and AUC
    are means over the classes. The intervals cover the variation over clips, not over seeds.

    Args:
        targets: (clips, classes), 1 for a label and 0 for none.
        outputs: (clips, classes), scores or probabilities, finite.
        classes: names of the classes, for the notes.
        single: whether every clip has exactly one label; accuracy is computed only then.
        resamples: resamples of the clips for the intervals; 0 for none. Large sets take fewer, see `limit_resamples`.
        seed: seed of the resamples.

    Raises:
        ConfigError: negative resamples.
        TaskError: no clips, mismatched shapes, scores that are not finite, targets that are not 0 or 1.

    **Source**: average precision and AUC by scikit-learn; d' = sqrt(2) ppf(mean AUC), Gong et al., PSLA (2021);
    intervals by the percentile bootstrap, Efron (1979).
    **Differs**: released ASDA gives mAP 0 below 100 clips, drops the last clip of an odd set, and counts a class
    without positive clips as 0; here such classes are excluded from the mean. HEAR averages the d' of each class.
    """
    if resamples < 0:
        raise ConfigError(f"resamples is {resamples}; expected 0 (no intervals) or more")
    truth, scores = _checked(targets, outputs, classes, single)
    average_precision, area = class_ap_and_auc(truth, scores)
    points = {
        ACCURACY: float(np.mean(truth[np.arange(len(truth)), scores.argmax(axis=1)])) if single else None,
        MEAN_AVERAGE_PRECISION: _mean(average_precision),
        AUC: _mean(area),
    }
    count = limit_resamples(len(truth), len(classes), resamples)
    bounds = intervals(points, resample(truth, scores, count, seed)) if count else {}
    values = {**points, D_PRIME: d_prime(points[AUC])}
    notes = [*_exclusion_notes(truth, classes, values)]
    if resamples:
        notes += _interval_notes(values, bounds, len(truth), resamples, count)
    return Scores(values, bounds, count, len(truth), int(truth.any(axis=0).sum()), tuple(notes))


def per_class(targets: np.ndarray, outputs: np.ndarray, classes: Sequence[str], single: bool) -> list[dict[str, Any]]:
    """Return one row for each class, in order.

    Returns:
        class, clips (with the label), AP and AUC; with one label per clip also recall, precision, F1, and
        confused_with, the class that its clips are most often mistaken for. None for undefined values.

    Raises:
        TaskError: as `score`.
    """
    truth, scores = _checked(targets, outputs, classes, single)
    average_precision, area = class_ap_and_auc(truth, scores)
    matrix = confusion_matrix(truth, scores) if single else None
    rows = []
    for index, name in enumerate(classes):
        row: dict[str, Any] = {"class": name, "clips": int(truth[:, index].sum())}
        row |= {"AP": _number(average_precision[index]), "AUC": _number(area[index])}
        rows.append(row if matrix is None else row | _decisions(matrix, index, classes))
    return rows


def confusion_matrix(targets: np.ndarray, outputs: np.ndarray) -> Int[np.ndarray, "classes classes"]:
    """Number of clips by true class (rows) and predicted class (columns).

    Args:
        targets: (clips, classes), 1 for the one label of each clip.
        outputs: (clips, classes), scores; ties go to the lowest index.
    """
    num_classes = targets.shape[1]
    pairs = targets.argmax(axis=1) * num_classes + outputs.argmax(axis=1)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_ap_and_auc(
    truth: Bool[np.ndarray, "clips classes"], scores: Float[np.ndarray, "clips classes"]
) -> tuple[Float[np.ndarray, " classes"], Float[np.ndarray, " classes"]]:
    """Average precision and AUC of each class; NaN without a positive clip, for AUC also without a negative one."""
    metrics = importlib.import_module("sklearn.metrics")  # would add a second to every start of `asda`
    average_precision, area = np.full((2, truth.shape[1]), math.nan)
    for index in np.flatnonzero(truth.any(axis=0)):
        average_precision[index] = metrics.average_precision_score(truth[:, index], scores[:, index])
        if not truth[:, index].all():
            area[index] = metrics.roc_auc_score(truth[:, index], scores[:, index])
    return average_precision, area


def intervals(
    points: Mapping[str, float | None], drawn: Float[np.ndarray, "3 resamples"]
) -> dict[str, tuple[float, float]]:
    """Return the 95 % confidence interval of each available value; that of d' is the AUC interval converted to d'.

    A resample contains some positive clips twice, which raises average precision, strongly so if a class has few. mAP's
    resamples are shifted back by that bias: 94 % of the intervals then contain the expected mAP, instead of 69 % (600
    simulated sets of 400 clips in 50 classes; `tests/finetune/test_scoring.py` repeats it).

    Args:
        points: accuracy, mAP and AUC of the set.
        drawn: the same of its resamples, NaN if undefined.
    """
    bounds: dict[str, tuple[float, float]] = {}
    for (name, point), row in zip(points.items(), drawn, strict=True):
        defined = row[~np.isnan(row)]
        if point is not None and len(defined):
            bias = defined.mean() - point if name == MEAN_AVERAGE_PRECISION else 0.0
            low, high = np.clip(np.percentile(defined, TAILS) - bias, 0, 1)
            bounds[name] = (float(low), float(high))
    low_end, high_end = (d_prime(end) for end in bounds.get(AUC, (None, None)))
    if d_prime(points[AUC]) is not None and low_end is not None and high_end is not None:
        bounds[D_PRIME] = (low_end, high_end)
    return bounds


def d_prime(area: float | None) -> float | None:
    """Distance of two normal distributions with that AUC, in standard deviations; None where it is infinite."""
    return math.sqrt(2) * float(ndtri(area)) if area is not None and 0 < area < 1 else None


def _checked(
    targets: np.ndarray, outputs: np.ndarray, classes: Sequence[str], single: bool
) -> tuple[Bool[np.ndarray, "clips classes"], Float[np.ndarray, "clips classes"]]:
    """Check the arguments; return targets as booleans, and scores in float64, which preserves their ties."""
    if targets.ndim != 2 or targets.shape != outputs.shape or targets.shape[1] != len(classes):
        shapes = f"targets have the shape {targets.shape} and scores {outputs.shape}"
        raise TaskError(f"{shapes}; expected (clips, {len(classes)}) for both, as there are {len(classes)} classes")
    if not targets.size:
        raise TaskError(f"nothing to score: {len(targets)} clips and {len(classes)} classes; expected at least one")
    _raise_for(~np.isin(targets, (0, 1)), "target", targets, classes, "0 or 1")
    _raise_for(~np.isfinite(outputs), "score", outputs, classes, "a finite number")
    truth = targets != 0
    labels = truth.sum(axis=1)
    if single and (labels != 1).any():
        clip = int(np.argmax(labels != 1))
        raise TaskError(f"clip {clip} has {labels[clip]} labels; expected exactly one for every clip of this set")
    return truth, outputs.astype(np.float64)


def _raise_for(bad: np.ndarray, what: str, values: np.ndarray, classes: Sequence[str], expected: str) -> None:
    """Raise an error that names the first bad value, if there is one."""
    if bad.any():
        clip, index = (int(axis[0]) for axis in np.nonzero(bad))
        where = f"the {what} of clip {clip}, class {classes[index]}"
        raise TaskError(f"{where}, is {values[clip, index]}; expected {expected} ({bad.sum()} in total)")


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _mean(values: np.ndarray) -> float | None:
    """Mean of the values that are not NaN; None if there are none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else None


def _decisions(matrix: np.ndarray, index: int, classes: Sequence[str]) -> dict[str, Any]:
    """Recall, precision and F1 of one class, and the class that most of its misclassified clips were assigned to."""
    hits, clips, predicted = int(matrix[index, index]), int(matrix[index].sum()), int(matrix[:, index].sum())
    errors = np.where(np.arange(len(matrix)) == index, 0, matrix[index])
    return {
        "recall": hits / clips if clips else None,
        "precision": hits / predicted if predicted else None,
        "F1": 2 * hits / (clips + predicted) if clips + predicted else None,
        "confused_with": classes[int(errors.argmax())] if errors.any() else None,
    }


def _exclusion_notes(truth: np.ndarray, classes: Sequence[str], values: Mapping[str, float | None]) -> Iterator[str]:
    """Yield notes on classes excluded from the means and on missing values."""
    absent, everywhere = np.flatnonzero(~truth.any(axis=0)), np.flatnonzero(truth.all(axis=0))
    if len(absent):
        without = counted(len(absent), "class without a positive clip is", "classes without a positive clip are")
        yield f"{without} left out of the macro means: {_named(absent, classes)}"
    if len(everywhere):
        which = "class {} is" if len(everywhere) == 1 else "classes {} are"
        yield f"AUC needs clips with and without a label: {which.format(_named(everywhere, classes))} in every clip"
    if values[ACCURACY] is None:
        yield "accuracy is left out: it needs exactly one label for every clip"
    if values[MEAN_AVERAGE_PRECISION] is None:
        yield "mAP is left out: no class has a positive clip"
    if values[AUC] is None:
        yield "AUC and d_prime are left out: no class has clips with and without it"
    elif values[D_PRIME] is None:
        yield f"d_prime is left out: it is infinite where AUC is {values[AUC]:.0f}"


def _named(indices: np.ndarray, classes: Sequence[str]) -> str:
    names = ", ".join(classes[index] for index in indices[:MAX_NAMES])
    return names if len(indices) <= MAX_NAMES else f"{names} and {len(indices) - MAX_NAMES} more"


def _interval_notes(
    values: Mapping[str, float | None],
    intervals: Mapping[str, tuple[float, float]],
    num_clips: int,
    requested: int,
    count: int,
) -> Iterator[str]:
    """Yield notes on the reliability of the intervals."""
    if not count:
        yield "intervals are left out: they need at least 2 clips"
        return
    if count < requested:
        yield f"intervals use {count} resamples instead of {requested}, because there are many clips and classes"
    for name in (name for name, value in values.items() if value is not None):
        if name not in intervals:
            yield f"{name} has no interval: in too many resamples it is infinite or cannot be computed"
        elif intervals[name][0] == intervals[name][1]:
            yield (
                f"the interval of {name} has zero width: {num_clips} clips show no spread, "
                "which is no evidence of precision"
            )
