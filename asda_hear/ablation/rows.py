"""Results of a plan in a store, as rows: one per cell and task."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

from asda_hear.ablation.cells import (
    FACTS_FILE,
    TIMES_FILE,
    PlanWork,
    Unit,
    baseline_options,
    unit_measured,
    unit_scores,
)
from asda_hear.ablation.noise_metric import MEASURED, clips_identity
from asda_hear.ablation.plan import Cell
from asda_hear.ablation.settings import BASELINE
from asda_hear.evaluate.identity import read_stamp
from asda_hear.evaluate.scores import TaskScore

ResultRow = dict[str, Any]


def collect_rows(work: PlanWork) -> list[ResultRow]:
    """Return the rows of all existing results, baselines first, then cells in the order of the plan."""
    units = work.units()
    rows: list[ResultRow] = []
    for unit in units:
        if not unit.cells:
            facts = _baseline_facts(work, unit.baseline)
            rows += _rows(work, unit, baseline_options(work.plan, unit.baseline), facts)
    unit_by_cell = {cell.name: unit for unit in units for cell in unit.cells}
    for cell in work.plan.cells:
        unit = unit_by_cell[cell.name]
        if (unit.folder / FACTS_FILE).exists():
            facts = _cell_facts(unit, cell)
            rows += _rows(work, unit, cell.options, facts)
    return rows


def _rows(work: PlanWork, unit: Unit, options: Mapping[str, Any], facts: ResultRow) -> list[ResultRow]:
    """Return a row per task; those of attention on noise also identify the clips."""
    clips = clips_identity(measured) if (measured := unit_measured(work, unit)) else ""
    return [
        {**facts, **_score(score), "clips": clips if score.metric in MEASURED else ""}
        for score in unit_scores(work, unit, options)
    ]


def _cell_facts(unit: Unit, cell: Cell) -> ResultRow:
    facts, times = read_stamp(unit.folder / FACTS_FILE) or {}, read_stamp(unit.folder / TIMES_FILE) or {}
    return {
        BASELINE: "",
        **cell.labels,
        "seed": cell.seed,
        "cell": cell.name,
        **facts.get("size", {"parameters": "", "trained": "", "gflops": ""}),
        "updates": cell.config.steps,
        "pretrain_seconds": times.get("pretrain_seconds", 0.0),
        "pretrain_cpu_seconds": times.get("pretrain_cpu_seconds", ""),
        "pretrain_mebibytes": times.get("pretrain_mebibytes", ""),
        "plugins": facts.get("plugins", ""),
    }


def _baseline_facts(work: PlanWork, label: str) -> ResultRow:
    empty = ("seed", "cell", "trained", "gflops", "pretrain_cpu_seconds", "pretrain_mebibytes", "plugins")
    facts = {BASELINE: label, **dict.fromkeys(work.plan.config.axes, ""), "seed": "", "cell": ""}
    return {
        **facts,
        "parameters": work.parameters[label],
        "updates": 0,
        "pretrain_seconds": 0.0,
        **dict.fromkeys(empty, ""),
    }


def _score(score: TaskScore) -> ResultRow:
    return {
        "task": score.task,
        "metric": score.metric,
        "score": score.score,
        "folds": " ".join(f"{value:.9f}" for value in score.folds),
        "validation": score.validation,
        "asda": version("asda-hear"),
        "torch": torch.__version__,
        "heareval": version("heareval") if score.metric not in MEASURED else "",
    }
