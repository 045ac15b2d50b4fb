"""Output files of a plan: tables in Markdown, LaTeX, CSV and Parquet, rows for the leaderboard, one HTML page."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from asda_core.config_io import to_yaml
from asda_core.pretrain.reporter import read_log
from asda_core.system.files import read_json_object, write_csv, write_text
from asda_core.system.locks import hold_lock
from asda_core.system.paths import MODEL_FILE
from asda_hear.ablation.cells import (
    CELLS,
    ERROR_FILE,
    FACTS_FILE,
    TIMES_FILE,
    PlanSetup,
    baseline_options,
    evaluation_name,
    is_done,
)
from asda_hear.ablation.environment import code_commit, environment
from asda_hear.ablation.noise_metric import read_noise_rows
from asda_hear.ablation.plan import Cell, labels_text
from asda_hear.ablation.rows import ResultRow
from asda_hear.ablation.run import RESULTS_FOLDER, ROWS_LOCK
from asda_hear.ablation.settings import BASELINE_COLUMN, CLIP_COLUMNS
from asda_hear.evaluate.clip_predictions import ClipPredictions, can_score, read_predictions
from asda_hear.evaluate.leaderboard import hear_column, leaderboard_row, write_leaderboard
from asda_hear.evaluate.standing import LEADERBOARD_FILE
from asda_hear.evaluate.task_checks import DEFAULT_SEED
from asda_hear.reporting.comparing import Floats, Interval, bootstrap_scores, compare_predictions
from asda_hear.reporting.latex import to_latex
from asda_hear.reporting.page import Failure, PageDetails, write_page
from asda_hear.reporting.summarising import summarise
from asda_hear.reporting.summary import Summary
from asda_hear.reporting.tables import to_markdown
from asda_hear.reporting.tidy import write_tidy
from asda_hear.work_queue import read_failure

MAX_NAMED_UNITS = 5
"""Maximum number of missing units that are named."""
TABLE_FILE, LATEX_FILE, PAGE_FILE = "table.md", "table.tex", "report.html"
NOISE_FILE = "noise.csv"


def write_report(setup: PlanSetup, rows: Sequence[ResultRow]) -> str:
    """Write all outputs to the result folder under a lock, and return the table as Markdown."""
    with hold_lock(setup.out / ROWS_LOCK):
        return _write(setup, rows)


def _write(setup: PlanSetup, rows: Sequence[ResultRow]) -> str:
    out = setup.out
    failures = _failures(setup)
    missing = _missing(setup, failures)
    summary = summarise(setup.plan, rows, PredictionCache(setup).difference, missing)
    if rows:
        summary = replace(summary, notes=(*summary.notes, f"Made by `{plan_command(setup)}`."))
    table = to_markdown(summary)
    write_text(out / TABLE_FILE, table)
    write_text(out / LATEX_FILE, to_latex(summary))
    write_tidy(rows, out)
    _write_leaderboard(summary, out)
    _write_noise(setup)
    write_page(summary, _details(setup, failures), out / PAGE_FILE)
    return table


class PredictionCache:
    """The clip-level predictions of a plan, each file read once."""

    def __init__(self, setup: PlanSetup) -> None:
        self.setup, self.predictions = setup, dict[Path, ClipPredictions | None]()
        self.bootstrap_scores: dict[tuple[int, ...], Floats] = {}
        self.cells = {(labels_text(cell.labels), cell.seed): cell for cell in setup.plan.cells}

    def difference(self, ours: Sequence[ResultRow], theirs: Sequence[ResultRow]) -> Interval | None:
        """Interval of the difference over clips; None if predictions are missing or the metric is not clip-level."""
        first, second = ([self._read(row) for row in rows] for rows in (ours, theirs))
        predictions = [
            [items for items in side if items is not None and can_score(items.metric)] for side in (first, second)
        ]
        if not all(predictions) or [len(side) for side in predictions] != [len(first), len(second)]:
            return None
        return compare_predictions(predictions[0], predictions[1], self._draw)

    def _draw(self, items: Sequence[ClipPredictions]) -> Floats:
        """`bootstrap_scores`, cached: every comparison of a line on a task uses the same draws."""
        key = tuple(map(id, items))
        if key not in self.bootstrap_scores:
            self.bootstrap_scores[key] = bootstrap_scores(items)
        return self.bootstrap_scores[key]

    def _read(self, row: ResultRow) -> ClipPredictions | None:
        plan = self.setup.plan
        if row[BASELINE_COLUMN]:
            options = baseline_options(plan, row[BASELINE_COLUMN])
            unit = self.setup.baseline_folder(row[BASELINE_COLUMN])
        else:
            labels = {axis: row[axis] for axis in plan.config.axes}
            unit = self.setup.store / CELLS / row["cell"]
            options = self.cells[labels_text(labels), int(row["seed"])].options
        folder = unit / evaluation_name(plan, options) / row["task"]
        if folder not in self.predictions:
            self.predictions[folder] = read_predictions(folder)
        return self.predictions[folder]


def _missing(setup: PlanSetup, failures: Sequence[Failure]) -> list[str]:
    """Units that are not done: the failed ones, then the names of the first others, then the number of the rest."""
    failed = [f"{failure.cell} failed: {failure.error.rstrip('.')}" for failure in failures]
    unfinished = [
        unit.name for unit in setup.units() if not is_done(setup, unit) and not (unit.folder / ERROR_FILE).exists()
    ]
    omitted = [f"and {len(unfinished) - MAX_NAMED_UNITS} more"] if len(unfinished) > MAX_NAMED_UNITS else []
    return failed + unfinished[:MAX_NAMED_UNITS] + omitted


def _failures(setup: PlanSetup) -> list[Failure]:
    failures = []
    for unit in setup.units():
        file = unit.folder / ERROR_FILE
        if file.exists() and not is_done(setup, unit):
            failures.append(Failure(unit.name, read_failure(file), file.read_text(encoding="utf-8")))
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


def _write_noise(setup: PlanSetup) -> None:
    """Write every number of the attention on noise: each map and layer, all queries and the class token."""
    if setup.plan.noise is None:
        (setup.out / NOISE_FILE).unlink(missing_ok=True)
        return
    rows = []
    for cell in setup.plan.cells:
        folder = setup.store / CELLS / cell.name
        if (folder / MODEL_FILE).exists():
            for measured in read_noise_rows(setup.plan.noise, str(folder / MODEL_FILE), folder) or []:
                fields = {key: value for key, value in asdict(measured).items() if key not in ("ratios", "clips")}
                over_clips = dict(zip(CLIP_COLUMNS, (len(measured.clips), fmean(measured.ratios)), strict=True))
                rows.append({**fields, **over_clips, **cell.labels, "seed": cell.seed, "cell": cell.name})
    write_csv(setup.out / NOISE_FILE, rows)


def _details(setup: PlanSetup, failures: Sequence[Failure]) -> PageDetails:
    """What the page shows in addition to the numbers."""
    plan = setup.plan
    curves: dict[str, dict[str, dict[str, list[float]]]] = {}
    configs, made, timings = {}, list[dict[str, str | int]](), list[dict[str, float]]()
    commands: dict[str, list[Cell]] = {}
    timed_cells = set[str]()
    for cell in plan.cells:
        folder = setup.store / CELLS / cell.name
        configs[cell.name] = to_yaml(cell.config)
        commands.setdefault(cell.name, []).append(cell)
        facts = read_json_object(folder / FACTS_FILE)
        made += [facts["made"]] if facts.get("made") else []
        if log := read_log(folder):
            curves.setdefault(labels_text(cell.labels), {})[str(cell.seed)] = log
        if cell.name not in timed_cells:
            timings.append(read_json_object(folder / TIMES_FILE))
            timed_cells.add(cell.name)
    finished = max((str(facts.get("finished", "")) for facts in made), default="")
    made_with = distinct_facts(made or [environment()])
    made_with.pop("finished", None)
    commit = made_with.pop("commit", "") or code_commit()
    return PageDetails(
        curves=curves,
        configs=configs,
        plan=plan.file.read_text(encoding="utf-8"),
        environment=made_with,
        commit=commit,
        command=f"OMP_NUM_THREADS={plan.config.evaluation.threads} {plan_command(setup)}",
        cell_commands={name: cells_command(setup, cells) for name, cells in commands.items()},
        failures=tuple(failures),
        created=finished or datetime.now(UTC).isoformat(timespec="seconds"),
        wall_seconds=sum(times.get("pretrain_seconds", 0.0) for times in timings) or None,
        cpu_seconds=sum(times.get("pretrain_cpu_seconds", 0.0) for times in timings) or None,
    )


def distinct_facts(made: Sequence[Mapping[str, str | int]]) -> dict[str, str]:
    """Return fact -> its value, or all of them, with a note, where cells differ."""
    texts = {}
    for name in dict.fromkeys(name for facts in made for name in facts):
        values = dict.fromkeys(str(facts[name]) for facts in made if facts.get(name))
        texts[name] = " / ".join(values) + (" (cells differ)" if len(values) > 1 else "")
    return texts


def plan_command(setup: PlanSetup) -> str:
    """The command that reproduces or resumes the whole plan, as typed in the current folder."""
    words = ["asda-hear", "ablate", setup.plan.name or relative_path(setup.plan.file)]
    if setup.out.resolve() != (RESULTS_FOLDER / setup.plan.file.stem).resolve():
        words += ["--out", relative_path(setup.out)]
    if setup.store.resolve() != setup.out.resolve():
        words += ["--store", relative_path(setup.store)]
    return shlex.join(words)


def cells_command(setup: PlanSetup, cells: Sequence[Cell]) -> str:
    """The command for the cells of one training, from the config in the store: train, then score with all options."""
    plan, cell = setup.plan, cells[0]
    folder = setup.store / CELLS / cell.name
    threads = f"OMP_NUM_THREADS={plan.config.evaluation.threads}"
    train: list[Any] = ["asda", "pretrain", relative_path(folder / "config.yaml"), "--out", f"runs/{cell.name}"]
    if plan.config.data:
        train += ["--data", *(relative_path(plan.file.parent / source) for source in plan.config.data)]
    if cell.init is not None:
        train += ["--init", relative_path(cell.init)]
    scores = {} if plan.config.tasks is None else {str(each.options): _score_command(setup, each) for each in cells}
    return " && ".join(f"{threads} {shlex.join(map(str, command))}" for command in (train, *scores.values()))


def _score_command(setup: PlanSetup, cell: Cell) -> list[Any]:
    search, folder = setup.plan.config.evaluation, next(iter(setup.tasks)).parent
    score: list[Any] = ["asda-hear", "evaluate", "--model", f"runs/{cell.name}", "--tasks", relative_path(folder)]
    score += ["--task", *(task.name for task in setup.tasks), "--grid", search.grid]
    score += ["--grid-points", search.grid_points, "--threads", search.threads]
    if search.seed != DEFAULT_SEED:
        score += ["--seed", search.seed]
    for key, value in cell.options.items():
        value = "null" if value is None else value
        score += ["--option", f"{key}={value}"]
    return score


def relative_path(path: Path) -> str:
    """A path relative to the current folder."""
    return os.path.relpath(path)
