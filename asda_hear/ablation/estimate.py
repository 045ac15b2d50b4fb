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
from asda_core.official.reading import read_model
from asda_core.pretrain.loop import pretrain
from asda_core.system.resources import SECONDS_PER_HOUR, in_words
from asda_core.system.workers import Shard
from asda_core.weights.paths import MODEL_FILE, newest_step
from asda_hear.ablation.cells import (
    BASELINES,
    CELLS,
    PlanWork,
    Unit,
    device,
    evaluation_name,
    is_done,
    model_of,
    tasks_left,
    unit_measured,
)
from asda_hear.ablation.noise_metric import can_measure, measure
from asda_hear.ablation.plan import Cell, text_of
from asda_hear.evaluate.compat import installed
from asda_hear.evaluate.identity import read_stamp
from asda_hear.evaluate.runner import SECONDS_FILE, evaluate

MEASURED_STEPS = 4
"""Timed steps: enough to get past the warm-up, few enough to take seconds."""
PILOT_CLIPS = 5000
"""If nothing is scored yet, tasks of at most so many clips in total are scored once to measure the time."""
WEIGHTS = frozenset({"seed", "steps", "optimizer", "lambda_init", "frame_weight", "utterance_weight", "noise_std"})
"""Keys that change no size, and so not the time of a step."""
PILOT_NOISE_CLIPS = 4
"""Clips on which the time to measure attention on noise is taken."""
UNTRAINED = "untrained"
"""Folder of a model that is made if no step has to be measured."""


@dataclass(frozen=True)
class TimeLeft:
    """Seconds of one process for the remaining work.

    Attributes:
        training, evaluation, noise: the parts; None if evaluation could not be measured.
        step: kind of cell -> seconds of a step.
    """

    training: float
    evaluation: float | None
    noise: float
    step: Mapping[str, float]


def print_estimate(work: PlanWork, shard: Shard, jobs: int, option: str = "--jobs") -> None:
    """Print the cells, what is done, and the time for the rest (`--dry-run`); `option` is the one that sets `jobs`."""
    units = work.units(shard)
    left = [unit for unit in units if not is_done(work, unit)]
    for unit in units:
        state = "done" if unit not in left else "trained" if (unit.folder / MODEL_FILE).exists() else "to do"
        if not unit.cells:
            print(f"baseline  {state:<8} {unit.baseline}: {work.plan.config.baselines[unit.baseline]}")
        for cell in unit.cells:
            print(f"{cell.name}  seed {cell.seed}  {state:<8} {text_of(cell.labels)}")
    cells = sum(len(unit.cells) for unit in units)
    trainings = sum(bool(unit.cells) for unit in units)
    untrained = sum(bool(unit.cells) and not (unit.folder / MODEL_FILE).exists() for unit in left)
    print(f"{cells} cells x {len(work.tasks)} tasks; {trainings} different trainings, {untrained} to do; ", end="")
    print(f"{len(left)} of {len(units)} trainings and baselines to do or to score.")
    if not left:
        return
    estimate = estimate_rest(work, left)
    print(f"training: {in_words(estimate.training)}", end="")
    print("".join(f"; {seconds:.3f} s per step of {kind}" for kind, seconds in estimate.step.items()))
    if estimate.evaluation is None:
        print(f"evaluation: not measured yet (over {PILOT_CLIPS} clips, or no heareval); a first cell will tell.")
    else:
        print(f"evaluation: {in_words(estimate.evaluation)}")
    if estimate.noise:
        print(f"attention on noise: {in_words(estimate.noise)}")
    total = estimate.training + (estimate.evaluation or 0.0) + estimate.noise
    shared = f", {in_words(total / jobs)} with {option} {jobs}" if jobs > 1 else ""
    print(f"together: about {in_words(total)} of one process{shared}.")
    hours = work.plan.config.budget.hours
    if hours is not None and total / jobs > hours * SECONDS_PER_HOUR:
        print(f"that is more than the budget of {hours} hours.")


def estimate_rest(work: PlanWork, left: list[Unit]) -> TimeLeft:
    """Estimate how long these units take, measuring what is needed for it."""
    with tempfile.TemporaryDirectory(prefix="asda-estimate-") as folder:
        steps: dict[str, float] = {}
        kinds: dict[str, str] = {}
        training = 0.0
        for unit in (unit for unit in left if unit.cells and not (unit.folder / MODEL_FILE).exists()):
            cell = unit.cells[0]
            to_go = _steps_left(cell, unit.folder)
            if not to_go:  # takes no time, may have no audio, and has no step to time
                continue
            kind = kind_of(cell.config)
            if kind not in kinds:
                kinds[kind] = text_of(cell.labels)
                steps[kinds[kind]] = _step_seconds(work, cell, Path(folder) / str(len(kinds)))
            training += steps[kinds[kind]] * to_go
        to_score = [name for unit in left for name in tasks_left(work, unit)]
        scored = _scored_seconds(work)
        unknown = [task for task in work.tasks if task.name in set(to_score) - scored.keys()]
        if unknown and installed() and _clips(unknown) <= PILOT_CLIPS:
            scored |= _pilot(work, left, Path(folder), unknown)
        noise = _noise_seconds(work, left, Path(folder)) if work.plan.noise else 0.0
    evaluation = sum(scored[name] for name in to_score) if scored.keys() >= set(to_score) else None
    return TimeLeft(training, evaluation, noise, steps)


def kind_of(config: RunConfig) -> str:
    """Return a key that is the same for cells that differ only in `WEIGHTS` (seed, rates, ...) and so cost the same."""

    def telling(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: telling(below) for key, below in value.items() if key not in WEIGHTS}
        return value

    return json.dumps(telling(to_plain(config)), sort_keys=True, default=str)


def _step_seconds(work: PlanWork, cell: Cell, folder: Path) -> float:
    """Return the seconds per step of a short training of the same kind, without its start-up."""
    init = None if cell.init is None else read_model(cell.init)
    spent = []
    for steps in (1, 1 + MEASURED_STEPS):
        config = replace(cell.config, steps=steps, checkpoint_every=steps, log_every=steps)
        started = time.monotonic()
        pretrain(config, list(work.plan.audio), folder / str(steps), work.catalog, device(), False, init)
        spent.append(time.monotonic() - started)
    alone, more = spent
    if more <= alone:  # the first paid for what is made once, or the machine was busy
        return more / (1 + MEASURED_STEPS)
    return (more - alone) / MEASURED_STEPS


def _steps_left(cell: Cell, folder: Path) -> int:
    step = newest_step(folder)
    return max(0, cell.config.steps - (int(step.name.rpartition("-")[2]) if step else 0))


def _scored_seconds(work: PlanWork) -> dict[str, float]:
    """Task -> median seconds of its evaluations with this search in this store: of cells, otherwise of baselines."""
    ways = {evaluation_name(work.plan, cell.options) for cell in work.plan.cells}
    found: dict[str, float] = {}
    for place in (BASELINES, CELLS):  # cells override baselines: they are closer to the remaining work
        for task in work.tasks:
            files = [file for way in ways for file in (work.store / place).glob(f"*/{way}/{task.name}")]
            spent = [sum(seconds.values()) for seconds in map(_seconds, files) if seconds]
            if spent:
                found[task.name] = median(spent)
    return found


def _seconds(folder: Path) -> dict[str, float]:
    return read_stamp(folder / SECONDS_FILE) or {}


def _pilot(work: PlanWork, left: list[Unit], folder: Path, tasks: Sequence[Path]) -> dict[str, float]:
    """Score any model of this plan with the settings of its cells; return task -> seconds."""
    cells = [cell for unit in left for cell in unit.cells]
    model = _any_model(work, left, folder)
    if not cells or model is None:
        return {}
    options = {key: value for key, value in cells[0].options.items() if key != "weights"}  # either takes as long
    evaluate(str(model), list(tasks), folder / "scores", work.plan.config.evaluation, options,
             progress=False, cache=folder)  # fmt: skip
    return {task.name: sum(_seconds(folder / "scores" / task.name).values()) for task in tasks}


def _noise_seconds(work: PlanWork, left: list[Unit], folder: Path) -> float:
    """Estimate from other measurements in this store, otherwise by measuring a few clips with any model of the plan."""
    noise = work.plan.noise
    assert noise is not None
    count = sum(can_measure(model_of(work, unit)) and unit_measured(work, unit) is None for unit in left)
    files = [read_stamp(file) or {} for file in work.store.glob(f"*/*/{noise.file_name}")]
    known = [float(found["seconds"]) for found in files if "seconds" in found]
    model = _any_model(work, left, folder)
    if known or model is None:
        return count * median(known or [0.0])
    clips = min(noise.config.clips or len(noise.files), len(noise.files))
    few = replace(noise, config=replace(noise.config, clips=min(clips, PILOT_NOISE_CLIPS)))
    started = time.monotonic()
    measure(few, str(model), folder / "noise", work.catalog, progress=False)
    return count * (time.monotonic() - started) * clips / min(clips, PILOT_NOISE_CLIPS)


def _any_model(work: PlanWork, left: list[Unit], folder: Path) -> Path | None:
    """Return a model of this plan: one whose steps were timed, otherwise a trained one, otherwise an untrained one."""
    trained = (work.store / CELLS / cell.name / MODEL_FILE for cell in work.plan.cells)
    made = [*sorted(folder.glob(f"*/1/{MODEL_FILE}")), folder / UNTRAINED / MODEL_FILE, *trained]
    found = next((file for file in made if file.exists()), None)
    cell = next((cell for unit in left for cell in unit.cells), None)
    if found is not None or cell is None:
        return found
    init = None if cell.init is None else read_model(cell.init)
    return pretrain(replace(cell.config, steps=0), [], folder / UNTRAINED, work.catalog, device(), False, init)


def _clips(tasks: Iterable[Path]) -> int:
    """Return the number of clips to embed."""
    return sum(
        len(json.loads(file.read_text()))
        for task in tasks
        for file in task.glob("*.json")
        if file.name != "task_metadata.json"
    )
