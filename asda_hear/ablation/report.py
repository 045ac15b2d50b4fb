"""The table of a plan as Markdown: a line per combination, a column per task, mean and 95 % interval over seeds."""

import os
import platform
from pathlib import Path
from statistics import median
from typing import Any

from asda_core.statistics import mean_interval
from asda_hear.ablation.plan import BASELINE, Plan

Row = dict[str, Any]

COSTS = {
    "parameters": "parameters",
    "trained": "trained",
    "GFLOPs per clip": "gflops",
    "training s": "pretrain_seconds",
    "CPU s": "pretrain_cpu_seconds",
    "training MiB": "pretrain_mebibytes",
}
"""Heading -> column of `rows.csv`; what the table says is the median over the seeds."""
FEW = 10
"""Values below are shown with three decimals."""


def write_report(plan: Plan, rows: list[Row], out: Path) -> str:
    """Write `table.md` and return it."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    metric = {row["task"]: row["metric"] for row in rows}
    axes = list(plan.config.axes)
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row[BASELINE], *(row[axis] for axis in axes)), []).append(row)
    lines = [f"## {plan.config.question or plan.file.stem}", ""]
    columns = {head: column for head, column in COSTS.items() if any(row.get(column) not in ("", None) for row in rows)}
    if all(row.get("trained") in ("", None, row["parameters"]) for row in rows):
        del columns["trained"]  # only adapters leave parameters as they are
    heads = [*axes, *columns, "seeds", *(f"{task} ({metric[task]})" for task in tasks)]
    lines.append("| " + " | ".join(heads) + " |")
    lines.append("|" + "---|" * len(heads))
    for key, members in groups.items():
        labels = [str(label) for label in key[1:]]
        if key[0]:
            labels[0] = f"*{key[0]}*"
        values = {task: [row["score"] for row in members if row["task"] == task] for task in tasks}
        seeds = max(len(value) for value in values.values())
        estimates = [str(mean_interval(values[task])) if values[task] else "" for task in tasks]
        costs = [_cost(members, column) for column in columns.values()]
        lines.append("| " + " | ".join([*labels, *costs, str(seeds), *estimates]) + " |")
    lines += ["", _footnote(plan, rows), ""]
    text = "\n".join(lines)
    (out / "table.md").write_text(text)
    return text


def _cost(members: list[Row], column: str) -> str:
    """The median over the rows of a line; empty where nothing was measured."""
    known = [float(row[column]) for row in members if row.get(column) not in ("", None)]
    if not known:
        return ""
    middle = median(known)
    return f"{middle:,.{0 if middle >= FEW or middle == 0 else 3}f}"


def _footnote(plan: Plan, rows: list[Row]) -> str:
    search = plan.config.evaluation
    seeds = len(plan.config.seeds)
    spread = "Mean ± half the 95 % interval (Student's t) over seeds." if seeds > 1 else "One seed, so no intervals."
    points = f"{search.grid_points} grid point{'s' if search.grid_points > 1 else ''}"
    return (
        f"{spread} heareval {rows[0]['heareval']}, grid {search.grid}, {points}, {search.threads} thread(s); "
        f"torch {rows[0]['torch']}, asda {rows[0]['asda']}, {platform.machine()}, {os.cpu_count()} CPUs. "
        "Costs are medians: parameters and operations of the encoder, time and resident memory of a whole training "
        "with its audio. "
        f"Made by `asda-hear ablate {plan.file.name}`."
    )
