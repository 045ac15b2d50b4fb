"""Scores of a plan in long (tidy) form: one row per cell, task and fold, ready for statistics software."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from asda_core.errors import ConfigError
from asda_core.system.files import write_atomically, write_csv
from asda_hear.ablation.settings import BASELINE_COLUMN, COSTS, RESERVED_NAMES

CSV_FILE, PARQUET_FILE = "scores.csv", "scores.parquet"
COST_COLUMNS = tuple(cost.column for cost in COSTS)
"""Columns of `rows.csv` that are repeated in every row."""
INTEGER_COLUMNS = ("seed", "fold", "parameters", "trained", "updates")
"""Integer columns; all others except scores and costs are text."""


def tidy_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per cell, task and fold.

    Args:
        rows: rows of `rows.csv`, one per cell and task with the scores of its folds in `folds`; numbers or text.

    Returns:
        rows with `model` (label of a baseline, otherwise empty), the axes, `seed`, `cell`, `task`, `metric`, `fold`
        (from 0), `score` and the costs; values that were not measured are None. All rows have the same keys.

    Raises:
        ConfigError: a number cannot be parsed; the message names the row.
    """
    axes = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in RESERVED_NAMES]
    tidy = []
    for place, row in enumerate(rows):
        try:
            tidy += _rows_of(row, axes)
        except ValueError as error:
            raise ConfigError(
                f"row {place + 1} (cell {row.get('cell')!r}, task {row.get('task')!r}) has an invalid number: {error}."
            ) from None
    return tidy


def write_tidy(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write `scores.csv` and, if pyarrow is installed, `scores.parquet` with the same rows; otherwise remove that.

    Args:
        rows: as in `tidy_rows`.
        folder: created if it does not exist.
    """
    tidy = tidy_rows(rows)
    write_csv(folder / CSV_FILE, tidy)
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        (folder / PARQUET_FILE).unlink(missing_ok=True)  # of an earlier call, with other rows
        return
    names = list(tidy[0]) if tidy else []
    fields = [arrow.field(name, getattr(arrow, _arrow_type(name))()) for name in names]
    table = arrow.Table.from_pylist(tidy, schema=arrow.schema(fields))
    write_atomically(folder / PARQUET_FILE, lambda part: parquet.write_table(table, part))


def _rows_of(row: Mapping[str, Any], axes: Sequence[str]) -> list[dict[str, Any]]:
    folds = [float(text) for text in str(row.get("folds") or "").split()] or [float(row["score"])]
    leading = {
        BASELINE_COLUMN: str(row.get(BASELINE_COLUMN) or ""),
        **{axis: str(row.get(axis, "")) for axis in axes},
        "seed": _whole(row.get("seed")),
        **{name: str(row.get(name) or "") for name in ("cell", "task", "metric")},
    }
    costs = {name: (_whole if name in INTEGER_COLUMNS else _real)(row.get(name)) for name in COST_COLUMNS}
    return [{**leading, "fold": fold, "score": score, **costs} for fold, score in enumerate(folds)]


def _whole(value: Any) -> int | None:
    return None if value in ("", None) else int(float(value))


def _real(value: Any) -> float | None:
    return None if value in ("", None) else float(value)


def _arrow_type(name: str) -> str:
    if name in INTEGER_COLUMNS:
        return "int64"
    return "float64" if name == "score" or name in COST_COLUMNS else "string"
