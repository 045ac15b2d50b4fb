"""Execution of one unit of a plan: a training with its evaluations, or a baseline's evaluations."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from asda_core.assemble import plugin_origins
from asda_core.catalog import Catalog
from asda_core.checkpoint import read_checkpoint
from asda_core.config_io import CONFIG_SUFFIXES, to_plain
from asda_core.errors import AsdaError, TrainingStopped
from asda_core.official.reading import read_model
from asda_core.pretrain.loop import pretrain
from asda_core.system.files import NAME_DIGITS, text_digest, write_text
from asda_core.system.resources import counted
from asda_core.system.workers import Shard
from asda_core.weights.paths import MODEL_FILE
from asda_hear.ablation.axes import differing
from asda_hear.ablation.environment import environment
from asda_hear.ablation.noise_metric import as_scores, can_measure, measure, read_measured
from asda_hear.ablation.plan import Cell, Plan, text_of
from asda_hear.ablation.size import size_of
from asda_hear.evaluate.identity import read_stamp, weights_identity
from asda_hear.evaluate.runner import evaluate, finished_scores
from asda_hear.evaluate.scores import TaskScore
from asda_hear.looking.noise_attention import NoiseRow
from asda_hear.model_paths import find_model
from asda_hear.names import LOG_MEL

CELLS, BASELINES = "cells", "baselines"
"""Folders of a store."""
WHOLE = Shard()
TIMES_FILE, FACTS_FILE, ERROR_FILE = "times.json", "facts.json", "error.txt"
"""Files in the folder of a cell: cost of its training; facts on its model and environment; why it failed."""


@dataclass(frozen=True)
class Unit:
    """Work that one process does at a time.

    Attributes:
        folder: its folder in the store.
        cells: cells that share the training; empty for a baseline.
        baseline: label of the baseline.
    """

    folder: Path
    cells: tuple[Cell, ...] = ()
    baseline: str = ""

    @property
    def name(self) -> str:
        """Name for messages."""
        if not self.cells:
            return f"baseline {self.baseline}"
        first, all_labels = self.cells[0], [cell.labels for cell in self.cells]
        differing_labels = differing(first.labels, all_labels)
        shared = {axis: label for axis, label in first.labels.items() if axis not in differing_labels}
        return f"{self.folder.name} ({text_of({**shared, 'seed': str(first.seed)})})"


@dataclass(frozen=True)
class PlanWork:
    """A plan, its result folders, and what is needed to run it.

    Attributes:
        plan: the plan to run.
        store: folder of trainings and scores; several plans may share it.
        out: folder of the tables.
        tasks: task folder -> identity.
        parameters: number of parameters of each baseline.
        catalog: plugins.
        progress: whether to show progress bars.
    """

    plan: Plan
    store: Path
    out: Path
    tasks: Mapping[Path, str]
    parameters: Mapping[str, int]
    catalog: Catalog
    progress: bool = True

    def units(self, shard: Shard = WHOLE) -> list[Unit]:
        """Return the units of a shard: baselines, then trainings, the first seed of all combinations before any second.

        A budget that is spent early thus leaves fewer seeds, not fewer rows. The seeds of a combination are spread over
        the shards, so that none has all of a slow one.
        """
        units = [Unit(self.baseline_folder(label), (), label) for label in self.plan.config.baselines]
        turns = list(range(len(units)))
        for position, seed in enumerate(self.plan.config.seeds):
            by_name: dict[str, list[Cell]] = {}
            for cell in self.plan.cells:
                if cell.seed == seed:
                    by_name.setdefault(cell.name, []).append(cell)
            units += [Unit(self.store / CELLS / name, tuple(cells)) for name, cells in by_name.items()]
            turns += range(position, position + len(by_name))
        return [unit for unit, turn in zip(units, turns, strict=True) if turn % shard.count == shard.index - 1]

    def baseline_folder(self, label: str) -> Path:
        """Folder of a baseline, named also by its weights, since plans that share a store may reuse a label."""
        weights = text_digest(weights_identity(baseline_path(self.plan, label)), NAME_DIGITS)
        return self.store / BASELINES / f"{label}-{weights}"


def do_unit(work: PlanWork, unit: Unit) -> None:
    """Train, evaluate and measure what is not done yet.

    Raises:
        OptionsFailed: evaluation with one of several sets of options failed; the others are done.
    """
    if unit.cells:
        cell = unit.cells[0]
        if not (unit.folder / MODEL_FILE).exists():
            _train(work, cell, unit.folder)
        _write_facts(work, cell, unit.folder)
    failed: list[tuple[str, Exception]] = []
    for options in different_options(work, unit):
        try:
            _evaluate(work, model_of(work, unit, options), unit.folder, options)
        except TrainingStopped:
            raise
        except Exception as error:  # one set of options must not stop the others
            failed.append((_labels_with_options(unit, options), error))
    model = model_of(work, unit)
    if work.plan.noise and can_measure(model):
        measure(work.plan.noise, model, unit.folder, work.catalog, work.progress)
    if failed:
        where, first = failed[0]
        if not where:
            raise first
        message = "; ".join(f"{labels}: {type(error).__name__}: {error}" for labels, error in failed)
        raise OptionsFailed(message) from first


class OptionsFailed(AsdaError):
    """Evaluation of a model failed with some of its sets of options."""


def _labels_with_options(unit: Unit, options: Mapping[str, Any]) -> str:
    """Return the labels that distinguish cells with these options from others of the training; "" if all have them."""
    cell = next((cell for cell in unit.cells if cell.options == options), None)
    return "" if cell is None else text_of(differing(cell.labels, [other.labels for other in unit.cells]))


def model_of(work: PlanWork, unit: Unit, options: Mapping[str, Any] | None = None) -> str:
    """Return the argument of `load_model` for these options: the teacher is only in the last step of the run.

    Scores of student and teacher are keyed by the exported weights, so that they persist when the steps are deleted.
    """
    if not unit.cells:
        return baseline_path(work.plan, unit.baseline)
    teacher = options is not None and options.get("weights") == "teacher"
    return str(unit.folder if teacher else unit.folder / MODEL_FILE)


def different_options(work: PlanWork, unit: Unit) -> list[Mapping[str, Any]]:
    """Return the distinct `load_model` options with which the model of a unit is evaluated."""
    distinct: list[Mapping[str, Any]] = [] if unit.cells else [baseline_options(work.plan, unit.baseline)]
    for cell in unit.cells:
        if cell.options not in distinct:
            distinct.append(cell.options)
    return distinct


def is_done(work: PlanWork, unit: Unit) -> bool:
    """Whether nothing of a unit is left to do."""
    model = model_of(work, unit)
    if unit.cells and not ((unit.folder / FACTS_FILE).exists() and Path(model).exists()):
        return False
    if any(len(_finished_scores(work, unit, options)) < len(work.tasks) for options in different_options(work, unit)):
        return False
    return work.plan.noise is None or not can_measure(model) or unit_measured(work, unit) is not None


def tasks_left(work: PlanWork, unit: Unit) -> list[str]:
    """Return the names of the tasks that a unit has no scores on, once for each set of options that lacks them."""
    is_trained = not unit.cells or Path(model_of(work, unit)).exists()
    names = []
    for options in different_options(work, unit):
        scored = {score.task for score in _finished_scores(work, unit, options)} if is_trained else set()
        names += [task.name for task in work.tasks if task.name not in scored]
    return names


def unit_scores(work: PlanWork, unit: Unit, options: Mapping[str, Any]) -> list[TaskScore]:
    """Return the existing scores of a unit with one set of options, and its measured attention on noise."""
    model = model_of(work, unit)
    if unit.cells and not Path(model).exists():
        return []
    return _finished_scores(work, unit, options) + as_scores(unit_measured(work, unit) or [])


def unit_measured(work: PlanWork, unit: Unit) -> list[NoiseRow] | None:
    """Return how much attention of a unit falls on noise; None if not requested, not possible, or not done."""
    model, noise = model_of(work, unit), work.plan.noise
    is_trained = not unit.cells or Path(model).exists()
    return read_measured(noise, model, unit.folder) if noise and is_trained and can_measure(model) else None


def _finished_scores(work: PlanWork, unit: Unit, options: Mapping[str, Any]) -> list[TaskScore]:
    """Return the existing scores on HEAR's tasks."""
    folder = unit.folder / evaluation_name(work.plan, options)
    model = model_of(work, unit, options)
    return finished_scores(model, work.tasks, folder, work.plan.config.evaluation, options)


def evaluation_name(plan: Plan, options: Mapping[str, Any]) -> str:
    """Return the folder name of an evaluation, which depends on the search and the options."""
    setting = json.dumps([to_plain(plan.config.evaluation), options], sort_keys=True)
    return f"hear-{text_digest(setting, NAME_DIGITS)}"


def baseline_options(plan: Plan, label: str) -> Mapping[str, Any]:
    """Keyword arguments of `load_model` for a baseline: the plan's, without `weights` for an untrained model."""
    model, options = baseline_path(plan, label), plan.config.options
    trained = model != LOG_MEL and find_model(model).suffix not in CONFIG_SUFFIXES
    return options if trained else {key: value for key, value in options.items() if key != "weights"}


def baseline_path(plan: Plan, label: str) -> str:
    """Return the argument of `load_model` for a baseline: a path beside the plan if it exists, otherwise as given."""
    model = plan.config.baselines[label]
    beside = plan.file.parent / model
    return str(beside) if model and beside.exists() else model


def _train(work: PlanWork, cell: Cell, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with counted(folder / TIMES_FILE, "pretrain"):
        init = None if cell.init is None else read_model(cell.init)
        pretrain(cell.config, list(work.plan.audio), folder, work.catalog, device(), work.progress, init)
    finished = {"finished": datetime.now(UTC).isoformat(timespec="seconds")}
    write_text(folder / FACTS_FILE, json.dumps({"made": {**environment(), **finished}}, indent=1))


def device() -> str:
    """Device on which cells are trained."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _write_facts(work: PlanWork, cell: Cell, folder: Path) -> None:
    """Write what the table shows of a cell, so that no model has to be built for it again."""
    file = folder / FACTS_FILE
    facts = read_stamp(file) or {}
    origins = read_checkpoint(folder / MODEL_FILE).plugins
    if origins != (installed := plugin_origins(work.catalog, cell.config)):
        print(f"warning: {folder} was trained with {origins}, but {installed} is installed; delete it to retrain.",
              file=sys.stderr)  # fmt: skip
    if "size" not in facts:
        plugins = " ".join(f"{o['name']}={o['distribution']}-{o['version']}" for o in origins.values())
        size = size_of(work.catalog, cell.config)
        write_text(file, json.dumps({**facts, "size": size, "plugins": plugins}, indent=1))


def _evaluate(work: PlanWork, model: str, folder: Path, options: Mapping[str, Any]) -> None:
    if not work.tasks:
        return
    search, out = work.plan.config.evaluation, folder / evaluation_name(work.plan, options)
    evaluate(model, list(work.tasks), out, search, dict(options), work.progress, cache=work.store)
