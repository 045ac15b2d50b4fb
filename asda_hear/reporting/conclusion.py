"""The conclusion of a plan in sentences that claim no more than its numbers support."""

import math
from collections.abc import Mapping, Sequence
from statistics import median

from asda_core.errors import counted
from asda_hear.reporting.comparing import TOLERANCE
from asda_hear.reporting.summary import Summary, SummaryLine, TaskResult
from asda_hear.reporting.tables import (
    MIN_SEEDS,
    SIGNIFICANCE_LEVEL,
    excludes_zero,
    few_seeds_warning,
    format_number,
    format_signed,
    is_significant,
    p_text,
    score_cell,
    short_name,
    short_names,
    unconfirmed_level,
)

MAX_LISTED_TASKS = 3
"""Largest number of tasks that the answer reports one by one; with more, it counts them."""


def conclusion(summary: Summary) -> list[str]:
    """Return sentences: which line is best, whether that can be told from chance, and what the plan cannot show."""
    lines = [line for line in summary.lines if not line.baseline and line.results]
    if not lines:
        return ["No combination of this plan is done yet: no conclusion is possible."]
    ranked_tasks = [task for task in summary.tasks if task not in summary.control_tasks]
    best = {task: line for task in ranked_tasks if (line := _best(summary, lines, task)) is not None}
    if not best:
        return ["No combination has a score to compare: no conclusion is possible."]
    if len(best) <= MAX_LISTED_TASKS:
        sentences = [f"{_on_task(summary, lines, task, line)}." for task, line in best.items()]
    else:
        sentences = [f"{_on_many(summary, best)}."]
    return [*sentences, _limits(summary, lines)]


def _best(summary: Summary, lines: Sequence[SummaryLine], task: str) -> SummaryLine | None:
    """The line with the best mean; the first one on ties."""
    sign = -1 if task in summary.lower_is_better else 1
    candidates = [line for line in lines if task in line.results and not math.isnan(line.results[task].estimate.mean)]
    best = max(candidates, key=lambda line: sign * line.results[task].estimate.mean, default=None)
    return best and _tied(candidates, task, best)[0]


def _tied(lines: Sequence[SummaryLine], task: str, line: SummaryLine) -> list[SummaryLine]:
    """Lines whose mean equals that of `line` to `TOLERANCE`, including itself."""
    mean = line.results[task].estimate.mean
    with_task = [other for other in lines if task in other.results]
    return [other for other in with_task if math.isclose(other.results[task].estimate.mean, mean, abs_tol=TOLERANCE)]


def _on_task(summary: Summary, lines: Sequence[SummaryLine], task: str, line: SummaryLine) -> str:
    result = line.results[task]
    estimate = score_cell(result.estimate)
    score = f"{estimate.text}{estimate.half and f' ± {estimate.half}'}"
    others = sum(task in other.results for other in lines)
    num_tied = len(_tied(lines, task, line)) - 1
    best = f"has the best mean of {others}" if others > 1 else "is the only combination with a score"
    best = f"ties with {num_tied} more for the best mean of {others}" if num_tied > 0 else best
    versus = _versus_reference(summary, line, result)
    better = _better_baselines(summary, task, result)
    return f"{short_names(summary.tasks)[task]}: {_line_name(summary, line)} {best}, {score}; {versus}{better}"


def _versus_reference(summary: Summary, line: SummaryLine, result: TaskResult) -> str:
    if summary.reference is None:
        return "there is no reference"
    if line == summary.reference:
        return "it is the reference itself"
    difference = result.difference
    if difference is None or math.isnan(difference.interval.low):
        return "there is no interval of a difference from the reference"
    if difference.pairs < MIN_SEEDS:
        return f"{format_signed(difference.mean)} from the reference (too few seeds for an interval)"
    excludes = excludes_zero(difference)
    ends = f"[{format_signed(difference.interval.low)}, {format_signed(difference.interval.high)}]"
    level = unconfirmed_level(difference)
    over, p_value = ("seeds", difference.p_value) if level == "seeds" else (f"{summary.unit}s", difference.p_folds)
    doubt = f", though a paired t-test over {over} gives p = {p_text(p_value)}" if level else ""
    if math.isnan(difference.p_value):
        doubt = ", without a t-test over seeds, whose differences are equal"
    return (
        f"{format_signed(difference.mean)} {ends} from the reference, which {'excludes' if excludes else 'includes'} 0"
        f"{doubt if excludes else ''}"
    )


def _better_baselines(summary: Summary, task: str, result: TaskResult) -> str:
    sign = -1 if task in summary.lower_is_better else 1
    baselines = [line for line in summary.lines if line.baseline and task in line.results]
    advantages = [sign * (line.results[task].estimate.mean - result.estimate.mean) for line in baselines]
    better = [line for line, advantage in zip(baselines, advantages, strict=True) if advantage > TOLERANCE]
    if not better:
        return ""
    names = ", ".join(f"{line.name} ({format_number(line.results[task].estimate.mean)})" for line in better)
    return f", but the baseline {names} is better" if len(better) == 1 else f", but the baselines {names} are better"


def _on_many(summary: Summary, best: Mapping[str, SummaryLine]) -> str:
    """One sentence for many tasks: the line that is best most often, the first one on ties."""
    lines = [line for line in summary.lines if not line.baseline]
    tied = [task for task, line in best.items() if len(_tied(lines, task, line)) > 1]
    winners = [line for task, line in best.items() if task not in tied]
    if not winners:
        return f"several tie for the best mean on each of {len(best)} tasks"
    line = max(winners, key=winners.count)
    tasks = [task for task, winner in best.items() if winner == line and task not in tied]
    start = f"{_line_name(summary, line)} has the best mean on {len(tasks)} of {len(best)} tasks"
    start += f" (on {len(tied)} several tie)" if tied else ""
    if summary.reference is None or line == summary.reference:
        return f"{start}{', and is the reference itself' if line == summary.reference else ''}"
    differences = [line.results[task].difference for task in tasks]
    reference, marked = _line_name(summary, summary.reference), sum(map(is_significant, differences))
    if all(difference is None or difference.pairs < MIN_SEEDS for difference in differences):
        return f"{start}; there are too few seeds for intervals of its differences from {reference}"
    evidence = f"an interval without 0 and p < {SIGNIFICANCE_LEVEL}"
    return f"{start}; its difference from {reference} has {evidence} on {marked} of these"


def _limits(summary: Summary, lines: Sequence[SummaryLine]) -> str:
    """What cannot be detected, with the typical width of the available intervals."""
    most = max(len(line.seeds) for line in lines)
    pairs = (each.difference.pairs for line in lines for each in line.results.values() if each.difference)
    seeds = max(pairs, default=most)
    names, widths = short_names(summary.tasks), []
    for task in list(summary.tasks)[:MAX_LISTED_TASKS]:
        differences = (line.results[task].difference for line in lines if task in line.results)
        halves = [(each.interval.high - each.interval.low) / 2 for each in differences if each is not None]
        if finite := [half for half in halves if not math.isnan(half)]:
            widths.append(f"{format_number(median(finite))} ({names[task]})")
    limit = "no difference can be distinguished from chance"
    if widths:
        too_few = ", and with so few seeds even that is too narrow" if few_seeds_warning(summary) else ""
        level = f" over {summary.unit}s alone" if seeds == 1 else ""
        limit = f"the interval of a difference{level} is typically ± {_joined(widths)}{too_few}"
    of_differences = " of differences" if most > 1 else ""
    unknown = f" the variation{of_differences} between seeds is unknown;" if seeds == 1 else ""
    luck = f"; the best of {len(lines)} is partly best by chance" if len(lines) > 1 else ""
    noun = "seed" if seeds == most else "paired seed"
    return f"With {counted(seeds, noun)},{unknown} {limit}{luck}; nothing follows for other data, sizes or schedules."


def _line_name(summary: Summary, line: SummaryLine) -> str:
    """The labels of a line, with the names of the axes only if there are several axes."""
    return short_name(line) if len(summary.axes) == 1 else line.name


def _joined(texts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))
