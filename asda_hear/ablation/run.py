"""Execution of a plan: any number of processes, on machines that share the store, each take what is free."""

import math
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from asda_core.assemble import Parts, build_weightless, check_class_token_axis, foreign_plugins
from asda_core.catalog import Catalog, installed_catalog
from asda_core.checkpoint import TEACHER
from asda_core.config_io import parse
from asda_core.errors import AsdaError, CheckpointError, ConfigError
from asda_core.inference.attention_maps import mixer_with_maps
from asda_core.official.reading import read_model
from asda_core.system.files import disk_time, text_digest, write_rows, write_text
from asda_core.system.locks import locked
from asda_core.system.resources import SECONDS_PER_HOUR
from asda_core.system.workers import Shard
from asda_core.weights.initial import check_fits
from asda_hear.ablation.cells import (
    ERROR_FILE,
    PlanWork,
    Unit,
    baseline_options,
    baseline_path,
    do_unit,
    is_done,
)
from asda_hear.ablation.plan import Cell, Plan, text_of
from asda_hear.ablation.rows import ResultRow, collect_rows
from asda_hear.api import load_model, model_from
from asda_hear.evaluate.compat import hear_tools
from asda_hear.evaluate.identity import task_identity
from asda_hear.evaluate.task_checks import find_tasks
from asda_hear.model import HearOptions
from asda_hear.pooling import EncoderBackbone
from asda_hear.work_queue import Failed, attempt_alone, shared_work

ROWS_FILE = "rows.csv"
PLAN_NOTE = ".plan"
"""File in the folder of the tables with the plan that they belong to, relative to it, so that both may be moved."""
CLAIM_FILE, ROWS_LOCK = ".claim", ".rows.lock"
"""Lock files: of a unit while a process does it, and of the table while it is written."""
RESULTS = Path("results")
"""Default folder for tables, in a subfolder with the name of the plan."""


class CellsFailed(AsdaError):
    """Cells of a plan failed; `rows` holds those of all others."""

    def __init__(self, rows: list[ResultRow], message: str) -> None:
        super().__init__(message)
        self.rows = rows


def prepare(
    plan: Plan, out: Path, progress: bool = True, catalog: Catalog | None = None, store: Path | None = None
) -> PlanWork:
    """Check a plan and find its tasks and baselines.

    Raises:
        AsdaError: a cell, an option, a baseline or a task is invalid.
    """
    plugins = catalog or installed_catalog()
    check_plan(plan, plugins)
    check_claim(out, plan.file)
    plan = replace(plan, cells=tuple(_named_by_plugins(cell, plugins) for cell in plan.cells))
    if not plan.audio and (cell := next((cell for cell in plan.cells if cell.config.steps), None)):
        raise ConfigError(f"{plan.file}, cell {text_of(cell.labels)}: training needs audio; give data.")
    parameters = {label: _baseline_parameters(plan, label, plugins) for label in plan.config.baselines}
    choice = plan.config.tasks
    folders = [] if choice is None else find_tasks(plan.file.parent / choice.folder, choice.names)
    tasks = {task: task_identity(task) for task in folders}
    return PlanWork(plan, store or out, out, tasks, parameters, plugins, progress)


def _named_by_plugins(cell: Cell, catalog: Catalog) -> Cell:
    """Add the versions of third-party plugins to the name of a cell: another version is another cell."""
    foreign = foreign_plugins(catalog, cell.config)
    if not foreign:
        return cell
    return replace(cell, name=text_digest(" ".join([cell.name, *foreign]), len(cell.name)))


def run_plan(work: PlanWork, shard: Shard | None = None) -> list[ResultRow]:
    """Run what is not done yet of a plan; other processes may do the same concurrently.

    Each unit is held by one process only. Units held by others are waited for, and taken over if those die.

    Args:
        work: from `prepare`; `cells/NAME` in its store holds each run, `rows.csv` in its `out` the table.
        shard: the part to do; None does all.

    Returns:
        one row per cell, seed and task.

    Raises:
        CellsFailed: cells failed; all others are done and their rows written.
    """
    make_ready(work)
    units = work.units(shard or Shard())
    failed = _do_all(work, units)
    rows = write_all_rows(work)
    if failed:
        raise CellsFailed(
            rows,
            f"{len(failed)} of {len(units)} trainings and baselines failed, the others are in "
            f"{work.out / ROWS_FILE}: " + "; ".join(failed),
        )
    return rows


def make_ready(work: PlanWork) -> None:
    """Create the result folders, and check that the tools are installed.

    Raises:
        ConfigError: a folder cannot be written, or holds the tables of another plan.
        ToolMissing: heareval is not installed, and the plan has tasks.
    """
    if work.tasks:
        with hear_tools():
            pass
    for option, folder in (("--out", work.out), ("--store", work.store)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ROWS_LOCK).touch()
        except OSError as error:
            raise ConfigError(f"{option} {folder} cannot be written: {error.strerror}.") from None
    with locked(work.out / ROWS_LOCK):  # several processes of a plan begin at once
        write_text(work.out / PLAN_NOTE, f"{os.path.relpath(work.plan.file, work.out)}\n")


def check_claim(out: Path, plan: Path) -> None:
    """Check that the tables of a folder belong to this plan.

    Raises:
        ConfigError: they belong to another one, which still exists, and would be lost.
    """
    note = out / PLAN_NOTE
    other = out / note.read_text(encoding="utf-8").strip() if note.is_file() else plan
    if other.is_file() and not other.samefile(plan):
        raise ConfigError(
            f"{out} holds the tables of {other.resolve()}, which those of {plan} would overwrite; give another --out "
            f"(--store {out} reuses the trainings in it)."
        )


def write_all_rows(work: PlanWork) -> list[ResultRow]:
    """Write `rows.csv` from all that the store holds, one process at a time."""
    make_ready(work)
    with locked(work.out / ROWS_LOCK):
        rows = collect_rows(work)
        write_rows(work.out / ROWS_FILE, rows)
    return rows


def tell_spent(work: PlanWork, left: int) -> None:
    """Report on stderr that the budget is spent before the plan is done."""
    print(
        f"the budget of {work.plan.config.budget.hours} hours is spent; {left} trainings and baselines remain.",
        file=sys.stderr,
    )


def _do_all(work: PlanWork, units: list[Unit]) -> list[str]:
    """Run one unit after the other until all are done or failed, or the budget is spent; return what failed."""
    since, hours = disk_time(work.store), work.plan.config.budget.hours
    deadline = math.inf if hours is None else time.monotonic() + hours * SECONDS_PER_HOUR
    num_ended, failed = 0, list[str]()
    with tqdm(total=len(units), desc="cells", unit="cell", disable=not work.progress) as bar:
        for unit, outcome in shared_work(units, lambda unit: _attempt(work, unit, since), deadline):
            num_ended += 1
            bar.update()
            if isinstance(outcome, Failed):
                failed.append(f"{unit.name}: {outcome.why}")
            elif outcome:
                write_all_rows(work)
    if num_ended < len(units):
        tell_spent(work, len(units) - num_ended)
    return failed


def _attempt(work: PlanWork, unit: Unit, since: float) -> bool | Failed | None:
    """Do a unit: True if done now, False if done before, None if another process holds it."""
    if is_done(work, unit):
        return False

    def do() -> bool:
        if is_done(work, unit):
            return False
        do_unit(work, unit)
        return True

    return attempt_alone(do, unit.name, unit.folder / CLAIM_FILE, unit.folder / ERROR_FILE, since)


def check_plan(plan: Plan, catalog: Catalog) -> None:
    """Build every cell without weights, and check options, so that a mistake shows now and not after hours.

    Raises:
        AsdaError: a cell is invalid; the message names it.
    """
    parse(HearOptions, plan.config.options, "options")
    inits = {file: read_model(file) for file in {cell.init for cell in plan.cells} if file is not None}
    distinct = {repr((replace(cell.config, seed=0), cell.options, cell.init)): cell for cell in plan.cells}
    for cell in distinct.values():
        try:
            if cell.init is not None:
                check_fits(inits[cell.init], catalog, cell.config)
            elif cell.config.adapter is not None:
                raise ConfigError(f"the adapter {cell.config.adapter.name!r} needs a trained encoder: give init.")
            parts = build_weightless(catalog, cell.config)
            _check_options(cell, parts)
            encoder = parts.encoder
            for layer in range(cell.config.encoder.depth if plan.noise else 0):
                mixer_with_maps(encoder, layer)
        except AsdaError as error:
            raise type(error)(f"{plan.file}, cell {text_of(cell.labels)}: {error}") from None
    check_class_token_axis(catalog, [cell.config for cell in plan.cells])


def _check_options(cell: Cell, parts: Parts) -> None:
    """Check that a model like this can be used with the options of a cell.

    Raises:
        ConfigError: it cannot.
    """
    options = parse(HearOptions, cell.options, "options")
    model_from(parts.front_end, parts.encoder, cell.config.data.clip_seconds, options)
    if options.weights == "teacher":
        if not any(f"objective.{name}".startswith(TEACHER) for name in parts.objective.state_dict()):
            raise ConfigError(f"options.weights teacher: the objective {cell.config.objective.name!r} has no teacher.")
        if not cell.config.steps:
            raise ConfigError("options.weights teacher: a model without training steps has no teacher.")


def _baseline_parameters(plan: Plan, label: str, catalog: Catalog) -> int:
    """Return the parameter count of a baseline, loaded now so that a mistake shows before anything is evaluated."""
    try:
        model = load_model(baseline_path(plan, label), catalog=catalog, **baseline_options(plan, label))
        if plan.noise and isinstance(model.backbone, EncoderBackbone):
            for layer in range(model.backbone.encoder.config.depth):
                mixer_with_maps(model.backbone.encoder, layer)
    except AsdaError as error:
        where = f" (also searched beside {plan.file})" if isinstance(error, CheckpointError) else ""
        raise type(error)(f"{plan.file}, baseline {label}: {error}{where}") from None
    return sum(parameter.numel() for parameter in model.parameters())
