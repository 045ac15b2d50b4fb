"""Turn the rows of a plan into the summary that its tables and its page show."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median

from asda_core.statistics import CONFIDENCE, mean_interval
from asda_hear.ablation.noise_metric import CONTROL_METRIC, LOWER_IS_BETTER, NOISE_METRICS
from asda_hear.ablation.plan import Plan
from asda_hear.ablation.rows import ResultRow
from asda_hear.ablation.settings import BASELINE_COLUMN, SHOWN_COSTS
from asda_hear.evaluate.leaderboard import aggregates, hear_column
from asda_hear.reporting.comparing import (
    TOLERANCE,
    Interval,
    compare,
    holm,
    smallest_p,
    wilcoxon_over_tasks,
)
from asda_hear.reporting.notes import make_notes
from asda_hear.reporting.summary import (
    Effect,
    ScoresBySeed,
    Summary,
    SummaryLine,
    TaskResult,
    averaged_tasks,
    complete_differences,
    log_mel_line,
    reference_label,
)

ClipComparison = Callable[[Sequence[ResultRow], Sequence[ResultRow]], Interval | None]
"""Rows of two lines on one task -> interval of their difference over test clips."""


def summarise(
    plan: Plan, rows: Sequence[ResultRow], compare_clips: ClipComparison | None = None, missing: Sequence[str] = ()
) -> Summary:
    """Group the rows into lines and compare them.

    Args:
        plan: the plan.
        rows: the available results, from `collect_rows`.
        compare_clips: compares two lines clip by clip; None skips that comparison.
        missing: descriptions of what is not done.
    """
    tasks = {str(row["task"]): str(row["metric"]) for row in rows}
    groups = _groups(plan, rows)
    reference = _reference_key(plan, groups)
    best = {task: _best(groups, task, metric) for task, metric in tasks.items()}
    lines = {key: _line(plan, key, members, best) for key, members in groups.items()}
    reference_line = lines.get(reference) if reference else None
    if reference_line and reference:
        for key, line in lines.items():
            if key != reference:
                lines[key] = _with_differences(line, reference_line, groups[key], groups[reference], compare_clips)
    lower_is_better = frozenset(task for task, metric in tasks.items() if metric in LOWER_IS_BETTER)
    scored = frozenset(task for task, metric in tasks.items() if metric not in NOISE_METRICS)
    corrected = _with_p_values(list(lines.values()), reference_line, scored, lower_is_better)
    all_lines = [_with_aggregates(plan, line, corrected, averaged_tasks(tasks)) for line in corrected]
    axes = {axis: tuple(dict.fromkeys(cell.labels[axis] for cell in plan.cells)) for axis in plan.config.axes}
    return Summary(
        title=plan.file.stem,
        question=plan.config.question or plan.file.stem,
        tasks=tasks,
        lower_is_better=lower_is_better,
        axes=axes,
        lines=tuple(sorted(all_lines, key=lambda line: bool(line.baseline))),
        reference=next((line for line in all_lines if reference_line and line.key == reference_line.key), None),
        effects=tuple(
            replace(effect, difference=None) if _several_clips(rows, effect.task) else effect
            for effect in _effects(axes, lines.values(), tasks, reference_line)
        ),
        notes=tuple(make_notes(plan, rows, all_lines, reference_line)),
        missing=tuple(missing),
        control_tasks=frozenset(task for task, metric in tasks.items() if metric == CONTROL_METRIC),
    )


LineKey = tuple[str, ...]


def _groups(plan: Plan, rows: Sequence[ResultRow]) -> dict[LineKey, list[ResultRow]]:
    """(baseline, label of each axis) -> its rows."""
    groups: dict[LineKey, list[ResultRow]] = {}
    for row in rows:
        key = (str(row[BASELINE_COLUMN]), *(str(row[axis]) for axis in plan.config.axes))
        groups.setdefault(key, []).append(row)
    return groups


def _reference_key(plan: Plan, groups: Mapping[LineKey, object]) -> LineKey | None:
    if isinstance(plan.reference, str):
        key: LineKey = (plan.reference, *("" for _ in plan.config.axes))
    else:
        key = ("", *plan.reference.values())
    return key if key in groups else None


def _scores(rows: Sequence[ResultRow], task: str) -> dict[str, tuple[float, ...]]:
    """Seed -> scores of its folds; infinite scores, such as d' at an AUC of 1, become NaN."""
    return {
        str(row["seed"]): tuple(
            value if math.isfinite(value) else math.nan for value in map(float, str(row["folds"]).split())
        )
        for row in rows
        if row["task"] == task
    }


def _means(scores: ScoresBySeed) -> list[float]:
    """Mean of each seed over its folds."""
    return [sum(folds) / len(folds) for folds in scores.values()]


def _mean(rows: Sequence[ResultRow], task: str) -> float:
    values = _means(_scores(rows, task))
    return sum(values) / len(values) if values else math.nan


def _best(groups: Mapping[LineKey, Sequence[ResultRow]], task: str, metric: str) -> float:
    if metric == CONTROL_METRIC:
        return math.nan
    values = [mean for rows in groups.values() if not math.isnan(mean := _mean(rows, task))]
    return (min if metric in LOWER_IS_BETTER else max)(values, default=math.nan)


def _line(plan: Plan, key: LineKey, rows: Sequence[ResultRow], best: Mapping[str, float]) -> SummaryLine:
    results = {}
    for task in best:
        if scores := _scores(rows, task):
            estimate = mean_interval(_means(scores))
            results[task] = TaskResult(scores, estimate, math.isclose(estimate.mean, best[task], abs_tol=TOLERANCE))
    costs = {}
    for cost in SHOWN_COSTS:
        by_seed = {row["seed"]: float(row[cost.column]) for row in rows if row.get(cost.column) not in ("", None)}
        if by_seed:
            costs[cost.heading] = median(by_seed.values())
    labels = {} if key[0] else dict(zip(plan.config.axes, key[1:], strict=True))
    seeds = {int(row["seed"]): str(row["cell"]) for row in rows if row["seed"] != ""}
    return SummaryLine(labels, key[0], results, costs, {}, tuple(seeds.values()), tuple(seeds))


def _with_differences(
    line: SummaryLine,
    reference: SummaryLine,
    rows: Sequence[ResultRow],
    theirs: Sequence[ResultRow],
    compare_clips: ClipComparison | None,
) -> SummaryLine:
    """Return the line with its differences from the reference; none on tasks measured on different clips."""
    results = {}
    for task, result in line.results.items():
        ours, other = ([row for row in side if row["task"] == task] for side in (rows, theirs))
        if not other or _several_clips([*ours, *other], task):
            continue
        difference = compare(result.scores, reference.results[task].scores)
        if difference and compare_clips:
            difference = replace(difference, clip_interval=compare_clips(*_of_common_seeds(ours, other)))
        results[task] = replace(result, difference=difference)
    return replace(line, results={**line.results, **results})


def _several_clips(rows: Sequence[ResultRow], task: str) -> bool:
    """Whether the models were measured on different clips, so that they cannot be paired."""
    return len({row.get("clips") or "" for row in rows if row["task"] == task}) > 1


def _of_common_seeds(ours: Sequence[ResultRow], theirs: Sequence[ResultRow]) -> tuple[list[ResultRow], list[ResultRow]]:
    """Rows of the seeds that `compare` pairs: those in both lines, or all if one line is a baseline."""
    seeds = {str(row["seed"]) for row in ours}, {str(row["seed"]) for row in theirs}
    if {""} in seeds:
        return list(ours), list(theirs)
    common = seeds[0] & seeds[1]
    first, second = ([row for row in side if str(row["seed"]) in common] for side in (ours, theirs))
    return first, second


def _with_p_values(
    lines: list[SummaryLine], reference: SummaryLine | None, scored: frozenset[str], lower_is_better: frozenset[str]
) -> list[SummaryLine]:
    """Return lines with their Wilcoxon p over scored tasks, Holm-corrected; without p if there are too few tasks.

    The test ranks the differences shown in the table, which are paired by seed and fold; positive is better.
    """
    ranked = [] if reference is None else complete_differences(lines, scored)
    if not ranked or smallest_p(len(scored), len(ranked)) > 1 - CONFIDENCE:
        return lines
    raw = {
        line.key: wilcoxon_over_tasks(
            {task: -each.mean if task in lower_is_better else each.mean for task, each in differences.items()}
        )
        for line, differences in ranked
    }
    corrected = {key: p for key, p in holm(raw).items() if not math.isnan(p)}
    return [replace(line, p_value=corrected.get(line.key)) for line in lines]


def _with_aggregates(
    plan: Plan, line: SummaryLine, lines: Iterable[SummaryLine], averaged: frozenset[str]
) -> SummaryLine:
    """Add the mean over these tasks, or all aggregates if all are on HEAR's leaderboard (log-mel as measured here).

    Args:
        plan: tells which baseline is log-mel.
        line: gets the aggregates.
        lines: all of the plan, with log-mel.
        averaged: from `averaged_tasks`.
    """
    means = {task: result.estimate.mean for task, result in line.results.items() if task in averaged}
    if len(means) < 2 or means.keys() < averaged:
        return line  # a mean over fewer tasks would share a column with means over all
    log_mel = log_mel_line(plan, lines, averaged)
    measured = None if log_mel is None else {task: log_mel.results[task].estimate.mean for task in means}
    values = aggregates(means, measured)
    mean_only = {name: value for name, value in values.items() if name == "mean"}
    return replace(line, aggregates=values if all(map(hear_column, means)) else mean_only)


def _effects(
    axes: Mapping[str, Sequence[str]], lines: Iterable[SummaryLine], tasks: Iterable[str], reference: SummaryLine | None
) -> list[Effect]:
    """Effects of every label with results, for axes with at least two such labels, averaged over the other axes."""
    combinations = [line for line in lines if not line.baseline]
    effects = []
    for axis, labels in axes.items():
        for task in tasks:
            by_label = {label: _by_other_labels(combinations, axis, label, task) for label in labels}
            tables = {label: table for label, table in by_label.items() if table}
            if len(tables) < 2:
                continue
            other = reference_label(axis, list(tables), reference)
            shared = [key for key in tables[other] if all(key in table for table in tables.values())]
            of_labels = [_effect(axis, label, task, tables, shared, other) for label in tables]
            effects += [effect for effect in of_labels if effect]
    return effects


def _by_other_labels(lines: Sequence[SummaryLine], axis: str, label: str, task: str) -> dict[LineKey, ScoresBySeed]:
    """Labels of the other axes -> scores, for the lines with this label."""
    return {
        tuple(value for name, value in line.labels.items() if name != axis): line.results[task].scores
        for line in lines
        if line.labels[axis] == label and task in line.results
    }


def _effect(
    axis: str,
    label: str,
    task: str,
    tables: Mapping[str, Mapping[LineKey, ScoresBySeed]],
    shared: Sequence[LineKey],
    other: str,
) -> Effect | None:
    """Effect of a label over the combinations of other axes shared by all labels, and the seeds shared by all these."""
    seeds = [set(table[key]) for table in tables.values() for key in shared]
    common = sorted(set.intersection(*seeds), key=str) if seeds else []
    folds = {len(table[key][seed]) for table in tables.values() for key in shared for seed in common}
    if len(folds) != 1:
        return None
    ours, theirs = (
        {seed: _mean_over([tables[name][key][seed] for key in shared]) for seed in common} for name in (label, other)
    )
    difference = None if label == other else compare(ours, theirs)
    return Effect(axis, label, task, mean_interval(_means(ours)), difference, other)


def _mean_over(combinations: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    """Mean over combinations, fold by fold."""
    return tuple(sum(folds) / len(folds) for folds in zip(*combinations, strict=True))
