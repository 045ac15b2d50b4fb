"""Runs a plan: pre-trains and evaluates every cell, goes on where it was stopped, keeps a row per cell and task."""

import hashlib
import json
import sys
import traceback
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from asda_core.assemble import build_parts, check_class_token_axis, plugin_origins
from asda_core.catalog import Catalog, installed_catalog
from asda_core.checkpoint import MODEL_FILE, read_checkpoint
from asda_core.config_io import parse, to_plain
from asda_core.cost import Cost
from asda_core.errors import AsdaError, ConfigError
from asda_core.files import write_rows, write_text
from asda_core.official.reading import read_model
from asda_core.pretrain.loop import pretrain
from asda_core.pretrain.resuming import TrainingStopped
from asda_core.starting import check_fits
from asda_hear.ablation.plan import BASELINE, Cell, Plan
from asda_hear.ablation.size import size_of
from asda_hear.api import load_model
from asda_hear.evaluate.compat import hear_tools, read_stamp
from asda_hear.evaluate.runner import evaluate, find_tasks
from asda_hear.evaluate.scores import TaskScore
from asda_hear.model import HearOptions

ROWS_FILE = "rows.csv"
Row = dict[str, Any]


class CellsFailed(AsdaError):
    """Cells of a plan failed; `rows` holds those of all others."""

    def __init__(self, rows: list[Row], message: str) -> None:
        super().__init__(message)
        self.rows = rows


def run_plan(
    plan: Plan, out: Path, dry_run: bool = False, progress: bool = True, catalog: Catalog | None = None
) -> list[Row]:
    """Do what of the plan is not done yet.

    Args:
        plan: from `load_plan`.
        out: result folder; `cells/NAME` holds each run, `rows.csv` the table.
        dry_run: only print the cells and whether they are done.
        progress: whether to show bars.
        catalog: plugins; by default those installed.

    Returns:
        one row per cell, seed and task.

    Raises:
        CellsFailed: cells failed; all others are done and their rows written.
    """
    plugins = catalog or installed_catalog()
    check_plan(plan, plugins)
    parameters = {label: _baseline_parameters(plan, label, plugins) for label in plan.config.baselines}
    tasks = find_tasks(plan.tasks_folder, plan.config.tasks.names)
    if dry_run:
        _print_cells(plan, out, len(tasks), parameters)
        return []
    with hear_tools():
        pass  # a missing tool shows now
    rows: list[Row] = []
    failed: list[str] = []
    for label, number in parameters.items():
        rows += _baseline_rows(plan, out, label, number, tasks, progress)
        write_rows(out / ROWS_FILE, rows)
    for cell in tqdm(plan.cells, desc="cells", unit="cell", disable=not progress):
        try:
            rows += _run_cell(plan, cell, out / "cells" / cell.name, tasks, plugins, progress)
        except (TrainingStopped, KeyboardInterrupt):
            raise
        except Exception as error:  # one cell must not take the others down
            (out / "cells" / cell.name).mkdir(parents=True, exist_ok=True)
            (out / "cells" / cell.name / "error.txt").write_text(traceback.format_exc())
            failed.append(f"{cell.name} ({_text(cell.labels)}, seed {cell.seed}): {type(error).__name__}: {error}")
            print(f"failed: {failed[-1]}", file=sys.stderr)
        write_rows(out / ROWS_FILE, rows)
    if failed:
        raise CellsFailed(
            rows,
            f"{len(failed)} of {len(plan.cells)} cells failed, the others are in {out / ROWS_FILE}: "
            + "; ".join(failed),
        )
    return rows


def check_plan(plan: Plan, catalog: Catalog) -> None:
    """Build every cell without weights, and check options, so that a mistake shows now and not after hours.

    Raises:
        AsdaError: naming the cell.
    """
    check_class_token_axis(catalog, [cell.config for cell in plan.cells])
    parse(HearOptions, plan.config.options, "options")
    init = None if plan.init is None else read_model(plan.init)
    for cell in plan.cells:
        try:
            if init is not None:
                check_fits(init, catalog, cell.config)
            elif cell.config.adapter is not None:
                raise ConfigError(f"the adapter {cell.config.adapter.name!r} needs a trained encoder: give init.")
            with torch.device("meta"):
                build_parts(catalog, cell.config)
        except AsdaError as error:
            raise type(error)(f"{plan.file}, cell {_text(cell.labels)}: {error}") from None


def _print_cells(plan: Plan, out: Path, num_tasks: int, baselines: dict[str, int]) -> None:
    for label, number in baselines.items():
        print(f"baseline {label}: {baseline_path(plan, label)}, {number:,} parameters")
    for cell in plan.cells:
        done = "trained" if (out / "cells" / cell.name / MODEL_FILE).exists() else "to do"
        print(f"{cell.name}  seed {cell.seed}  {done:<8} {_text(cell.labels)}")
    different = len({cell.name for cell in plan.cells})
    print(f"{len(plan.cells)} cells x {num_tasks} tasks; {different} different pre-trainings.")


def _run_cell(plan: Plan, cell: Cell, folder: Path, tasks: list[Path], catalog: Catalog, progress: bool) -> list[Row]:
    """Pre-train (unless done) and evaluate (what is not done)."""
    times = folder / "times.json"
    spent: dict[str, float] = read_stamp(times) or {}
    if not (folder / MODEL_FILE).exists():
        cost = Cost()
        try:
            with cost:
                init = None if plan.init is None else read_model(plan.init)
                pretrain(cell.config, list(plan.audio), folder, catalog, _device(), progress, init)
        finally:  # a run that is stopped has spent its time too
            spent["pretrain_seconds"] = round(spent.get("pretrain_seconds", 0.0) + cost.seconds, 1)
            spent["pretrain_cpu_seconds"] = round(spent.get("pretrain_cpu_seconds", 0.0) + cost.cpu_seconds, 1)
            spent["pretrain_mebibytes"] = round(max(spent.get("pretrain_mebibytes", 0.0), cost.mebibytes), 1)
            folder.mkdir(parents=True, exist_ok=True)
            write_text(times, json.dumps(spent))
    scores = _evaluate(plan, str(folder / MODEL_FILE), folder, tasks, progress)
    origins = read_checkpoint(folder / MODEL_FILE).plugins
    if origins != (now := plugin_origins(catalog, cell.config)):
        print(f"warning: {folder} was trained with {origins}, and {now} is installed; delete it to redo the cell.",
              file=sys.stderr)  # fmt: skip
    facts = {
        BASELINE: "",
        **cell.labels,
        "seed": cell.seed,
        "cell": cell.name,
        **size_of(catalog, cell.config),
        "updates": cell.config.steps,
        "pretrain_seconds": spent.get("pretrain_seconds", 0.0),
        "pretrain_cpu_seconds": spent.get("pretrain_cpu_seconds", ""),
        "pretrain_mebibytes": spent.get("pretrain_mebibytes", ""),
        "plugins": " ".join(f"{o['name']}={o['distribution']}-{o['version']}" for o in origins.values()),
    }
    return [{**facts, **_score_columns(score)} for score in scores]


def baseline_path(plan: Plan, label: str) -> str:
    """What `load_model` is given for a baseline: a path beside the plan where there is one, else what the plan says."""
    model = plan.config.baselines[label]
    beside = plan.file.parent / model
    return str(beside) if model and beside.exists() else model


def _baseline_parameters(plan: Plan, label: str, catalog: Catalog) -> int:
    """Parameters of a baseline, which is opened now, so that a mistake shows before anything is evaluated."""
    try:
        model = load_model(baseline_path(plan, label), catalog=catalog, **plan.config.options)
    except AsdaError as error:
        raise type(error)(f"{plan.file}, baseline {label}: {error} (looked for beside {plan.file})") from None
    return sum(parameter.numel() for parameter in model.parameters())


def _baseline_rows(plan: Plan, out: Path, label: str, parameters: int, tasks: list[Path], progress: bool) -> list[Row]:
    scores = _evaluate(plan, baseline_path(plan, label), out / "baselines" / label, tasks, progress)
    empty = dict.fromkeys(plan.config.axes, "")
    facts: Row = {
        BASELINE: label,
        **empty,
        "seed": "",
        "cell": "",
        "parameters": parameters,
        "trained": "",
        "gflops": "",
    }
    facts |= {
        "updates": 0,
        "pretrain_seconds": 0.0,
        "pretrain_cpu_seconds": "",
        "pretrain_mebibytes": "",
        "plugins": "",
    }
    return [{**facts, **_score_columns(score)} for score in scores]


def _evaluate(plan: Plan, model: str, folder: Path, tasks: list[Path], progress: bool) -> list[TaskScore]:
    """Evaluate into a folder named by the search and the options, so that another setting is another result."""
    setting = json.dumps([to_plain(plan.config.evaluation), plan.config.options], sort_keys=True)
    name = f"hear-{hashlib.sha256(setting.encode()).hexdigest()[:8]}"
    search, options = plan.config.evaluation, plan.config.options
    return evaluate(model, tasks, folder / name, search, options, progress, cache=folder.parents[1])


def _score_columns(score: TaskScore) -> Row:
    return {
        "task": score.task,
        "metric": score.metric,
        "score": score.score,
        "folds": " ".join(f"{value:.6f}" for value in score.folds),
        "validation": score.validation,
        "asda": version("asda-hear"),
        "torch": torch.__version__,
        "heareval": version("heareval"),
    }


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _text(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{axis} {label}" for axis, label in labels.items())
