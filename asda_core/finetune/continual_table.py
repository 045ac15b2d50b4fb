"""Continual learning for several checkpoints, modes and seeds, and its table."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from asda_core.catalog import Catalog
from asda_core.config_io import signature
from asda_core.errors import AsdaError, PartlyFailed, TrainingStopped
from asda_core.finetune.continual import Outcome, Task, learn_sequentially
from asda_core.finetune.recipes import recipe_for
from asda_core.finetune.sweep import SEED_FIELD, read_start
from asda_core.statistics import mean_interval
from asda_core.system.files import NAME_DIGITS, csv_text, text_digest, write_text
from asda_core.system.markdown import escape_markdown, table_lines

ROWS_FILE, TABLE_FILE, OUTCOME_SUFFIX = "continual.csv", "continual.md", ".outcome.json"


@dataclass(frozen=True)
class Stream:
    """A comparison of checkpoints, modes and seeds on one sequence of tasks.

    Attributes:
        tasks: tasks in order, each with its recipe before a mode changes it.
        starts: label -> path of a checkpoint or config, as in a sweep.
        modes: see `recipe_for`.
        seeds: every combination is run with each.
        base_folder: folder that paths in the recipe are relative to.
    """

    tasks: Sequence[Task]
    starts: Mapping[str, str]
    modes: Sequence[str]
    seeds: Sequence[int]
    base_folder: Path = Path()

    @property
    def identity(self) -> list[list[str]]:
        """Name, recipe, fold and clips of each task; a table holds only outcomes with the same identity."""
        return [
            [task.data.name, signature(task.recipe, over=task.overrides), task.split.name, task.digest]
            for task in self.tasks
        ]


Outcomes = dict[tuple[str, str], dict[int, Outcome]]
"""(label of the checkpoint, mode) -> seed -> outcome."""


class StreamsFailed(PartlyFailed[Outcomes]):
    """Combinations of a stream failed."""


def run_stream(stream: Stream, out: Path, catalog: Catalog, device: str = "cpu", progress: bool = True) -> Outcomes:
    """Run the unfinished part of a stream; modes are checked before anything runs.

    Raises:
        StreamsFailed: some combinations failed; all others are done.
        TrainingStopped: after Ctrl-C or SIGTERM.
    """
    recipes = {
        mode: [recipe_for(task.recipe, mode, catalog, task.overrides) for task in stream.tasks] for mode in stream.modes
    }
    outcomes: Outcomes = {}
    failed: list[str] = []
    for seed in stream.seeds:
        for label, path in stream.starts.items():
            for mode in stream.modes:
                tasks = [
                    replace(task, recipe=replace(recipe, seed=seed))
                    for task, recipe in zip(stream.tasks, recipes[mode], strict=True)
                ]
                folder = out / f"{label}-{mode.replace('=', '')}-seed{seed}"
                try:
                    start, digest = read_start(path.replace(SEED_FIELD, str(seed)))
                    outcome = learn_sequentially(
                        tasks, start, digest, folder, catalog, device, progress, stream.base_folder
                    )
                except TrainingStopped:
                    raise
                except AsdaError as error:  # a failing mode must not stop the others
                    failed.append(f"{label}, {mode}, seed {seed}: {error}")
                    print(f"failed: {failed[-1]}", file=sys.stderr)
                    continue
                outcomes.setdefault((label, mode), {})[seed] = outcome
                run = {"of": [label, mode, seed], "tasks": stream.identity, "per_seed": SEED_FIELD in path}
                facts = {**run, **asdict(outcome)}
                identity = text_digest(json.dumps([stream.identity, outcome.start, outcome.recipes]), NAME_DIGITS)
                write_text(out / f"{folder.name}-{identity}{OUTCOME_SUFFIX}", json.dumps(facts, indent=1) + "\n")
                write_stream(stream, outcomes, out)
    if failed:
        raise StreamsFailed(outcomes, f"{len(failed)} of the runs failed: " + "; ".join(failed))
    return outcomes


def write_stream(stream: Stream, outcomes: Outcomes, out: Path) -> str:
    """Write `continual.csv` (a row per seed, task learned and task evaluated) and `continual.md`; return the latter.

    Outcomes of the same tasks, recipe and checkpoints from other commands in the folder are kept in both.
    """
    outcomes, others = _with_others(stream, outcomes, out)
    names = [task.data.name for task in stream.tasks]
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / ROWS_FILE, _csv(outcomes, names))
    header = ["checkpoint", "mode", "after", *map(escape_markdown, names)]
    header += ["average", "forgetting", "backward transfer", "seeds", "trained", "stored"]
    rows = []
    for (label, mode), by_seed in outcomes.items():
        runs = list(by_seed.values())
        for t, name in enumerate(names):
            cells = [
                str(mean_interval([run.matrix[t][k] for run in runs])) if k <= t else "" for k in range(len(names))
            ]
            last = t == len(names) - 1
            summary = [str(mean_interval([getattr(run, metric)() for run in runs])) if last else "" for metric in ENDS]
            sizes = [str(len(runs)), f"{runs[0].trained[t]:,}", f"{runs[0].stored:,}" if last else ""]
            rows.append([escape_markdown(label), mode, escape_markdown(name), *cells, *summary, *sizes])
    metrics = "accuracy" if all(task.data.single for task in stream.tasks) else "accuracy, or mAP with several labels"
    others_note = f" Outcomes of other tasks, clips, recipes or checkpoints in this folder, not in the table: {others}."
    notes = others_note if others else ""
    leaked = dict.fromkeys(
        task for by_seed in outcomes.values() for outcome in by_seed.values() for task in outcome.heard
    )
    leak_note = (
        f" **Test clips of {escape_markdown(', '.join(leaked))} were in the training data of the start or of another "
        "task**: their values, and so forgetting and backward transfer, are not on unseen clips."
    )
    notes += leak_note if leaked else ""
    note = f"{_seeds_text(outcomes)}; {metrics} on the test clips of each task after each task. {NOTE}{notes}"
    text = "\n".join([*table_lines(header, rows), "", note, ""])
    write_text(out / TABLE_FILE, text)
    return text


def _seeds_text(outcomes: Outcomes) -> str:
    """What the values are over, and whether lines have different seeds."""
    seeds_of_lines = {frozenset(by_seed) for by_seed in outcomes.values()}
    counts = {len(seeds) for seeds in seeds_of_lines}
    over = f"{max(counts)} seeds" if len(counts) == 1 else "the seeds of a line"
    text = f"Mean ± half the 95 % interval over {over}" if max(counts) > 1 else "One seed"
    return f"{text} (not every line has every seed)" if len(seeds_of_lines) > 1 else text


def _with_others(stream: Stream, outcomes: Outcomes, out: Path) -> tuple[Outcomes, int]:
    """Merge these outcomes with those that other commands left; also return how many of the latter do not match.

    For a checkpoint that this command does not use, those with the same start as its newest outcome are kept.
    """
    merged = {key: dict(by_seed) for key, by_seed in outcomes.items()}
    newest: dict[tuple[str, int | None], str] = {}
    others: list[tuple[tuple[str, str], int, bool]] = []
    for file in sorted(out.glob(f"*{OUTCOME_SUFFIX}"), key=lambda path: (-path.stat().st_mtime_ns, path.name)):
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
            label, mode, seed = stored["of"]
            outcome = _read_outcome(stored)
        except (ValueError, TypeError, KeyError):
            print(f"warning: {file} is damaged and not in the table.", file=sys.stderr)
            continue
        used = {own.recipes for (_, name), by_seed in outcomes.items() if name == mode for own in by_seed.values()}
        same_recipe = not used or not outcome.recipes or outcome.recipes in used  # earlier versions did not record them
        if stored.get("tasks") == stream.identity and same_recipe:
            newest_start = newest.setdefault((label, seed if stored.get("per_seed") else None), outcome.start)
            if outcome.start in (_starts_of(stream, outcomes, label, seed) or {newest_start}):
                merged.setdefault((label, mode), {}).setdefault(seed, outcome)
                continue
        others.append(((label, mode), seed, "start" in stored))
    # Outcomes of earlier versions, which recorded no start, are not counted if they were recomputed.
    return merged, sum(has_start or seed not in merged.get(key, {}) for key, seed, has_start in others)


def _read_outcome(stored: Mapping[str, Any]) -> Outcome:
    """Parse what `run_stream` wrote; raises built-in exceptions if it is damaged."""
    return Outcome(
        tuple(map(tuple, stored["matrix"])),
        tuple(stored["trained"]),
        int(stored["stored"]),
        str(stored.get("start", "")),
        tuple(stored.get("recipes", ())),
        tuple(stored.get("heard", ())),
    )


def _starts_of(stream: Stream, outcomes: Outcomes, label: str, seed: int) -> set[str]:
    """Starts of this command's outcomes for a checkpoint: of one seed if each has its own start, otherwise of all."""
    start_per_seed = SEED_FIELD in stream.starts.get(label, "")
    of_label = (by_seed for (name, _), by_seed in outcomes.items() if name == label)
    return {
        outcome.start
        for by_seed in of_label
        for number, outcome in by_seed.items()
        if number == seed or not start_per_seed
    }


ENDS = ("average", "forgetting", "backward_transfer")
NOTE = (
    "Forgetting: mean drop from the best value; backward transfer: mean change since the task was learned. "
    "Trained: parameters trained for each task; stored: parameters kept in the end for all tasks."
)


def _csv(outcomes: Outcomes, names: Sequence[str]) -> str:
    rows = [
        [label, mode, seed, after, on, f"{value:.6f}"]
        for (label, mode), by_seed in outcomes.items()
        for seed, outcome in by_seed.items()
        for after, values in zip(names, outcome.matrix, strict=True)
        for on, value in zip(names, values, strict=False)
    ]
    return csv_text([["checkpoint", "mode", "seed", "after", "on", "value"], *rows])
