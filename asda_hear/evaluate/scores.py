"""Score files of heareval -> a table, as Markdown, CSV and JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asda_core.errors import TaskError, counted
from asda_core.system.files import csv_text, write_text
from asda_core.system.locks import hold_lock
from asda_core.system.markdown import escape_markdown, table_lines

SCORE_FILE = "test.predicted-scores.json"
PREFIX = "test_"
TABLES_LOCK = ".scores.lock"
"""Lock file of a result folder: held while its tables, leaderboard or the names of its models are written."""
NOT_A_METRIC = ("loss", "score")
METADATA_FILE = "task_metadata.json"
FIXED_SPLITS = "trainvaltest"
"""HEAR's name of the `split_mode` of a task with one training, validation and test split, instead of folds."""
READ_ERRORS = (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError)
"""Exceptions from reading a file that is truncated, or holds something else."""


@dataclass(frozen=True)
class TaskScore:
    """Scores of one model on one task.

    Attributes:
        task: folder name, as in `esc50-v2.0.0-full`.
        metric: the primary metric by HEAR's name, as in `top1_acc`.
        score: its mean over folds.
        folds: its value on each test fold, in order.
        metrics: mean over folds of every metric.
        validation: mean over folds of the primary metric on the validation split.
    """

    task: str
    metric: str
    score: float
    folds: tuple[float, ...]
    metrics: Mapping[str, float]
    validation: float

    @property
    def std(self) -> float:
        """Standard deviation over folds (n - 1); NaN for one fold."""
        if len(self.folds) < 2:
            return math.nan
        return math.sqrt(sum((value - self.score) ** 2 for value in self.folds) / (len(self.folds) - 1))


def read_task_score(folder: Path) -> TaskScore:
    """Read what heareval wrote for one task.

    Raises:
        TaskError: there are no scores yet, or they are damaged.
    """
    file = folder / SCORE_FILE
    if not file.exists():
        raise TaskError(f"{folder} has no scores yet ({SCORE_FILE}).")
    try:
        results, metadata = (json.loads(path.read_text(encoding="utf-8")) for path in (file, folder / METADATA_FILE))
        return _task_score(folder.name, results, metadata)
    except READ_ERRORS as error:
        raise TaskError(
            f"cannot read {file}, or {METADATA_FILE} beside it ({type(error).__name__}: {error}); "
            f"delete {SCORE_FILE} to recompute it."
        ) from None


def _task_score(task: str, results: Mapping[str, Any], metadata: Mapping[str, Any]) -> TaskScore:
    metric = metadata["evaluation"][0]
    folds = [value for key, value in results.items() if isinstance(value, dict) and "test_score" in value]
    names = [name.removeprefix(PREFIX) for name in folds[0] if name.startswith(PREFIX)]
    means = {
        name: sum(fold[PREFIX + name] for fold in folds) / len(folds) for name in names if name not in NOT_A_METRIC
    }
    values = tuple(float(fold["test_score"]) for fold in folds)
    validation = sum(fold["validation_score"] for fold in folds) / len(folds)
    return TaskScore(task, metric, sum(values) / len(values), values, means, validation)


def to_markdown(rows: Sequence[tuple[str, TaskScore]]) -> str:
    """A table: model, task, metric, score, spread over folds, all metrics."""
    header = ["model", "task", "metric", "score (± deviation over folds)", "folds", "all metrics"]
    table = []
    for model, score in rows:
        spread = "" if math.isnan(score.std) else f" ± {score.std:.3f}"
        more = ", ".join(f"{name} {value:.3f}" for name, value in score.metrics.items())
        value, folds = f"{score.score:.3f}{spread}", str(len(score.folds))
        table.append([escape_markdown(model), score.task, score.metric, value, folds, more])
    return "\n".join(table_lines(header, table)) + "\n"


def to_csv(rows: Sequence[tuple[str, TaskScore]]) -> str:
    """One row per model, task and metric; the primary metric also has its deviation and every fold."""
    table: list[list[object]] = [["model", "task", "metric", "primary", "value", "deviation", "folds"]]
    for model, score in rows:
        for name, value in score.metrics.items():
            row = [model, score.task, name, int(name == score.metric), repr(value)]
            folds = " ".join(map(repr, score.folds)) if name == score.metric else ""
            spread = "" if not folds or math.isnan(score.std) else repr(score.std)
            table.append([*row, spread, folds])
    return csv_text(table)


def to_json(rows: Sequence[tuple[str, TaskScore]]) -> str:
    """All scores; values that are not finite become null, since JSON cannot hold them."""
    return json.dumps(
        [
            {
                "model": model,
                "task": score.task,
                "metric": score.metric,
                "score": _finite(score.score),
                "folds": [_finite(value) for value in score.folds],
                "validation": _finite(score.validation),
                "metrics": {name: _finite(value) for name, value in score.metrics.items()},
            }
            for model, score in rows
        ],
        indent=2,
    )


def write_tables(rows: Sequence[tuple[str, TaskScore]], folder: Path) -> None:
    """Write `scores.md`, `scores.csv` and `scores.json`; the first says how many scores of the folder are not in it."""
    markdown = to_markdown(rows)
    if (others := len([*folder.glob(f"*/*/{SCORE_FILE}")]) - len(rows)) > 0:
        markdown += f"\nNot in the table: {counted(others, 'other score')} in this folder.\n"
    with hold_lock(folder / TABLES_LOCK):
        for suffix, text in (("md", markdown), ("csv", to_csv(rows)), ("json", to_json(rows))):
            write_text(folder / f"scores.{suffix}", text)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
