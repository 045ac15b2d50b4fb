"""Table of a sweep: one line per checkpoint and mode, with its cost."""

import csv
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import torch

from asda_core import __version__
from asda_core.finetune.running import RESULT_FILE, read_result
from asda_core.finetune.sweep import SEED_FIELD, RunRow, Sweep, evaluate_folds
from asda_core.statistics import mean_interval
from asda_core.system.files import write_csv, write_text
from asda_core.system.markdown import escape_markdown, table_lines

ROWS_FILE, TABLE_FILE = "runs.csv", "table.md"
PERCENT = 100
TEXT_COLUMNS = ("checkpoint", "mode", "split", "recipe", "folder", "select", "data", "start", "of_mode")
COLUMNS = {"accuracy": "accuracy", "mAP": "mAP", "AUC": "AUC", "d_prime": "d'"}
"""Metric -> its heading."""


def write_tables(sweep: Sweep, rows: Sequence[RunRow], out: Path) -> str:
    """Write `runs.csv` (a row per run) and `table.md`, and return the latter.

    Runs of the same recipe from other commands in the folder are kept in both. Folds are averaged for every seed
    first; the interval is Student's over seeds or, with one seed, the bootstrap interval of the mean over folds. The
    spread is the standard deviation over the folds of a seed, averaged over seeds.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows = [*_earlier_rows(sweep, rows, out), *rows]
    write_csv(out / ROWS_FILE, rows)
    metrics = ["accuracy", "mAP"] if sweep.data.single else ["mAP", "AUC", "d_prime"]
    has_folds = len({row["split"] for row in rows}) > 1
    header = ["checkpoint", "mode", "trained", "share", *(COLUMNS[metric] for metric in metrics)]
    header += [f"spread of {COLUMNS[metrics[0]]} over folds"] if has_folds else []
    header += ["training, CPU s", "MiB", "runs"]
    splits = ", ".join(dict.fromkeys(str(row["split"]) for row in rows if row["split"]))
    lines = [
        f"## {escape_markdown(sweep.data.name)}{f': {escape_markdown(splits)}' if splits else ''}",
        "",
    ]
    groups: dict[tuple[str, str], list[RunRow]] = {}
    for row in rows:
        groups.setdefault((row["checkpoint"], row["mode"]), []).append(row)
    lines += table_lines(header, [_line(sweep, members, metrics, has_folds, out) for members in groups.values()])
    lines += ["", _footnote(list(groups.values()), metrics, has_folds, out), ""]
    text = "\n".join(lines)
    write_text(out / TABLE_FILE, text)
    return text


def _earlier_rows(sweep: Sweep, rows: Sequence[RunRow], out: Path) -> list[RunRow]:
    """Read the other rows in the folder that have the same recipe (also of their mode), data and checkpoints."""
    if not rows or not (out / ROWS_FILE).is_file():
        return []
    with (out / ROWS_FILE).open(newline="", encoding="utf-8") as opened:
        stored = [
            {name: value if name in TEXT_COLUMNS else _number(value) for name, value in row.items()}
            for row in csv.DictReader(opened)
        ]
    own_keys = {_key(row) for row in rows}
    identity = [rows[0][name] for name in ("recipe", "data")]
    same = [row for row in stored if [row.get("recipe"), row.get("data")] == identity and _key(row) not in own_keys]
    of_mode = {row["mode"]: row["of_mode"] for row in rows}  # earlier versions did not record it
    same = [row for row in same if not (digest := row.get("of_mode")) or of_mode.get(row["mode"], digest) == digest]
    same = [row for row in same if row.get("start") in _starts_of(sweep, rows, row)]
    return [row for row in same if (out / str(row["folder"]) / RESULT_FILE).is_file()]


def _starts_of(sweep: Sweep, rows: Sequence[RunRow], row: RunRow) -> set[object]:
    """Starts accepted for a row: those that this command used for its checkpoint, or its own if there are none."""
    start_per_seed = SEED_FIELD in sweep.starts.get(row["checkpoint"], "")
    starts = {
        own["start"]
        for own in rows
        if own["checkpoint"] == row["checkpoint"] and (own["seed"] == row["seed"] or not start_per_seed)
    }
    return starts or {row.get("start")}


def _key(row: RunRow) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in ("checkpoint", "mode", "split", "seed"))


def _number(text: str) -> Any:
    """Convert text to a number if it is one."""
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text


def _line(sweep: Sweep, members: Sequence[RunRow], metrics: Sequence[str], has_folds: bool, out: Path) -> list[str]:
    first = members[0]
    seeds = list(dict.fromkeys(row["seed"] for row in members))
    share = f"{PERCENT * first['trained'] / first['parameters']:.1f} %"
    cells = [escape_markdown(str(first["checkpoint"])), str(first["mode"]), f"{first['trained']:,}", share]
    intervals: Mapping[str, Any] = (read_result(out / first["folder"]) or {}).get("intervals", {})
    by_seed = [[row for row in members if row["seed"] == seed] for seed in seeds]
    largest = max(by_seed, key=len)  # an earlier command may have run only some folds of a seed
    if len(largest) > 1:
        title = f"{sweep.data.name}, {first['checkpoint']}, {first['mode']}"
        intervals = evaluate_folds(largest, out, title, sweep.recipe.bootstrap)
    for metric in metrics:
        per_seed = [[row[metric] for row in members if row["seed"] == seed] for seed in seeds]
        means = [] if any("" in values for values in per_seed) else [sum(values) / len(values) for values in per_seed]
        cells.append(_estimate(means, intervals.get(metric) if len(seeds) == 1 else None))
    if has_folds:
        by_fold = [[row[metrics[0]] for row in rows if row[metrics[0]] != ""] for rows in by_seed]
        spreads = [stdev(values) for values in by_fold if len(values) > 1]
        cells.append(f"{fmean(spreads):.3f}" if spreads else "")
    cells += [f"{median(row[key] for row in members):,.0f}" for key in ("train_cpu_seconds", "train_mebibytes")]
    return [*cells, str(len(members))]


def _estimate(values: Sequence[float], interval: tuple[float, float] | None) -> str:
    if not values:
        return ""
    if len(values) == 1 and interval is not None:
        return f"{values[0]:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"
    return str(mean_interval(values))


def _footnote(lines: Sequence[Sequence[RunRow]], metrics: Sequence[str], has_folds: bool, out: Path) -> str:
    rows = [row for members in lines for row in members]
    seeds_of_lines = [{row["seed"] for row in members} for members in lines]
    parts = []
    if any(len(seeds) > 1 for seeds in seeds_of_lines):
        parts.append("Mean ± half the 95 % interval (Student's t) over seeds, of the mean over folds.")
    if any(len(seeds) == 1 for seeds in seeds_of_lines):
        parts.append("Lines of one seed: in brackets the 95 % interval of a bootstrap over the clips of each fold.")
    if has_folds:
        parts.append("Spread: standard deviation over the folds of a seed (n - 1), averaged over seeds.")
    if any(row["select"] == "test" for row in rows):
        parts.append(
            "**Weights were selected on the test clips**, as papers of the field do: values are optimistically biased."
        )
    if any(row[metric] == "" for row in rows for metric in metrics):
        parts.append("Empty cell: the value is undefined in a run, such as d' at an AUC of 1, so there is no mean.")
    if len(rows) < len(lines) * len({row["seed"] for row in rows}) * len({row["split"] for row in rows}):
        parts.append("Not every seed has every fold in every line: the means are over different clips or seeds.")
    if any(row.get("start_heard_test") for row in rows):
        parts.append(
            "**Some runs started from weights that were trained on their test clips** (result.json says which)."
        )
    skipped = {file for row in rows for file in (read_result(out / str(row["folder"])) or {}).get("skipped", {})}
    if skipped:
        parts.append(f"Clips that could not be read: {len(skipped)} (listed in result.json).")
    folders = {row["folder"] for row in rows}
    if others := [file for file in out.glob(f"*/{RESULT_FILE}") if file.parent.name not in folders]:
        parts.append(f"Runs of other recipes, data or checkpoints in this folder, not in the table: {len(others)}.")
    parts.append(
        "Trained: parameters of encoder and head, and their share. CPU seconds and allocated memory are medians over "
        "runs; the first run of a process includes one-time setup. "
        f"torch {torch.__version__}, asda {__version__}, {platform.machine()}, {os.cpu_count()} CPUs."
    )
    return " ".join(parts)
