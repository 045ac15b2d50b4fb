"""Predictions of a classifier for each clip, stored in a file, and the folder with their evaluation."""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile

from asda_core.errors import TaskError
from asda_core.finetune.bootstrap import limit_resamples, resample
from asda_core.finetune.pictures import draw_confusion
from asda_core.finetune.scoring import (
    ACCURACY,
    AUC,
    D_PRIME,
    MEAN_AVERAGE_PRECISION,
    Scores,
    confusion_matrix,
    intervals,
    per_class,
    score,
)
from asda_core.finetune_config import RESAMPLES
from asda_core.system.files import csv_text, write_atomically, write_text

FORMAT = "asda predictions 1"
"""Format marker stored in every predictions file."""
FORMER_NAME = "given"
"""Name of the probabilities in files of earlier versions."""
PREDICTIONS, SCORES, PER_CLASS = "predictions.npz", "scores.json", "per_class.csv"
CONFUSION_TABLE, CONFUSION_PICTURE = "confusion.csv", "confusion.png"
READ_ERRORS = (ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error)
"""Exceptions that numpy and zipfile raise on truncated or foreign files."""


@dataclass(frozen=True)
class Predictions:
    """Predictions of a classifier for clips with known labels.

    Attributes:
        files: file of each clip.
        targets: (clips, classes) uint8, 1 for a label and 0 for none.
        probabilities: (clips, classes) float32.
        classes: identifier of each class.
        names: display name of each class.
        single: whether every clip has exactly one label.

    Raises:
        TaskError: shapes or types do not match.
    """

    files: tuple[str, ...]
    targets: np.ndarray
    probabilities: np.ndarray
    classes: tuple[str, ...]
    names: tuple[str, ...]
    single: bool

    def __post_init__(self) -> None:
        shape = len(self.files), len(self.classes)
        for name, array, dtype in (
            ("targets", self.targets, np.uint8),
            ("probabilities", self.probabilities, np.float32),
        ):
            if array.shape != shape or array.dtype != dtype:
                expected = f"{dtype.__name__} {shape}, as there are {shape[0]} files and {shape[1]} classes"
                raise TaskError(f"{name} are {array.dtype} {array.shape}; expected {expected}")
        if len(self.names) != len(self.classes):
            raise TaskError(f"{len(self.names)} names for {len(self.classes)} classes; expected one for each")

    def score(self, resamples: int = RESAMPLES, seed: int = 0) -> Scores:
        """Score all clips at once; arguments and errors as in `scoring.score`."""
        return score(self.targets, self.probabilities, self.names, self.single, resamples, seed)

    @property
    def main_metric(self) -> str:
        """Metric by which models are selected and compared: accuracy, or mAP if a clip may have several labels."""
        return ACCURACY if self.single else MEAN_AVERAGE_PRECISION


def save_predictions(file: Path, predictions: Predictions) -> None:
    """Write predictions atomically as a compressed `.npz` of plain arrays.

    Raises:
        OSError: the file cannot be written.
    """

    def write(part: Path) -> None:
        with part.open("wb") as opened:  # numpy adds `.npz` to names, but not to open files
            np.savez_compressed(
                opened,
                format=FORMAT,
                files=np.array(predictions.files, dtype=np.str_),
                targets=predictions.targets,
                probabilities=predictions.probabilities,
                classes=np.array(predictions.classes, dtype=np.str_),
                names=np.array(predictions.names, dtype=np.str_),
                single=predictions.single,
            )

    write_atomically(file, write)


def load_predictions(file: str | Path) -> Predictions:
    """Read what `save_predictions` wrote; no code in the file is executed.

    Raises:
        TaskError: the file is missing, damaged, or not a predictions file.
    """
    file = Path(file)
    try:
        with file.open("rb") as opened:
            predictions = _read(opened)
    except OSError as error:
        raise TaskError(f"{file}: cannot be read ({error.strerror or error})") from None
    except READ_ERRORS as error:
        raise TaskError(
            f"{file}: damaged, or not a predictions file ({error}); delete it and run again the command that wrote it"
        ) from None
    if predictions is None:
        raise TaskError(f"{file}: not a predictions file, or a truncated one; expected {PREDICTIONS} of an evaluation")
    return predictions


def _read(opened: io.BufferedReader) -> Predictions | None:
    """Return the predictions, or None if the file holds something else."""
    if not zipfile.is_zipfile(opened):
        return None
    opened.seek(0)
    with NpzFile(opened, allow_pickle=False) as loaded:
        if "format" not in loaded or str(loaded["format"]) != FORMAT:
            return None
        files, classes, names = (tuple(map(str, loaded[key].tolist())) for key in ("files", "classes", "names"))
        probabilities = loaded["probabilities" if "probabilities" in loaded else FORMER_NAME]
        return Predictions(files, loaded["targets"], probabilities, classes, names, bool(loaded["single"]))


def pool_folds(parts: Sequence[Predictions]) -> Predictions:
    """Concatenate the predictions of all folds into those of one set.

    Raises:
        TaskError: no folds, different classes, or a file that occurs twice.
    """
    if not parts:
        raise TaskError("no predictions to pool; expected those of at least one fold")
    first = parts[0]
    for number, part in enumerate(parts):
        if (part.classes, part.names, part.single) != (first.classes, first.names, first.single):
            raise TaskError(f"predictions {number} do not match predictions 0: {_difference(first, part)}")
    files = tuple(file for part in parts for file in part.files)
    seen: set[str] = set()
    for file in files:
        if file in seen:
            raise TaskError(f"{file} occurs twice in the predictions; expected each clip in one fold only")
        seen.add(file)
    targets, probabilities = (
        np.concatenate(arrays) for arrays in zip(*((part.targets, part.probabilities) for part in parts), strict=True)
    )
    return Predictions(files, targets, probabilities, first.classes, first.names, first.single)


RESAMPLED = (ACCURACY, MEAN_AVERAGE_PRECISION, AUC)
"""Metrics in the rows that `resample` returns."""


def interval_over_folds(parts: Sequence[Predictions], resamples: int, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Confidence intervals of the mean over folds of each metric; clips are resampled within every fold.

    Scores of different folds come from different models and are not compared with each other.
    """
    points, resampled = [], []
    for number, part in enumerate(parts):
        truth = part.targets.astype(bool)
        values = part.score(resamples=0).values
        count = limit_resamples(len(truth), len(part.classes), resamples)
        points.append([values[name] for name in RESAMPLED])
        resampled.append(
            resample(truth, part.probabilities.astype(np.float64), count, seed + number) if count else None
        )
    if any(scores is None for scores in resampled):
        return {}
    width = min(scores.shape[1] for scores in resampled if scores is not None)
    fold_means = np.mean([scores[:, :width] for scores in resampled if scores is not None], axis=0)
    means = {
        name: None if any(row[index] is None for row in points) else float(np.mean([row[index] for row in points]))
        for index, name in enumerate(RESAMPLED)
    }
    return {name: value for name, value in intervals(means, fold_means).items() if name != D_PRIME}


def _difference(first: Predictions, other: Predictions) -> str:
    """Describe the first difference between the classes of two sets."""
    if first.single != other.single:
        return "one has a single label for each clip, the other has several"
    if len(first.classes) != len(other.classes):
        return f"{len(other.classes)} classes, expected {len(first.classes)}"
    pairs = [*zip(first.classes, other.classes, strict=True), *zip(first.names, other.names, strict=True)]
    index, (expected, actual) = next((position, pair) for position, pair in enumerate(pairs) if pair[0] != pair[1])
    return f"class {index % len(first.classes)} is {actual!r}, expected {expected!r}"


def write_evaluation(folder: Path, predictions: Predictions, title: str, resamples: int = RESAMPLES) -> Scores:
    """Score predictions and write all files of the evaluation; `scores.json` is written last.

    Args:
        folder: created if needed; receives `predictions.npz`, `per_class.csv` and `scores.json`, and if every clip has
            one label `confusion.csv` and `confusion.png`. Each is written atomically.
        predictions: predictions for the clips to score.
        title: title of the picture.
        resamples: resamples for the intervals, see `score`.

    Raises:
        TaskError: the predictions cannot be scored; then nothing is written.
        OSError: a file cannot be written.
    """
    scores = predictions.score(resamples)
    targets, probabilities, names = predictions.targets, predictions.probabilities, predictions.names
    rows = per_class(targets, probabilities, names, predictions.single)
    folder.mkdir(parents=True, exist_ok=True)
    save_predictions(folder / PREDICTIONS, predictions)
    write_text(folder / PER_CLASS, _class_table(predictions.classes, rows))
    if predictions.single:
        matrix = confusion_matrix(targets, probabilities)
        counts = ([name, *row] for name, row in zip(names, matrix.tolist(), strict=True))
        write_text(folder / CONFUSION_TABLE, csv_text([["true \\ predicted", *names], *counts]))
        draw_confusion(matrix, names, folder / CONFUSION_PICTURE, title)
    write_text(folder / SCORES, json.dumps(asdict(scores), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return scores


def _class_table(classes: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    """Format the rows of `per_class`, whose classes are names, after a column of class identifiers."""
    header = ["class", "name", *list(rows[0])[1:]]
    cells = ([f"{cell:.6f}" if isinstance(cell, float) else cell for cell in row.values()] for row in rows)
    return csv_text([header, *([identifier, *row] for identifier, row in zip(classes, cells, strict=True))])
