"""Execution of one unit of a plan: a training with its evaluations, or a baseline's evaluations."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from asda_core.assemble import plugin_origins
from asda_core.catalog import Catalog
from asda_core.checkpoint import Checkpoint, read_checkpoint
from asda_core.config_io import to_plain
from asda_core.errors import AsdaError, TrainingStopped
from asda_core.official.reading import read_model
from asda_core.pretrain.loop import pretrain
from asda_core.settings.compute import AUTO
from asda_core.system.files import NAME_DIGITS, read_json_object, text_digest, write_text
from asda_core.system.paths import MODEL_FILE, is_config_file
from asda_core.system.resources import record_resource_usage
from asda_core.system.workers import Shard
from asda_hear.ablation.axes import distinctive_labels
from asda_hear.ablation.environment import environment
from asda_hear.ablation.noise_metric import has_attention, measure_model, noise_scores, read_noise_rows
from asda_hear.ablation.plan import Cell, Plan, labels_text
from asda_hear.ablation.size import model_size
from asda_hear.evaluate.identity import weights_identity
from asda_hear.evaluate.runner import evaluate, finished_scores
from asda_hear.evaluate.scores import TaskScore
from asda_hear.looking.noise_attention import NoiseRow
from asda_hear.model_paths import find_model
from asda_hear.names import LOG_MEL

CELLS, BASELINES = "cells", "baselines"
"""Folders of a store."""
FULL_SHARD = Shard()
TIMES_FILE, FACTS_FILE, ERROR_FILE = "times.json", "facts.json", "error.txt"
"""Files in the folder of a cell: cost of its training; facts on its model and environment; why it failed."""


@dataclass(frozen=True)
class Unit:
    """Work of one process at a time: a training with its evaluations, or the evaluations of a baseline.

    Attributes:
        folder: its folder in the store.
        cells: cells that share the training; empty for a baseline.
        baseline: label of the baseline.
    """

    folder: Path
    cells: tuple[Cell, ...] = ()
    baseline: str = ""

    @property
    def is_trained(self) -> bool:
        """Whether its model exists; always for a baseline."""
        return not self.cells or (self.folder / MODEL_FILE).exists()

    @property
    def name(self) -> str:
        """Name for messages."""
        if not self.cells:
            return f"baseline {self.baseline}"
        first, all_labels = self.cells[0], [cell.labels for cell in self.cells]
        differing_labels = distinctive_labels(first.labels, all_labels)
        shared = {axis: label for axis, label in first.labels.items() if axis not in differing_labels}
        return f"{self.folder.name} ({labels_text({**shared, 'seed': str(first.seed)})})"


@dataclass(frozen=True)
class PlanSetup:
    """A plan, its result folders, and what is needed to run it.

    Attributes:
        plan: the plan to run.
        store: folder of trainings and scores; several plans may share it.
        out: folder of the tables.
        tasks: task folder -> identity.
        baseline_parameters: number of parameters of each baseline.
        catalog: plugins.
        progress: whether to show progress bars.
    """

    plan: Plan
    store: Path
    out: Path
    tasks: Mapping[Path, str]
    baseline_parameters: Mapping[str, int]
    catalog: Catalog
    progress: bool = True

    def units(self, shard: Shard = FULL_SHARD) -> list[Unit]:
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


def run_unit(setup: PlanSetup, unit: Unit) -> None:
    """Train, evaluate and measure what is not done yet.

    Raises:
        OptionsFailed: evaluation with one of several sets of options failed; the others are done.
    """
    if unit.cells:
        cell = unit.cells[0]
        if not unit.is_trained:
            _train(setup, cell, unit.folder)
        _write_facts(setup, cell, unit.folder)
    failed: list[tuple[str, Exception]] = []
    for options in distinct_options(setup, unit):
        try:
            _evaluate(setup, model_path(setup, unit, options), unit.folder, options)
        except TrainingStopped:
            raise
        except Exception as error:  # one set of options must not stop the others
            failed.append((_labels_with_options(unit, options), error))
    model = model_path(setup, unit)
    if setup.plan.noise and has_attention(model):
        measure_model(setup.plan.noise, model, unit.folder, setup.catalog, setup.progress)
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
    return "" if cell is None else labels_text(distinctive_labels(cell.labels, [other.labels for other in unit.cells]))


def model_path(setup: PlanSetup, unit: Unit, options: Mapping[str, Any] | None = None) -> str:
    """Return the argument of `load_model` for these options: the teacher is only in the last step of the run.

    Scores of student and teacher are keyed by the exported weights, so that they persist when the steps are deleted.
    """
    if not unit.cells:
        return baseline_path(setup.plan, unit.baseline)
    teacher = options is not None and options.get("weights") == "teacher"
    return str(unit.folder if teacher else unit.folder / MODEL_FILE)


def distinct_options(setup: PlanSetup, unit: Unit) -> list[Mapping[str, Any]]:
    """Return the distinct `load_model` options with which the model of a unit is evaluated."""
    distinct: list[Mapping[str, Any]] = [] if unit.cells else [baseline_options(setup.plan, unit.baseline)]
    for cell in unit.cells:
        if cell.options not in distinct:
            distinct.append(cell.options)
    return distinct


def is_done(setup: PlanSetup, unit: Unit) -> bool:
    """Whether nothing of a unit is left to do."""
    if unit.cells and not (unit.is_trained and (unit.folder / FACTS_FILE).exists()):
        return False
    if any(len(_finished_scores(setup, unit, options)) < len(setup.tasks) for options in distinct_options(setup, unit)):
        return False
    model = model_path(setup, unit)
    return setup.plan.noise is None or not has_attention(model) or unit_noise_rows(setup, unit) is not None


def remaining_tasks(setup: PlanSetup, unit: Unit) -> list[str]:
    """Return the names of the tasks that a unit has no scores on, once for each set of options that lacks them."""
    names = []
    for options in distinct_options(setup, unit):
        scored = {score.task for score in _finished_scores(setup, unit, options)} if unit.is_trained else set()
        names += [task.name for task in setup.tasks if task.name not in scored]
    return names


def unit_scores(setup: PlanSetup, unit: Unit, options: Mapping[str, Any]) -> list[TaskScore]:
    """Return the existing scores of a unit with one set of options, and its measured attention on noise."""
    if not unit.is_trained:
        return []
    return _finished_scores(setup, unit, options) + noise_scores(unit_noise_rows(setup, unit) or [])


def unit_noise_rows(setup: PlanSetup, unit: Unit) -> list[NoiseRow] | None:
    """Return how much attention of a unit falls on noise; None if not requested, not possible, or not done."""
    model, noise = model_path(setup, unit), setup.plan.noise
    return read_noise_rows(noise, model, unit.folder) if noise and unit.is_trained and has_attention(model) else None


def _finished_scores(setup: PlanSetup, unit: Unit, options: Mapping[str, Any]) -> list[TaskScore]:
    """Return the existing scores on HEAR's tasks."""
    folder = unit.folder / evaluation_name(setup.plan, options)
    model = model_path(setup, unit, options)
    return finished_scores(model, setup.tasks, folder, setup.plan.config.evaluation, options)


def evaluation_name(plan: Plan, options: Mapping[str, Any]) -> str:
    """Return the folder name of an evaluation, which depends on the search and the options."""
    setting = json.dumps([to_plain(plan.config.evaluation), options], sort_keys=True)
    return f"hear-{text_digest(setting, NAME_DIGITS)}"


def baseline_options(plan: Plan, label: str) -> Mapping[str, Any]:
    """Keyword arguments of `load_model` for a baseline: the plan's, without `weights` for an untrained model."""
    model, options = baseline_path(plan, label), plan.config.options
    trained = model != LOG_MEL and not is_config_file(find_model(model))
    return options if trained else {key: value for key, value in options.items() if key != "weights"}


def baseline_path(plan: Plan, label: str) -> str:
    """Return the argument of `load_model` for a baseline: a path beside the plan if it exists, otherwise as given."""
    model = plan.config.baselines[label]
    beside = plan.file.parent / model
    return str(beside) if model and beside.exists() else model


def _train(setup: PlanSetup, cell: Cell, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with record_resource_usage(folder / TIMES_FILE, "pretrain"):
        pretrain(cell.config, list(setup.plan.audio), folder, setup.catalog, AUTO, setup.progress, read_init(cell))
    finished = {"finished": datetime.now(UTC).isoformat(timespec="seconds")}
    write_text(folder / FACTS_FILE, json.dumps({"made": {**environment(), **finished}}, indent=1))


def read_init(cell: Cell) -> Checkpoint | None:
    """Read the checkpoint that the training of a cell starts from, if there is one."""
    return None if cell.init is None else read_model(cell.init)


def _write_facts(setup: PlanSetup, cell: Cell, folder: Path) -> None:
    """Write what the table shows of a cell, so that no model has to be built for it again."""
    file = folder / FACTS_FILE
    facts = read_json_object(file)
    origins = read_checkpoint(folder / MODEL_FILE).plugins
    if origins != (installed := plugin_origins(setup.catalog, cell.config)):
        print(f"warning: {folder} was trained with {origins}, but {installed} is installed; delete it to retrain.",
              file=sys.stderr)  # fmt: skip
    if "size" not in facts:
        plugins = " ".join(f"{o['name']}={o['distribution']}-{o['version']}" for o in origins.values())
        size = model_size(setup.catalog, cell.config)
        write_text(file, json.dumps({**facts, "size": size, "plugins": plugins}, indent=1))


def _evaluate(setup: PlanSetup, model: str, folder: Path, options: Mapping[str, Any]) -> None:
    if not setup.tasks:
        return
    search, out = setup.plan.config.evaluation, folder / evaluation_name(setup.plan, options)
    evaluate(model, list(setup.tasks), out, search, dict(options), setup.progress, cache=setup.store)
