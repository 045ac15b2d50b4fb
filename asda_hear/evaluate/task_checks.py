"""Input of an evaluation: the tasks, whether heareval can read them, and the settings of its search."""

import csv
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from asda_core.errors import ConfigError, TaskError, counted, unknown_message
from asda_core.labelled.examples import TRAIN_VALID_TEST
from asda_hear.evaluate.scores import FIXED_SPLITS, METADATA_FILE

VOCABULARY_FILE = "labelvocabulary.csv"
MIN_CLASSES = 2
"""Number of classes below which a multiclass task is trivial."""
MIN_FOLDS = 3
"""heareval trains on what is neither the test nor the validation fold."""
KEYS = (
    "task_name", "embedding_type", "prediction_type", "split_mode", "sample_duration", "evaluation", "splits",
)  # fmt: skip
"""Keys that heareval reads from a task's metadata."""
KNOWN_METRICS: Mapping[str, tuple[str, ...]] = {
    "scene": ("top1_acc", "pitch_acc", "chroma_acc", "mAP", "d_prime", "aucroc"),
    "event": (
        "event_onset_200ms_fms", "event_onset_50ms_fms", "event_onset_offset_50ms_20perc_fms", "segment_1s_er",
    ),
}  # fmt: skip
"""heareval's metrics, by embedding type."""
ERROR_RATES = frozenset({"segment_1s_er"})
"""Those of which lower values are better."""
UNBOUNDED_METRICS = ERROR_RATES | {"d_prime"}
"""Those that may exceed 1."""
EVENT_KEYS = ("label", "start", "end")
DEFAULT_SEED = 42
"""heareval's own seed."""
HearGrid = Literal["default", "fast", "faster"]
Targets = dict[str, list[Any]]
"""Clip of a split -> its labels or events."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Settings of heareval's search.

    Attributes:
        grid: heareval's own names: "default" (500 epochs at most), "fast" (50), "faster" (10, small layers).
        grid_points: number of predictor settings that are tried on the first fold; HEAR uses 8.
        threads: threads of torch while heareval runs. Scores change with it, so it is part of the setting.
        seed: of the predictors, and of the draw of grid points.
    """

    grid: HearGrid = "default"
    grid_points: int = 8
    threads: int = 1
    seed: int = DEFAULT_SEED

    def __post_init__(self) -> None:
        if self.grid_points < 1 or self.threads < 1:
            raise ConfigError("grid_points and threads must be at least 1.")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed must be in 0..{2**32 - 1}, not {self.seed}.")


def find_tasks(tasks_dir: Path, names: Sequence[str] = ()) -> list[Path]:
    """Return the task folders below `tasks_dir`, or those named (by folder or by task name).

    If names are given, other folders whose metadata cannot be read are skipped with a warning.

    Raises:
        TaskError: there is no task, or a name is unknown or ambiguous.
    """
    if not tasks_dir.is_dir():
        raise TaskError(f"no folder of HEAR tasks at {tasks_dir}.")
    folders = [path for path in sorted(tasks_dir.iterdir()) if not path.name.startswith(".")]
    by_folder = {path.name: path for path in folders if (path / METADATA_FILE).is_file()}
    if not by_folder:
        raise TaskError(f"{tasks_dir} contains no HEAR task (a folder with {METADATA_FILE}).")
    if not names:
        return list(by_folder.values())
    by_task = _by_task_name(list(by_folder.values()), names)
    selected = []
    for name in names:
        matches = [by_folder[name]] if name in by_folder else by_task.get(name, [])
        if not matches:
            raise TaskError(unknown_message("task", name, {*by_folder, *by_task}))
        if len(matches) > 1:
            raise TaskError(f"{name!r} is ambiguous: {', '.join(path.name for path in matches)}; give the folder name.")
        selected += matches
    return list(dict.fromkeys(selected))


def _by_task_name(folders: Sequence[Path], requested: Sequence[str]) -> dict[str, list[Path]]:
    """Task name -> its folders; unreadable ones cause a warning, except those in `requested`, which fail later."""
    by_name: dict[str, list[Path]] = {}
    for path in folders:
        try:
            by_name.setdefault(str(read_metadata(path, ("task_name",))["task_name"]), []).append(path)
        except TaskError as error:
            if path.name not in requested:
                print(f"warning: {path} is skipped: {error}", file=sys.stderr)
    return by_name


def read_metadata(folder: Path, keys: Sequence[str] = KEYS) -> dict[str, Any]:
    """Read the metadata of a task, which must have these keys.

    Raises:
        TaskError: it cannot be read, or a key is missing.
    """
    file = folder / METADATA_FILE
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TaskError(f"{folder} is not a HEAR task: {file.name}: {type(error).__name__}: {error}") from None
    if not isinstance(metadata, dict):
        raise TaskError(f"{file} must contain a JSON object.")
    if missing := [key for key in keys if key not in metadata]:
        raise TaskError(f"{file} lacks {', '.join(missing)}.")
    return metadata


def check_task(folder: Path, display_path: Path | None = None) -> None:
    """Check all that heareval will read, so that a mistake shows before the long run.

    Args:
        folder: of the task.
        display_path: path that warnings show, if the task will be moved there.

    Raises:
        TaskError: something is wrong; the message says what and where.
    """
    metadata = read_metadata(folder)
    labels = _read_vocabulary(folder / VOCABULARY_FILE)
    targets = {split: _read_targets(folder / f"{split}.json") for split in metadata["splits"]}
    check_splits(str(folder), list(targets), metadata["split_mode"] == FIXED_SPLITS)
    _check_answers(display_path or folder, metadata, labels, targets)
    known_metrics = KNOWN_METRICS.get(metadata["embedding_type"], ())
    for metric in metadata["evaluation"]:
        if metric not in known_metrics:
            raise TaskError(f"{folder}: {unknown_message('metric', str(metric), known_metrics)}")
    rates = [path for path in folder.iterdir() if path.name.isdigit()]
    if not rates:
        raise TaskError(f"{folder} has no audio: expected a folder named after its sample rate, such as 16000.")
    for split, clips in targets.items():
        for name, target in clips.items():
            _check_target(f"{folder.name} {split} {name}", target, metadata, labels)
            for rate in rates:
                if not (rate / split / name).is_file():
                    raise TaskError(f"{rate / split / name} is missing.")
        mismatches = [
            problem
            for rate in rates
            if clips and (problem := _rate_mismatch(rate / split / next(iter(clips)), int(rate.name)))
        ]
        if len(mismatches) == len(rates):
            raise TaskError(f"{mismatches[0]}.")
        for problem in mismatches:  # a model may use another rate
            print(f"warning: {problem}.", file=sys.stderr)


def answer_name(embedding_type: str) -> str:
    """Return what a task asks about a clip, with its article, for messages."""
    return "an event" if embedding_type == "event" else "a label"


def _check_answers(where: Path, metadata: Mapping[str, Any], labels: set[str], targets: Mapping[str, Targets]) -> None:
    """Check that there are labels, or events, to predict; a class alone, or a split without any, causes a warning."""
    answer = answer_name(metadata["embedding_type"])
    if not labels:
        raise TaskError(f"{where}: no clip has {answer}.")
    if metadata["prediction_type"] == "multiclass" and len(labels) < MIN_CLASSES:
        problem = f"{where} has one class ({', '.join(labels)}): a constant prediction is always correct"
        print(f"warning: {problem}.", file=sys.stderr)
    if unlabelled := [split for split, clips in targets.items() if not any(clips.values())]:
        problem = f"{where}: no clip of {', '.join(unlabelled)} has {answer}: scores are undefined or meaningless"
        print(f"warning: {problem}.", file=sys.stderr)


def _rate_mismatch(file: Path, rate: int) -> str:
    """Return what is wrong with the sample rate of a file, if anything; an unreadable file fails when embedded."""
    soundfile = import_module("soundfile")  # slow to import, and not needed by processes that only wait
    try:
        actual = soundfile.info(os.fsencode(file)).samplerate
    except soundfile.LibsndfileError:
        return ""
    return "" if actual == rate else f"{file} has a sample rate of {actual} Hz, but is in the folder of {rate} Hz"


def check_splits(where: str, splits: Sequence[str], three_way: bool) -> None:
    """Check that splits are train, valid and test (`three_way`), or otherwise enough folds.

    Raises:
        TaskError: they are not.
    """
    if three_way:
        if set(splits) != set(TRAIN_VALID_TEST):
            raise TaskError(f"{where}: splits are {sorted(splits)}; expected train, valid and test, or folds.")
    elif len(splits) < MIN_FOLDS:
        raise TaskError(
            f"{where}: {counted(len(splits), 'fold')} ({', '.join(splits)}); heareval needs at least {MIN_FOLDS}."
        )


def _read_vocabulary(file: Path) -> set[str]:
    """Read the labels; a byte order mark, as spreadsheets write it, is ignored."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            rows = list(csv.DictReader(opened))
    except (OSError, ValueError, csv.Error) as error:
        raise TaskError(f"{file.parent} is not a HEAR task: {file.name}: {type(error).__name__}: {error}") from None
    for name in ("idx", "label"):
        if any(row.get(name) is None for row in rows):
            raise TaskError(f"{file} must have the header idx,label and both values in every row.")
    if [row["idx"] for row in rows] != [str(number) for number in range(len(rows))]:
        raise TaskError(f"{file}: idx must run from 0 to {len(rows) - 1}.")
    return {row["label"] for row in rows}


def _read_targets(file: Path) -> Targets:
    """Read the answers of a split."""
    try:
        targets = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TaskError(f"{file.parent} is not a HEAR task: {file.name}: {type(error).__name__}: {error}") from None
    if not isinstance(targets, dict) or not all(isinstance(target, list) for target in targets.values()):
        raise TaskError(f"{file} must contain a list of labels or events for every clip.")
    return targets


def _check_target(where: str, target: Sequence[Any], metadata: Mapping[str, Any], labels: set[str]) -> None:
    events = metadata["embedding_type"] == "event"
    if events and not all(isinstance(item, dict) and item.keys() >= set(EVENT_KEYS) for item in target):
        raise TaskError(f"{where}: an event must have {', '.join(EVENT_KEYS)}.")
    names = [item["label"] for item in target] if events else list(target)
    if unknown_labels := [name for name in names if name not in labels]:
        raise TaskError(f"{where}: {unknown_message('label', str(unknown_labels[0]), labels)}")
    if not events and metadata["prediction_type"] == "multiclass" and len(names) != 1:
        raise TaskError(f"{where}: a multiclass task needs exactly one label, got {names}.")
    if events and any(item["end"] < item["start"] or item["start"] < 0 for item in target):
        raise TaskError(f"{where}: an event ends before it starts, or starts before the clip.")
