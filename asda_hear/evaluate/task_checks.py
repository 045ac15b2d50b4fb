"""Input of an evaluation: the tasks, whether heareval can read them, and the settings of its search."""

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from asda_core.errors import ConfigError, TaskError, unknown
from asda_core.labelled.examples import TRAIN_VALID_TEST
from asda_hear.evaluate.scores import METADATA_FILE

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
EVENT_KEYS = ("label", "start", "end")
USUAL_SEED = 42
"""heareval's own seed."""
HearGrid = Literal["default", "fast", "faster"]


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
    seed: int = USUAL_SEED

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
    found = {path.name: path for path in folders if (path / METADATA_FILE).is_file()}
    if not found:
        raise TaskError(f"{tasks_dir} holds no HEAR task (a folder with {METADATA_FILE}).")
    if not names:
        return list(found.values())
    by_task = _by_task_name(list(found.values()), names)
    chosen = []
    for name in names:
        matches = [found[name]] if name in found else by_task.get(name, [])
        if not matches:
            raise TaskError(unknown("task", name, {*found, *by_task}))
        if len(matches) > 1:
            raise TaskError(
                f"{name!r} may be any of {', '.join(path.name for path in matches)}; give the folder's name."
            )
        chosen += matches
    return list(dict.fromkeys(chosen))


def _by_task_name(folders: Sequence[Path], asked: Sequence[str]) -> dict[str, list[Path]]:
    """Task name -> its folders; unreadable ones cause a warning, except those in `asked`, which fail later."""
    found: dict[str, list[Path]] = {}
    for path in folders:
        try:
            found.setdefault(str(read_metadata(path, ("task_name",))["task_name"]), []).append(path)
        except TaskError as error:
            if path.name not in asked:
                print(f"warning: {path} is passed over: {error}", file=sys.stderr)
    return found


def read_metadata(folder: Path, keys: Sequence[str] = KEYS) -> dict[str, Any]:
    """Read the metadata of a task, which must have these keys.

    Raises:
        TaskError: it cannot be read, or a key is missing.
    """
    file = folder / METADATA_FILE
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TaskError(f"{folder} is no HEAR task: {file.name}: {type(error).__name__}: {error}") from None
    if not isinstance(metadata, dict):
        raise TaskError(f"{file} must hold keys and values.")
    if missing := [key for key in keys if key not in metadata]:
        raise TaskError(f"{file} lacks {', '.join(missing)}.")
    return metadata


def check_task(folder: Path, shown: Path | None = None) -> None:
    """Check all that heareval will read, so that a mistake shows before the long run.

    Args:
        folder: of the task.
        shown: path that warnings show, if the task will be moved there.

    Raises:
        TaskError: something is wrong; the message says what and where.
    """
    metadata = read_metadata(folder)
    labels = _read_vocabulary(folder / VOCABULARY_FILE)
    if metadata["prediction_type"] == "multiclass" and len(labels) < MIN_CLASSES:
        told = f"{shown or folder} has one class ({', '.join(labels)}): whoever always says it is always right"
        print(f"warning: {told}.", file=sys.stderr)
    answers = {split: _read_answers(folder / f"{split}.json") for split in metadata["splits"]}
    check_splits(str(folder), list(answers), metadata["split_mode"] == "trainvaltest")
    known = KNOWN_METRICS.get(metadata["embedding_type"], ())
    for metric in metadata["evaluation"]:
        if metric not in known:
            raise TaskError(f"{folder}: {unknown('metric', str(metric), known)}")
    rates = [path for path in folder.iterdir() if path.name.isdigit()]
    if not rates:
        raise TaskError(f"{folder} has no audio: expected a folder named by its rate, such as 16000.")
    for split, clips in answers.items():
        for name, answer in clips.items():
            _check_answer(f"{folder.name} {split} {name}", answer, metadata, labels)
            for rate in rates:
                if not (rate / split / name).is_file():
                    raise TaskError(f"{rate / split / name} is missing.")
        wrong = [
            told for rate in rates if clips and (told := _wrong_rate(rate / split / next(iter(clips)), int(rate.name)))
        ]
        if len(wrong) == len(rates):
            raise TaskError(f"{wrong[0]}.")
        for told in wrong:  # a model may use another rate
            print(f"warning: {told}.", file=sys.stderr)


def _wrong_rate(file: Path, rate: int) -> str:
    """Return what is wrong with the sample rate of a file, if anything; an unreadable file fails when embedded."""
    soundfile = import_module("soundfile")  # slow to import, and not needed by processes that only wait
    try:
        found = soundfile.info(file).samplerate
    except soundfile.LibsndfileError:
        return ""
    return "" if found == rate else f"{file} has {found} Hz, and is in the folder of {rate} Hz"


def check_splits(where: str, splits: Sequence[str], three: bool) -> None:
    """Check that splits are train, valid and test (`three`), or otherwise enough folds.

    Raises:
        TaskError: they are not.
    """
    if three:
        if set(splits) != set(TRAIN_VALID_TEST):
            raise TaskError(f"{where}: splits are {sorted(splits)}; expected train, valid and test, or folds.")
    elif len(splits) < MIN_FOLDS:
        raise TaskError(f"{where}: {len(splits)} folds ({', '.join(splits)}); heareval needs at least {MIN_FOLDS}.")


def _read_vocabulary(file: Path) -> set[str]:
    """Read the labels; a byte order mark, as spreadsheets write it, is ignored."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            rows = list(csv.DictReader(opened))
    except (OSError, ValueError, csv.Error) as error:
        raise TaskError(f"{file.parent} is no HEAR task: {file.name}: {type(error).__name__}: {error}") from None
    for name in ("idx", "label"):
        if any(row.get(name) is None for row in rows):
            raise TaskError(f"{file} must have the header idx,label and both in every row.")
    if [row["idx"] for row in rows] != [str(number) for number in range(len(rows))]:
        raise TaskError(f"{file}: idx must run from 0 to {len(rows) - 1}.")
    return {row["label"] for row in rows}


def _read_answers(file: Path) -> dict[str, list[Any]]:
    """Clip -> its labels or events."""
    try:
        answers = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TaskError(f"{file.parent} is no HEAR task: {file.name}: {type(error).__name__}: {error}") from None
    if not isinstance(answers, dict) or not all(isinstance(answer, list) for answer in answers.values()):
        raise TaskError(f"{file} must hold a list of labels or events for every clip.")
    return answers


def _check_answer(where: str, answer: Sequence[Any], metadata: Mapping[str, Any], labels: set[str]) -> None:
    events = metadata["embedding_type"] == "event"
    if events and not all(isinstance(item, dict) and item.keys() >= set(EVENT_KEYS) for item in answer):
        raise TaskError(f"{where}: an event must have {', '.join(EVENT_KEYS)}.")
    names = [item["label"] for item in answer] if events else list(answer)
    if strange := [name for name in names if name not in labels]:
        raise TaskError(f"{where}: {unknown('label', str(strange[0]), labels)}")
    if not events and metadata["prediction_type"] == "multiclass" and len(names) != 1:
        raise TaskError(f"{where}: a multiclass task needs exactly one label, given {names}.")
    if events and any(item["end"] < item["start"] or item["start"] < 0 for item in answer):
        raise TaskError(f"{where}: an event ends before it starts, or starts before the clip.")
