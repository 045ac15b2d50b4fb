"""Output files of a plan: tables in Markdown, LaTeX, CSV and Parquet, rows for the leaderboard, one HTML page."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from asda_core.config_io import to_yaml
from asda_core.pretrain.reporter import read_log
from asda_core.system.files import write_rows, write_text
from asda_core.system.locks import locked
from asda_core.weights.paths import MODEL_FILE
from asda_hear.ablation.cells import (
    CELLS,
    ERROR_FILE,
    FACTS_FILE,
    TIMES_FILE,
    PlanWork,
    baseline_options,
    evaluation_name,
    is_done,
)
from asda_hear.ablation.environment import code_commit, environment
from asda_hear.ablation.noise_metric import read_measured
from asda_hear.ablation.plan import Cell, text_of
from asda_hear.ablation.rows import ResultRow
from asda_hear.ablation.run import RESULTS, ROWS_LOCK
from asda_hear.ablation.settings import BASELINE, OVER_CLIPS
from asda_hear.evaluate.identity import read_stamp
from asda_hear.evaluate.items import Items, can_score, read_items
from asda_hear.evaluate.leaderboard import hear_column, leaderboard_row, write_leaderboard
from asda_hear.evaluate.standing import LEADERBOARD_FILE
from asda_hear.evaluate.task_checks import USUAL_SEED
from asda_hear.reporting.comparing import Floats, Interval, compare_items, score_draws
from asda_hear.reporting.latex import to_latex
from asda_hear.reporting.page import Failure, PageDetails, write_page
from asda_hear.reporting.summarising import summarise
from asda_hear.reporting.summary import Summary
from asda_hear.reporting.tables import to_markdown
from asda_hear.reporting.tidy import write_tidy
from asda_hear.work_queue import read_failure

NAMED = 5
"""Maximum number of missing units that are named."""
TABLE_FILE, LATEX_FILE, PAGE_FILE = "table.md", "table.tex", "report.html"
NOISE_FILE = "noise.csv"


def write_report(work: PlanWork, rows: Sequence[ResultRow]) -> str:
    """Write all outputs to the result folder under a lock, and return the table as Markdown."""
    with locked(work.out / ROWS_LOCK):
        return _write(work, rows)


def _write(work: PlanWork, rows: Sequence[ResultRow]) -> str:
    out = work.out
    failures = _failures(work)
    missing = _missing(work, failures)
    summary = summarise(work.plan, rows, ItemsOf(work).difference, missing)
    if rows:
        summary = replace(summary, notes=(*summary.notes, f"Made by `{plan_command(work)}`."))
    table = to_markdown(summary)
    write_text(out / TABLE_FILE, table)
    write_text(out / LATEX_FILE, to_latex(summary))
    write_tidy(rows, out)
    _write_leaderboard(summary, out)
    _write_noise(work)
    write_page(summary, _details(work, failures), out / PAGE_FILE)
    return table


class ItemsOf:
    """The clip-level predictions of a plan, each file read once."""

    def __init__(self, work: PlanWork) -> None:
        self.work, self.known = work, dict[Path, Items | None]()
        self.drawn: dict[tuple[int, ...], Floats] = {}
        self.cells = {(text_of(cell.labels), cell.seed): cell for cell in work.plan.cells}

    def difference(self, ours: Sequence[ResultRow], theirs: Sequence[ResultRow]) -> Interval | None:
        """Interval of the difference over clips; None if predictions are missing or the metric is not clip-level."""
        first, second = ([self._read(row) for row in rows] for rows in (ours, theirs))
        predictions = [
            [items for items in side if items is not None and can_score(items.metric)] for side in (first, second)
        ]
        if not all(predictions) or [len(side) for side in predictions] != [len(first), len(second)]:
            return None
        return compare_items(predictions[0], predictions[1], self._draw)

    def _draw(self, items: Sequence[Items]) -> Floats:
        """`score_draws`, cached: every comparison of a line on a task uses the same draws."""
        key = tuple(map(id, items))
        if key not in self.drawn:
            self.drawn[key] = score_draws(items)
        return self.drawn[key]

    def _read(self, row: ResultRow) -> Items | None:
        plan = self.work.plan
        if row[BASELINE]:
            options = baseline_options(plan, row[BASELINE])
            unit = self.work.baseline_folder(row[BASELINE])
        else:
            labels = {axis: row[axis] for axis in plan.config.axes}
            unit = self.work.store / CELLS / row["cell"]
            options = self.cells[text_of(labels), int(row["seed"])].options
        folder = unit / evaluation_name(plan, options) / row["task"]
        if folder not in self.known:
            self.known[folder] = read_items(folder)
        return self.known[folder]


def _missing(work: PlanWork, failures: Sequence[Failure]) -> list[str]:
    """Units that are not done: the failed ones, then the names of the first others, then the number of the rest."""
    failed = [f"{failure.cell} failed: {failure.error.rstrip('.')}" for failure in failures]
    unfinished = [
        unit.name for unit in work.units() if not is_done(work, unit) and not (unit.folder / ERROR_FILE).exists()
    ]
    omitted = [f"and {len(unfinished) - NAMED} more"] if len(unfinished) > NAMED else []
    return failed + unfinished[:NAMED] + omitted


def _failures(work: PlanWork) -> list[Failure]:
    failures = []
    for unit in work.units():
        file = unit.folder / ERROR_FILE
        if file.exists() and not is_done(work, unit):
            failures.append(Failure(unit.name, read_failure(file), file.read_text()))
    return failures


def _write_leaderboard(summary: Summary, out: Path) -> None:
    """Write a row in the columns of HEAR's leaderboard for every line, if any leaderboard task was run."""
    if not any(hear_column(task) for task in summary.tasks):
        (out / LEADERBOARD_FILE).unlink(missing_ok=True)  # from an earlier version of the plan
        return
    today = datetime.now(UTC).date().isoformat()
    rows = []
    for line in summary.lines:
        scores = {task: result.estimate.mean for task, result in line.results.items() if hear_column(task)}
        rows.append(leaderboard_row(line.name, "", today, scores))
    write_leaderboard(rows, out / LEADERBOARD_FILE)


def _write_noise(work: PlanWork) -> None:
    """Write every number of the attention on noise: each map and layer, all queries and the class token."""
    if work.plan.noise is None:
        (work.out / NOISE_FILE).unlink(missing_ok=True)
        return
    rows = []
    for cell in work.plan.cells:
        folder = work.store / CELLS / cell.name
        if (folder / MODEL_FILE).exists():
            for measured in read_measured(work.plan.noise, str(folder / MODEL_FILE), folder) or []:
                fields = {key: value for key, value in asdict(measured).items() if key not in ("ratios", "clips")}
                over_clips = dict(zip(OVER_CLIPS, (len(measured.clips), fmean(measured.ratios)), strict=True))
                rows.append({**fields, **over_clips, **cell.labels, "seed": cell.seed, "cell": cell.name})
    write_rows(work.out / NOISE_FILE, rows)


def _details(work: PlanWork, failures: Sequence[Failure]) -> PageDetails:
    """What the page shows in addition to the numbers."""
    plan = work.plan
    curves: dict[str, dict[str, dict[str, list[float]]]] = {}
    configs, made_with, timings = {}, dict[str, str | int](), list[dict[str, float]]()
    commands: dict[str, list[Cell]] = {}
    timed_cells = set[str]()
    for cell in plan.cells:
        folder = work.store / CELLS / cell.name
        configs[cell.name] = to_yaml(cell.config)
        commands.setdefault(cell.name, []).append(cell)
        facts = read_stamp(folder / FACTS_FILE) or {}
        made_with = facts.get("made") or made_with
        if log := read_log(folder):
            curves.setdefault(text_of(cell.labels), {})[str(cell.seed)] = log
        if cell.name not in timed_cells:
            timings.append(read_stamp(folder / TIMES_FILE) or {})
            timed_cells.add(cell.name)
    made_with = dict(made_with or environment())
    commit, finished = str(made_with.pop("commit", "") or code_commit()), str(made_with.pop("finished", ""))
    return PageDetails(
        curves=curves,
        configs=configs,
        plan=plan.file.read_text(),
        environment=made_with,
        commit=commit,
        command=f"OMP_NUM_THREADS={plan.config.evaluation.threads} {plan_command(work)}",
        cell_commands={name: cells_command(work, cells) for name, cells in commands.items()},
        failures=tuple(failures),
        made=finished or datetime.now(UTC).isoformat(timespec="seconds"),
        wall_seconds=sum(times.get("pretrain_seconds", 0.0) for times in timings) or None,
        cpu_seconds=sum(times.get("pretrain_cpu_seconds", 0.0) for times in timings) or None,
    )


def plan_command(work: PlanWork) -> str:
    """The command that reproduces or resumes the whole plan, as typed in the current folder."""
    words = ["asda-hear", "ablate", shown(work.plan.file)]
    if work.out.resolve() != (RESULTS / work.plan.file.stem).resolve():
        words += ["--out", shown(work.out)]
    if work.store.resolve() != work.out.resolve():
        words += ["--store", shown(work.store)]
    return shlex.join(words)


def cells_command(work: PlanWork, cells: Sequence[Cell]) -> str:
    """The command for the cells of one training, from the config in the store: train, then score with all options."""
    plan, cell = work.plan, cells[0]
    folder = work.store / CELLS / cell.name
    threads = f"OMP_NUM_THREADS={plan.config.evaluation.threads}"
    train: list[Any] = ["asda", "pretrain", shown(folder / "config.yaml"), "--out", f"runs/{cell.name}"]
    if plan.config.data:
        train += ["--data", *(shown(plan.file.parent / source) for source in plan.config.data)]
    if cell.init is not None:
        train += ["--init", shown(cell.init)]
    scores = {} if plan.config.tasks is None else {str(each.options): _score_command(work, each) for each in cells}
    return " && ".join(f"{threads} {shlex.join(map(str, command))}" for command in (train, *scores.values()))


def _score_command(work: PlanWork, cell: Cell) -> list[Any]:
    search, folder = work.plan.config.evaluation, next(iter(work.tasks)).parent
    score: list[Any] = ["asda-hear", "evaluate", "--model", f"runs/{cell.name}", "--tasks", shown(folder)]
    score += ["--task", *(task.name for task in work.tasks), "--grid", search.grid]
    score += ["--grid-points", search.grid_points, "--threads", search.threads]
    if search.seed != USUAL_SEED:
        score += ["--seed", search.seed]
    for key, value in cell.options.items():
        value = "null" if value is None else value
        score += ["--option", f"{key}={value}"]
    return score


def shown(path: Path) -> str:
    """A path relative to the current folder."""
    return os.path.relpath(path)
