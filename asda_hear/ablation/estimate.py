"""Estimated time for the rest of a plan, from a measured step of each kind of cell and measured evaluations."""

import json
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from asda_core.config import RunConfig
from asda_core.config_io import to_plain
from asda_core.errors import counted
from asda_core.pretrain.loop import pretrain
from asda_core.settings.compute import AUTO
from asda_core.system.files import read_json_object
from asda_core.system.paths import MODEL_FILE, newest_step
from asda_core.system.resources import SECONDS_PER_HOUR, format_duration
from asda_core.system.workers import Shard
from asda_hear.ablation.cells import (
    BASELINES,
    CELLS,
    PlanSetup,
    Unit,
    evaluation_name,
    is_done,
    model_path,
    read_init,
    remaining_tasks,
    unit_noise_rows,
)
from asda_hear.ablation.noise_metric import has_attention, measure_model
from asda_hear.ablation.plan import Cell, labels_text
from asda_hear.evaluate.compat import has_hear_tools
from asda_hear.evaluate.runner import SECONDS_FILE, evaluate
from asda_hear.evaluate.scores import METADATA_FILE

MEASURED_STEPS = 4
"""Timed steps: enough to get past the warm-up, few enough to take seconds."""
PILOT_CLIPS = 5000
"""If nothing is scored yet, tasks of at most so many clips in total are scored once to measure the time."""
TIMING_NEUTRAL_KEYS = frozenset(
    {"seed", "steps", "optimizer", "lambda_init", "frame_weight", "utterance_weight", "noise_std"}
)
"""Keys that change no size, and so not the time of a step."""
PILOT_NOISE_CLIPS = 4
"""Clips on which the time to measure attention on noise is taken."""
UNTRAINED = "untrained"
"""Folder of a model that is made if no step has to be measured."""


@dataclass(frozen=True)
class TimeEstimate:
    """Seconds of one process for the remaining work.

    Attributes:
        training, evaluation, noise: the parts; None if evaluation could not be measured.
        step_seconds: kind of cell -> seconds of a step.
        longest_training: the longest of the trainings, which one process does alone.
    """

    training: float
    evaluation: float | None
    noise: float
    step_seconds: Mapping[str, float]
    longest_training: float


def print_estimate(setup: PlanSetup, shard: Shard, jobs: int, option: str = "--jobs") -> None:
    """Print the cells, what is done, and the time for the rest (`--dry-run`); `option` is the one that sets `jobs`."""
    units = setup.units(shard)
    remaining = [unit for unit in units if not is_done(setup, unit)]
    for unit in units:
        state = "done" if unit not in remaining else "trained" if unit.cells and unit.is_trained else "to do"
        if not unit.cells:
            print(f"baseline  {state:<8} {unit.baseline}: {setup.plan.config.baselines[unit.baseline]}")
        for cell in unit.cells:
            print(f"{cell.name}  seed {cell.seed}  {state:<8} {labels_text(cell.labels)}")
    cells = sum(len(unit.cells) for unit in units)
    trainings = sum(bool(unit.cells) for unit in units)
    untrained = sum(not unit.is_trained for unit in remaining)
    print(
        f"{counted(cells, 'cell')} x {counted(len(setup.tasks), 'task')}; "
        f"{counted(trainings, 'different training')}, {untrained} to do; ",
        end="",
    )
    print(f"{len(remaining)} of {len(units)} trainings and baselines remain to be run or evaluated.")
    if not remaining:
        return
    estimate = estimate_remaining(setup, remaining)
    print(f"training: {format_duration(estimate.training)}", end="")
    print("".join(f"; {seconds:.3f} s per step of {kind}" for kind, seconds in estimate.step_seconds.items()))
    if estimate.evaluation is None:
        print(
            f"evaluation: not measured yet (more than {PILOT_CLIPS} clips, or heareval is not installed); "
            "it is known once a cell has been evaluated."
        )
    else:
        print(f"evaluation: {format_duration(estimate.evaluation)}")
    if estimate.noise:
        print(f"attention on noise: {format_duration(estimate.noise)}")
    total = estimate.training + (estimate.evaluation or 0.0) + estimate.noise
    shared_seconds = max(total / min(jobs, len(remaining)), estimate.longest_training)
    shared = f", {format_duration(shared_seconds)} with {option} {jobs}" if jobs > 1 else ""
    print(f"total: about {format_duration(total)} in one process{shared}.")
    hours = setup.plan.config.budget.hours
    if hours is not None and shared_seconds > hours * SECONDS_PER_HOUR:
        print(f"this exceeds the budget of {hours} hours.")


def estimate_remaining(setup: PlanSetup, units: list[Unit]) -> TimeEstimate:
    """Estimate how long these units take, measuring what is needed for it."""
    with tempfile.TemporaryDirectory(prefix="asda-estimate-") as folder:
        steps: dict[str, float] = {}
        kinds: dict[str, str] = {}
        trainings = [0.0]
        for unit in (unit for unit in units if not unit.is_trained):
            cell = unit.cells[0]
            steps_left = _steps_left(cell, unit.folder)
            if not steps_left:  # takes no time, may have no audio, and has no step to time
                continue
            kind = timing_key(cell.config)
            if kind not in kinds:
                kinds[kind] = labels_text(cell.labels)
                steps[kinds[kind]] = _step_seconds(setup, cell, Path(folder) / str(len(kinds)))
            trainings.append(steps[kinds[kind]] * steps_left)
        missing = [name for unit in units for name in remaining_tasks(setup, unit)]
        task_seconds = _scored_seconds(setup)
        unmeasured = [task for task in setup.tasks if task.name in set(missing) - task_seconds.keys()]
        if unmeasured and has_hear_tools() and _clips(unmeasured) <= PILOT_CLIPS:
            task_seconds |= _pilot(setup, units, Path(folder), unmeasured)
        noise = _noise_seconds(setup, units, Path(folder)) if setup.plan.noise else 0.0
    evaluation = sum(task_seconds[name] for name in missing) if task_seconds.keys() >= set(missing) else None
    return TimeEstimate(sum(trainings), evaluation, noise, steps, max(trainings))


def timing_key(config: RunConfig) -> str:
    """Return a key that is equal for cells that differ only in `TIMING_NEUTRAL_KEYS` and so take as long."""

    def without_weights(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: without_weights(nested) for key, nested in value.items() if key not in TIMING_NEUTRAL_KEYS}
        return value

    return json.dumps(without_weights(to_plain(config)), sort_keys=True, default=str)


def _step_seconds(setup: PlanSetup, cell: Cell, folder: Path) -> float:
    """Return the seconds per step of a short training of the same kind, without its start-up."""
    init, seconds = read_init(cell), []
    for steps in (1, 1 + MEASURED_STEPS):
        config = replace(cell.config, steps=steps, checkpoint_every=steps, log_every=steps)
        started = time.monotonic()
        pretrain(config, list(setup.plan.audio), folder / str(steps), setup.catalog, AUTO, False, init)
        seconds.append(time.monotonic() - started)
    one_step, all_steps = seconds
    if all_steps <= one_step:  # the first paid for what is made once, or the machine was busy
        return all_steps / (1 + MEASURED_STEPS)
    return (all_steps - one_step) / MEASURED_STEPS


def _steps_left(cell: Cell, folder: Path) -> int:
    step = newest_step(folder)
    return max(0, cell.config.steps - (int(step.name.rpartition("-")[2]) if step else 0))


def _scored_seconds(setup: PlanSetup) -> dict[str, float]:
    """Task -> median seconds of its evaluations with this search in this store: of cells, otherwise of baselines."""
    evaluations = {evaluation_name(setup.plan, cell.options) for cell in setup.plan.cells}
    by_task: dict[str, float] = {}
    for subfolder in (BASELINES, CELLS):  # cells override baselines: they are closer to the remaining work
        for task in setup.tasks:
            files = [
                file
                for evaluation in evaluations
                for file in (setup.store / subfolder).glob(f"*/{evaluation}/{task.name}")
            ]
            totals = [sum(seconds.values()) for seconds in map(_seconds, files) if seconds]
            if totals:
                by_task[task.name] = median(totals)
    return by_task


def _seconds(folder: Path) -> dict[str, float]:
    return read_json_object(folder / SECONDS_FILE)


def _pilot(setup: PlanSetup, units: list[Unit], folder: Path, tasks: Sequence[Path]) -> dict[str, float]:
    """Score any model of this plan with the settings of its cells; return task -> seconds."""
    cells = [cell for unit in units for cell in unit.cells]
    model = _any_model(setup, units, folder)
    if not cells or model is None:
        return {}
    options = {key: value for key, value in cells[0].options.items() if key != "weights"}  # either takes as long
    evaluate(str(model), list(tasks), folder / "scores", setup.plan.config.evaluation, options,
             progress=False, cache=folder)  # fmt: skip
    return {task.name: sum(_seconds(folder / "scores" / task.name).values()) for task in tasks}


def _noise_seconds(setup: PlanSetup, units: list[Unit], folder: Path) -> float:
    """Estimate from other measurements in this store, otherwise by measuring a few clips with any model of the plan."""
    noise = setup.plan.noise
    assert noise is not None
    count = sum(has_attention(model_path(setup, unit)) and unit_noise_rows(setup, unit) is None for unit in units)
    if not count:
        return 0.0
    contents = [read_json_object(file) for file in setup.store.glob(f"*/*/{noise.file_name}")]
    measured = [float(content["seconds"]) for content in contents if "seconds" in content]
    model = _any_model(setup, units, folder)
    if measured or model is None:
        return count * median(measured or [0.0])
    clips = min(noise.config.clips or len(noise.files), len(noise.files))
    pilot = replace(noise, config=replace(noise.config, clips=min(clips, PILOT_NOISE_CLIPS)))
    started = time.monotonic()
    measure_model(pilot, str(model), folder / "noise", setup.catalog, progress=False)
    return count * (time.monotonic() - started) * clips / min(clips, PILOT_NOISE_CLIPS)


def _any_model(setup: PlanSetup, units: list[Unit], folder: Path) -> Path | None:
    """Return a model of this plan: one whose steps were timed, otherwise a trained one, otherwise an untrained one."""
    trained = (setup.store / CELLS / cell.name / MODEL_FILE for cell in setup.plan.cells)
    candidates = [*sorted(folder.glob(f"*/1/{MODEL_FILE}")), folder / UNTRAINED / MODEL_FILE, *trained]
    found = next((file for file in candidates if file.exists()), None)
    cell = next((cell for unit in units for cell in unit.cells), None)
    if found is not None or cell is None:
        return found
    config, untrained = replace(cell.config, steps=0), folder / UNTRAINED
    return pretrain(config, [], untrained, setup.catalog, AUTO, False, read_init(cell))


def _clips(tasks: Iterable[Path]) -> int:
    """Return the number of clips to embed."""
    return sum(
        len(json.loads(file.read_text()))
        for task in tasks
        for file in task.glob("*.json")
        if file.name != METADATA_FILE
    )
