"""Predictions of a model for every test clip, kept with the scores so that models can be compared clip by clip."""

import functools
import io
import json
import math
import pickle
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from asda_core.errors import TaskError
from asda_core.finetune.bootstrap import Ranking, macro_means
from asda_core.system.files import write_atomically
from asda_hear.evaluate.scores import FIXED_SPLITS, METADATA_FILE

Fold = tuple[NDArray[np.bool_], NDArray[np.float32]]
ResampleWeights = Float[np.ndarray, "clips resamples"]
Floats = Float[np.ndarray, " resamples"]

CLIP_PREDICTIONS_FILE = "items.npz"
PREDICTIONS_FILE = "{fold}.predictions.pkl"
"""File that heareval writes for each test fold."""
READ_ERRORS = (OSError, EOFError, ValueError, KeyError, TypeError, NotImplementedError, zipfile.BadZipFile, zlib.error)
"""Exceptions that numpy raises for a file that is not an archive of arrays, or a corrupted one."""
NOTES_OF_AN_OCTAVE = 12
"""Chroma of a class in heareval: its number modulo this."""


@dataclass(frozen=True, eq=False)
class ClipPredictions:
    """Targets and predictions of one model on one scene task.

    Attributes:
        metric: the primary metric by HEAR's name.
        folds: for each test fold (targets, predictions), both (clips, classes).
    """

    metric: str
    folds: tuple[Fold, ...]


def write_predictions(folder: Path) -> None:
    """Write `items.npz` from the predictions that heareval has just made in `folder`; nothing for event tasks.

    Raises:
        TaskError: predictions are missing, or hold something other than tensors.
    """
    metadata = json.loads((folder / METADATA_FILE).read_text(encoding="utf-8"))
    (folder / CLIP_PREDICTIONS_FILE).unlink(missing_ok=True)
    if metadata["embedding_type"] != "scene":
        return
    arrays: dict[str, NDArray[Any]] = {"metric": np.array(metadata["evaluation"][0])}
    names = ["test"] if metadata["split_mode"] == FIXED_SPLITS else metadata["splits"]
    for number, name in enumerate(names):
        tensors = _read_tensors(folder / PREDICTIONS_FILE.format(fold=name))
        arrays[f"targets_{number}"] = tensors["target"].numpy() > 0
        arrays[f"predictions_{number}"] = tensors["prediction"].numpy().astype(np.float32)
    write_atomically(folder / CLIP_PREDICTIONS_FILE, functools.partial(_write_arrays, arrays=arrays))


def _write_arrays(file: Path, arrays: dict[str, NDArray[Any]]) -> None:
    with file.open("wb") as out:
        np.savez_compressed(out, allow_pickle=False, **arrays)


def read_predictions(folder: Path) -> ClipPredictions | None:
    """Read `items.npz` and no other file; None if it is missing or damaged."""
    try:
        with (folder / CLIP_PREDICTIONS_FILE).open("rb") as content, np.load(content, allow_pickle=False) as file:
            arrays = dict(file)
        count = (len(arrays) - 1) // 2
        folds = tuple((arrays[f"targets_{number}"], arrays[f"predictions_{number}"]) for number in range(count))
        items = ClipPredictions(str(arrays["metric"]), folds)
    except READ_ERRORS:
        return None
    return items if folds and all(_is_fold(fold) for fold in folds) else None


def _is_fold(fold: Fold) -> bool:
    targets, predictions = fold
    return targets.dtype == bool and targets.ndim == 2 and targets.shape == predictions.shape and targets.size > 0


class _TensorsOnly(pickle.Unpickler):
    """Unpickler that builds only tensors: a pickle may name any function, so all but those of a tensor are rejected."""

    def find_class(self, module: str, name: str) -> Any:
        allowed: dict[tuple[str, str], Any] = {
            ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
            ("torch.storage", "_load_from_bytes"): _load_storage,
            ("collections", "OrderedDict"): dict,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of a tensor")
        return allowed[module, name]


def _load_storage(content: bytes) -> Any:
    """Load a storage with tensors only; torch's own function for this allows any pickle inside."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _read_tensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        with file.open("rb") as content:
            return _tensors_of(content)
    except (OSError, EOFError, pickle.UnpicklingError, RuntimeError, ValueError, KeyError) as error:
        raise TaskError(f"cannot read heareval's predictions from {file} ({error}).") from error


def _tensors_of(content: BinaryIO) -> dict[str, torch.Tensor]:
    loaded = _TensorsOnly(content).load()
    if not isinstance(loaded, dict) or not {"target", "prediction"} <= set(loaded):
        raise ValueError("expected a dictionary with `target` and `prediction`")
    tensors = {name: loaded[name] for name in ("target", "prediction")}
    if not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise ValueError("`target` and `prediction` must be tensors")
    return tensors


def can_score(metric: str) -> bool:
    """Whether `scorer` knows a metric of HEAR."""
    return metric in SUPPORTED_METRICS


def scorer(clip_predictions: ClipPredictions) -> Callable[[Sequence[ResampleWeights]], Floats]:
    """Return a function for the primary metric of many resamples: the mean over folds, NaN if one cannot be scored.

    It takes for each fold how often each clip is in each resample, (clips, resamples); all 1 gives heareval's value,
    to which a class without a positive in the fold adds 0 (mAP), or makes it NaN (aucroc, also without a negative).

    Args:
        clip_predictions: of one model.

    **Differs**: a class that only the draw leaves without a positive (for aucroc: or without a negative) gets the
    mean of the others that the fold has; heareval would give it 0, or the draw NaN. A draw without positives is NaN.

    Raises:
        TaskError: the metric is not one that `can_score` knows.
    """
    if not can_score(clip_predictions.metric):
        raise TaskError(
            f"{clip_predictions.metric} cannot be computed from stored predictions; supported: "
            f"{', '.join(SUPPORTED_METRICS)}."
        )
    measures = [_fold_measure(clip_predictions.metric, *fold) for fold in clip_predictions.folds]

    def score(weights: Sequence[ResampleWeights]) -> Floats:
        by_fold = [measure(fold_weights) for measure, fold_weights in zip(measures, weights, strict=True)]
        return np.asarray(np.mean(by_fold, axis=0))

    return score


def _fold_measure(
    metric: str, targets: NDArray[np.bool_], predictions: NDArray[np.float32]
) -> Callable[[ResampleWeights], Floats]:
    if metric in RANKINGS:
        present, has_both = targets.any(axis=0), targets.any(axis=0) & ~targets.all(axis=0)
        if metric == "mAP" and not present.any():
            return lambda weights: np.zeros(weights.shape[1])  # as heareval
        factor = present.mean() if metric == "mAP" else 1.0 if has_both.all() else math.nan
        rankings = [Ranking(targets[:, index], predictions[:, index]) for index in np.flatnonzero(present)]
        return lambda weights: factor * macro_means(rankings, weights)[RANKINGS.index(metric)]
    modulus = NOTES_OF_AN_OCTAVE if metric == "chroma_acc" else None
    hits = (_top_class(targets, modulus) == _top_class(predictions, modulus)).astype(np.float64)
    return lambda weights: hits @ weights / weights.sum(axis=0, dtype=np.float64)


def _top_class(values: NDArray[Any], modulus: int | None) -> NDArray[np.intp]:
    """Return the number of the class with the highest value of each clip; modulo an octave for chroma."""
    best = values.argmax(axis=1)
    return np.asarray(best % modulus if modulus else best)


ACCURACIES = ("chroma_acc", "pitch_acc", "top1_acc")
"""Metrics that are the share of clips whose likeliest class is right."""
RANKINGS = ("mAP", "aucroc")
"""Metrics of the ranking of the clips by each class, in the order of `macro_means`."""
SUPPORTED_METRICS = (*ACCURACIES, *RANKINGS)
