"""Results of a plan in a store, as rows: one per cell and task."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

from asda_core.system.files import read_json_object
from asda_hear.ablation.cells import (
    FACTS_FILE,
    TIMES_FILE,
    PlanSetup,
    Unit,
    baseline_options,
    unit_noise_rows,
    unit_scores,
)
from asda_hear.ablation.noise_metric import NOISE_METRICS, clips_identity
from asda_hear.ablation.plan import Cell
from asda_hear.ablation.settings import BASELINE_COLUMN, COSTS, FACT_COLUMNS
from asda_hear.evaluate.scores import TaskScore

ResultRow = dict[str, Any]


def collect_rows(setup: PlanSetup) -> list[ResultRow]:
    """Return the rows of all existing results, baselines first, then cells in the order of the plan."""
    units = setup.units()
    rows: list[ResultRow] = []
    for unit in units:
        if not unit.cells:
            facts = _baseline_facts(setup, unit.baseline)
            rows += _rows(setup, unit, baseline_options(setup.plan, unit.baseline), facts)
    unit_by_cell = {cell.name: unit for unit in units for cell in unit.cells}
    for cell in setup.plan.cells:
        unit = unit_by_cell[cell.name]
        if (unit.folder / FACTS_FILE).exists():
            facts = _cell_facts(unit, cell)
            rows += _rows(setup, unit, cell.options, facts)
    return rows


def _rows(setup: PlanSetup, unit: Unit, options: Mapping[str, Any], facts: ResultRow) -> list[ResultRow]:
    """Return a row per task; those of attention on noise also identify the clips."""
    clips = clips_identity(measured) if (measured := unit_noise_rows(setup, unit)) else ""
    return [
        {**facts, **_score(score), "clips": clips if score.metric in NOISE_METRICS else ""}
        for score in unit_scores(setup, unit, options)
    ]


def _cell_facts(unit: Unit, cell: Cell) -> ResultRow:
    facts, times = read_json_object(unit.folder / FACTS_FILE), read_json_object(unit.folder / TIMES_FILE)
    costs = {**facts.get("size", {}), "updates": cell.config.steps, "pretrain_seconds": 0.0, **times}
    return {
        BASELINE_COLUMN: "",
        **cell.labels,
        "seed": cell.seed,
        "cell": cell.name,
        **{cost.column: costs.get(cost.column, "") for cost in COSTS},
        "plugins": facts.get("plugins", ""),
    }


def _baseline_facts(setup: PlanSetup, label: str) -> ResultRow:
    facts: ResultRow = {BASELINE_COLUMN: label, **dict.fromkeys(setup.plan.config.axes, ""), "seed": "", "cell": ""}
    facts |= {"parameters": setup.baseline_parameters[label], "updates": 0, "pretrain_seconds": 0.0}
    return {**facts, **{name: "" for name in FACT_COLUMNS if name not in facts}}


def _score(score: TaskScore) -> ResultRow:
    return {
        "task": score.task,
        "metric": score.metric,
        "score": score.score,
        "folds": " ".join(f"{value:.9f}" for value in score.folds),
        "validation": score.validation,
        "asda": version("asda-hear"),
        "torch": torch.__version__,
        "heareval": version("heareval") if score.metric not in NOISE_METRICS else "",
    }
