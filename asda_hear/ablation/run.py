"""Execution of a plan: any number of processes, on machines that share the store, each take what is free."""

import math
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from asda_core.assemble import Parts, build_weightless, check_class_token_axis, third_party_plugins
from asda_core.catalog import Catalog, installed_catalog
from asda_core.checkpoint import TEACHER_ENCODER_PREFIX
from asda_core.config_io import parse
from asda_core.errors import AsdaError, CheckpointError, ConfigError, PartlyFailed
from asda_core.inference.attention_maps import mixer_with_maps
from asda_core.official.reading import read_model
from asda_core.pretrain.initial_weights import check_compatible
from asda_core.pretrain.schedule import is_peak_reached, warmup_warning
from asda_core.system.files import disk_time, text_digest, write_csv, write_text
from asda_core.system.locks import hold_lock
from asda_core.system.resources import SECONDS_PER_HOUR
from asda_core.system.workers import Shard
from asda_core.weights.provenance import outdated_installs
from asda_hear.ablation.cells import (
    ERROR_FILE,
    PlanSetup,
    Unit,
    baseline_options,
    baseline_path,
    is_done,
    run_unit,
)
from asda_hear.ablation.plan import Cell, Plan, labels_text
from asda_hear.ablation.rows import ResultRow, collect_rows
from asda_hear.api import build_hear_model, load_model
from asda_hear.evaluate.compat import hear_tools
from asda_hear.evaluate.identity import task_identity
from asda_hear.evaluate.task_checks import find_tasks
from asda_hear.model import HearOptions
from asda_hear.pooling import EncoderBackbone
from asda_hear.work_queue import ItemFailure, attempt_locked, process_queue

ROWS_FILE = "rows.csv"
PLAN_NOTE = ".plan"
"""File in the folder of the tables with the plan that they belong to, relative to it, so that both may be moved."""
CLAIM_FILE, ROWS_LOCK = ".claim", ".rows.lock"
"""Lock files: of a unit while a process does it, and of the table while it is written."""
RESULTS_FOLDER = Path("results")
"""Default folder for tables, in a subfolder with the name of the plan."""


class CellsFailed(PartlyFailed[list[ResultRow]]):
    """Cells of a plan failed."""


def prepare(
    plan: Plan, out: Path, progress: bool = True, catalog: Catalog | None = None, store: Path | None = None
) -> PlanSetup:
    """Check a plan and find its tasks and baselines.

    Raises:
        AsdaError: a cell, an option, a baseline or a task is invalid.
    """
    plugins = catalog or installed_catalog()
    check_plan(plan, plugins)
    check_out_folder(out, plan.file)
    plan = replace(plan, cells=tuple(_named_by_plugins(cell, plugins) for cell in plan.cells))
    if not plan.audio and (cell := next((cell for cell in plan.cells if cell.config.steps), None)):
        raise ConfigError(f"{plan.file}, cell {labels_text(cell.labels)}: training needs audio; give data.")
    parameters = {label: _baseline_parameters(plan, label, plugins) for label in plan.config.baselines}
    choice = plan.config.tasks
    folders = [] if choice is None else find_tasks(plan.file.parent / choice.folder, choice.names)
    tasks = {task: task_identity(task) for task in folders}
    return PlanSetup(plan, store or out, out, tasks, parameters, plugins, progress)


def _named_by_plugins(cell: Cell, catalog: Catalog) -> Cell:
    """Add the versions of third-party plugins to the name of a cell: another version is another cell."""
    foreign = third_party_plugins(catalog, cell.config)
    if not foreign:
        return cell
    return replace(cell, name=text_digest(" ".join([cell.name, *foreign]), len(cell.name)))


def plan_warnings(setup: PlanSetup) -> list[str]:
    """Return what a valid plan is probably not meant to do."""
    plan = setup.plan
    short = [cell for cell in plan.cells if not is_peak_reached(cell.config)]
    sentences = outdated_installs(sorted({offer.distribution for offer in setup.catalog.offers.values()}))
    if short:
        config = short[0].config
        sentences.append(
            f"in {len(short)} of {len(plan.cells)} cells, as in {labels_text(short[0].labels)}, "
            f"{warmup_warning(config.optimizer, f'steps {config.steps}')}"
        )
    return sentences


def run_plan(setup: PlanSetup, shard: Shard | None = None) -> list[ResultRow]:
    """Run what is not done yet of a plan; other processes may do the same concurrently.

    Each unit is held by one process only. Units held by others are waited for, and taken over if those die.

    Args:
        setup: from `prepare`; `cells/NAME` in its store holds each run, `rows.csv` in its `out` the table.
        shard: the part to do; None does all.

    Returns:
        one row per cell, seed and task.

    Raises:
        CellsFailed: cells failed; all others are done and their rows written.
    """
    prepare_folders(setup)
    units = setup.units(shard or Shard())
    failed = _do_all(setup, units)
    rows = write_all_rows(setup)
    if failed:
        raise CellsFailed(
            rows,
            f"{len(failed)} of {len(units)} trainings and baselines failed, the others are in "
            f"{setup.out / ROWS_FILE}: " + "; ".join(failed),
        )
    return rows


def prepare_folders(setup: PlanSetup) -> None:
    """Create the result folders, and check that the tools are installed.

    Raises:
        ConfigError: a folder cannot be written, or holds the tables of another plan.
        ToolMissing: heareval is not installed, and the plan has tasks.
    """
    if setup.tasks:
        with hear_tools():
            pass
    for option, folder in (("--out", setup.out), ("--store", setup.store)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ROWS_LOCK).touch()
        except OSError as error:
            raise ConfigError(f"{option} {folder} cannot be written: {error.strerror}.") from None
    with hold_lock(setup.out / ROWS_LOCK):  # several processes of a plan begin at once
        out = os.path.realpath(setup.out)  # ".." in the note leads out of the real folder, not of a link to it
        write_text(setup.out / PLAN_NOTE, f"{os.path.relpath(setup.plan.file, out)}\n")


def check_out_folder(out: Path, plan: Path) -> None:
    """Check that the tables of a folder belong to this plan.

    Raises:
        ConfigError: they belong to another one, which still exists, and would be lost.
    """
    note = out / PLAN_NOTE
    other = out.resolve() / note.read_text(encoding="utf-8").strip() if note.is_file() else plan
    if other.is_file() and not other.samefile(plan):
        raise ConfigError(
            f"{out} holds the tables of {other.resolve()}, which those of {plan} would overwrite; give another --out "
            f"(--store {out} reuses the trainings in it)."
        )


def write_all_rows(setup: PlanSetup) -> list[ResultRow]:
    """Write `rows.csv` from all that the store holds, one process at a time."""
    prepare_folders(setup)
    with hold_lock(setup.out / ROWS_LOCK):
        rows = collect_rows(setup)
        write_csv(setup.out / ROWS_FILE, rows)
    return rows


def report_spent_budget(setup: PlanSetup, num_remaining: int) -> None:
    """Report on stderr that the budget is spent before the plan is done."""
    print(
        f"the budget of {setup.plan.config.budget.hours} hours is spent; {num_remaining} trainings and baselines "
        "remain.",
        file=sys.stderr,
    )


def _do_all(setup: PlanSetup, units: list[Unit]) -> list[str]:
    """Run one unit after the other until all are done or failed, or the budget is spent; return what failed."""
    since, hours = disk_time(setup.store), setup.plan.config.budget.hours
    deadline = math.inf if hours is None else time.monotonic() + hours * SECONDS_PER_HOUR
    num_ended, failed = 0, list[str]()
    with tqdm(total=len(units), desc="cells", unit="cell", disable=not setup.progress) as bar:
        for unit, outcome in process_queue(units, lambda unit: _attempt(setup, unit, since), deadline):
            num_ended += 1
            bar.update()
            if isinstance(outcome, ItemFailure):
                failed.append(f"{unit.name}: {outcome.error}")
            elif outcome:
                write_all_rows(setup)
    if num_ended < len(units):
        report_spent_budget(setup, len(units) - num_ended)
    return failed


def _attempt(setup: PlanSetup, unit: Unit, since: float) -> bool | ItemFailure | None:
    """Do a unit: True if done now, False if done before, None if another process holds it."""

    def do() -> bool:
        if is_done(setup, unit):
            return False
        run_unit(setup, unit)
        return True

    return attempt_locked(do, unit.name, unit.folder / CLAIM_FILE, unit.folder / ERROR_FILE, since)


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
                check_compatible(inits[cell.init], catalog, cell.config)
            elif cell.config.adapter is not None:
                raise ConfigError(f"the adapter {cell.config.adapter.name!r} needs a trained encoder: give init.")
            parts = build_weightless(catalog, cell.config)
            _check_options(cell, parts)
            encoder = parts.encoder
            for layer in range(cell.config.encoder.depth if plan.noise else 0):
                mixer_with_maps(encoder, layer)
        except AsdaError as error:
            raise type(error)(f"{plan.file}, cell {labels_text(cell.labels)}: {error}") from None
    check_class_token_axis(catalog, [cell.config for cell in plan.cells])


def _check_options(cell: Cell, parts: Parts) -> None:
    """Check that a model like this can be used with the options of a cell.

    Raises:
        ConfigError: it cannot.
    """
    options = parse(HearOptions, cell.options, "options")
    build_hear_model(parts.front_end, parts.encoder, cell.config.data.clip_seconds, options)
    if options.weights == "teacher":
        if not any(f"objective.{name}".startswith(TEACHER_ENCODER_PREFIX) for name in parts.objective.state_dict()):
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
