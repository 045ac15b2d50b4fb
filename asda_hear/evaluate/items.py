"""What a model said about every test clip: kept beside the scores, so that models can be compared clip by clip."""

import functools
import importlib
import io
import json
import math
import pickle
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from asda_core.errors import TaskError
from asda_core.files import write_whole

Fold = tuple[NDArray[np.bool_], NDArray[np.float32]]
Chosen = Sequence[NDArray[np.int64]]

ITEMS_FILE = "items.npz"
PREDICTIONS = "{fold}.predictions.pkl"
"""What heareval leaves for each test fold."""
DAMAGED = (OSError, EOFError, ValueError, KeyError, TypeError, NotImplementedError, zipfile.BadZipFile, zlib.error)
"""What numpy raises for a file that is no archive of arrays, or one with a wrong byte."""
NOTES_OF_AN_OCTAVE = 12
"""heareval's chroma: the number of a class modulo this."""


@dataclass(frozen=True, eq=False)
class Items:
    """Targets and predictions of one model on one scene task.

    Attributes:
        metric: the primary metric by HEAR's name.
        folds: for each test fold (targets, predictions), both (clips, classes).
    """

    metric: str
    folds: tuple[Fold, ...]

    @functools.cached_property
    def hits(self) -> tuple[NDArray[np.bool_], ...]:
        """For each fold, whether the likeliest class of each clip (of its octave, for chroma) is the right one."""
        modulus = NOTES_OF_AN_OCTAVE if self.metric == "chroma_acc" else None
        return tuple(_likeliest(targets, modulus) == _likeliest(said, modulus) for targets, said in self.folds)


def _likeliest(values: NDArray[Any], modulus: int | None) -> NDArray[np.intp]:
    best = values.argmax(axis=1)
    return np.asarray(best % modulus if modulus else best)


def keep_items(folder: Path) -> None:
    """Write `items.npz` from the predictions that heareval has just made in `folder`; nothing for event tasks.

    Raises:
        TaskError: predictions are missing, or hold something else than tensors.
    """
    metadata = json.loads((folder / "task_metadata.json").read_text())
    (folder / ITEMS_FILE).unlink(missing_ok=True)
    if metadata["embedding_type"] != "scene":
        return
    arrays: dict[str, NDArray[Any]] = {"metric": np.array(metadata["evaluation"][0])}
    names = ["test"] if metadata["split_mode"] == "trainvaltest" else metadata["splits"]
    for number, name in enumerate(names):
        tensors = _read_tensors(folder / PREDICTIONS.format(fold=name))
        arrays[f"targets_{number}"] = tensors["target"].numpy() > 0
        arrays[f"predictions_{number}"] = tensors["prediction"].numpy().astype(np.float32)
    write_whole(folder / ITEMS_FILE, functools.partial(_write_arrays, arrays=arrays))


def _write_arrays(file: Path, arrays: dict[str, NDArray[Any]]) -> None:
    with file.open("wb") as out:
        np.savez_compressed(out, allow_pickle=False, **arrays)


def read_items(folder: Path) -> Items | None:
    """Read `items.npz` only; None where it is missing or damaged."""
    try:
        with (folder / ITEMS_FILE).open("rb") as content, np.load(content, allow_pickle=False) as file:
            arrays = dict(file)
        count = (len(arrays) - 1) // 2
        folds = tuple((arrays[f"targets_{number}"], arrays[f"predictions_{number}"]) for number in range(count))
        items = Items(str(arrays["metric"]), folds)
    except DAMAGED:
        return None
    return items if folds and all(_is_fold(fold) for fold in folds) else None


def _is_fold(fold: Fold) -> bool:
    targets, predictions = fold
    return targets.dtype == bool and targets.ndim == 2 and targets.shape == predictions.shape and targets.size > 0


class _TensorsOnly(pickle.Unpickler):
    """Builds tensors and nothing else: a pickle may name any function, so all but those of a tensor are refused."""

    def find_class(self, module: str, name: str) -> Any:
        known: dict[tuple[str, str], Any] = {
            ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
            ("torch.storage", "_load_from_bytes"): _load_storage,
            ("collections", "OrderedDict"): dict,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a tensor")
        return known[module, name]


def _load_storage(content: bytes) -> Any:
    """torch's own function for this allows any pickle inside."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _read_tensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        with file.open("rb") as content:
            return _tensors_of(content)
    except (OSError, EOFError, pickle.UnpicklingError, RuntimeError, ValueError, KeyError) as problem:
        raise TaskError(f"{file}: no predictions of heareval can be read there ({problem}).") from problem


def _tensors_of(content: BinaryIO) -> dict[str, torch.Tensor]:
    found = _TensorsOnly(content).load()
    if not isinstance(found, dict) or not {"target", "prediction"} <= set(found):
        raise ValueError("expected a dictionary with `target` and `prediction`")
    tensors = {name: found[name] for name in ("target", "prediction")}
    if not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise ValueError("`target` and `prediction` must be tensors")
    return tensors


def can_score(metric: str) -> bool:
    """Whether `score` knows a metric of HEAR."""
    return metric in ACCURACIES or metric in RANKINGS


def score(items: Items, chosen: Chosen | None = None) -> float:
    """The primary metric, mean over folds; on all clips it is heareval's own number.

    Args:
        items: of one model.
        chosen: for each fold the numbers of the clips to score, with repeats as a bootstrap draws them.

    **Differs**: among chosen clips a class without a positive (for aucroc: or without a negative) is left out of the
    mean over classes; heareval gives it 0 (mAP) or the whole fold NaN (aucroc), which only says what was drawn.

    Raises:
        TaskError: the metric is not one that `can_score` knows.
    """
    if not can_score(items.metric):
        raise TaskError(f"{items.metric} cannot be computed from kept predictions; {', '.join(KNOWN)} can.")
    numbers = range(len(items.folds))
    return sum(_score_fold(items, number, None if chosen is None else chosen[number]) for number in numbers) / len(
        numbers
    )


def _score_fold(items: Items, number: int, chosen: NDArray[np.int64] | None) -> float:
    if items.metric in ACCURACIES:
        hits = items.hits[number]
        return float((hits if chosen is None else hits[chosen]).mean())
    targets, predictions = items.folds[number]
    if chosen is not None:
        targets, predictions = targets[chosen], predictions[chosen]
        told = targets.any(axis=0) & ~(targets.all(axis=0) & (items.metric == "aucroc"))
        if not told.any():
            return math.nan
        targets, predictions = targets[:, told], predictions[:, told]
    return RANKINGS[items.metric](targets, predictions)


def _sklearn_metrics() -> Any:
    """Imported when a score needs it: a second that every start of `asda-hear` would take else."""
    return importlib.import_module("sklearn.metrics")


def _mean_average_precision(targets: NDArray[np.bool_], predictions: NDArray[np.float32]) -> float:
    """Macro average; a class without a positive counts as 0, as heareval has it (sklearn warns of it)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return float(_sklearn_metrics().average_precision_score(targets, predictions, average="macro"))


def _area_under_curve(targets: NDArray[np.bool_], predictions: NDArray[np.float32]) -> float:
    """Macro average; NaN where a class has only one kind of clip."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return float(_sklearn_metrics().roc_auc_score(targets, predictions, average="macro"))
    except ValueError:
        return math.nan


ACCURACIES = frozenset({"top1_acc", "pitch_acc", "chroma_acc"})
"""The share of clips whose likeliest class is right."""
RANKINGS: dict[str, Callable[[NDArray[np.bool_], NDArray[np.float32]], float]] = {
    "mAP": _mean_average_precision,
    "aucroc": _area_under_curve,
}
"""Metrics of the order in which a class ranks the clips."""
KNOWN = (*sorted(ACCURACIES), *RANKINGS)
