"""Footnotes of a table: what its numbers are, and what they cannot show."""

import math
from collections.abc import Collection, Sequence
from statistics import median

from asda_core.errors import counted
from asda_core.pretrain.schedule import is_peak_reached
from asda_core.statistics import CONFIDENCE
from asda_hear.ablation.noise_metric import NOISE_METRIC, NOISE_METRICS
from asda_hear.ablation.plan import Plan
from asda_hear.ablation.rows import ResultRow
from asda_hear.ablation.settings import SHOWN_COSTS
from asda_hear.evaluate.leaderboard import version_notes
from asda_hear.evaluate.task_checks import UNBOUNDED_METRICS
from asda_hear.reporting.comparing import TOLERANCE, min_detectable_difference, smallest_p
from asda_hear.reporting.summary import (
    SummaryLine,
    averaged_tasks,
    complete_differences,
    log_mel_line,
    resampled_unit,
)

MIN_PAIRS = 3
"""Number of seeds below which a standard deviation is not informative."""


def make_notes(
    plan: Plan, rows: Sequence[ResultRow], lines: Sequence[SummaryLine], reference: SummaryLine | None
) -> list[str]:
    """Return the footnotes as sentences."""
    if not rows:
        return ["No results yet."]
    search, seeds = plan.config.evaluation, len(plan.config.seeds)
    points = counted(search.grid_points, "grid point")
    over_seeds = "Mean ± half the 95 % interval (Student's t) over seeds."
    notes = [over_seeds if seeds > 1 else "One seed, so no intervals of the means."]
    pairs = [each.difference.pairs for line in lines for each in line.results.values() if each.difference]
    paired = max(pairs, default=0)
    if reference and paired:
        unit = resampled_unit(str(row["metric"]) for row in rows)
        by_both = f"by seed and {unit}; their intervals are bootstraps over both"
        by_unit = f"by {unit}; their intervals are bootstraps over the {unit}s of a task (none with a single {unit})"
        notes.append(f"Differences are from {reference.name}, paired {by_both if paired > 1 else by_unit}.")
        notes += _power_notes(lines, reference)
        scored = {row["task"] for row in rows if row["metric"] not in NOISE_METRICS}
        ranked = len(complete_differences(lines, scored)) or 1
        for comparisons in (1, ranked) if len(scored) > 1 else ():
            if (least := smallest_p(len(scored), comparisons)) > 1 - CONFIDENCE:
                family = f", corrected for {comparisons} comparisons" if comparisons > 1 else ""
                bound = f"with {len(scored)} tasks p cannot be below {least:.2g}{family}"
                notes.append(f"Wilcoxon's signed-rank test over tasks is omitted: {bound}.")
                break
    else:
        why = "no line shares a seed and a task with the reference" if reference else "the reference has no results"
        notes.append(f"No differences: {why}.")
    notes += [*_infinite_notes(rows), *_aggregate_notes(plan, rows, lines)]
    if short := sum(not is_peak_reached(cell.config) for cell in plan.cells):
        notes.append(
            f"In {short} of {len(plan.cells)} trainings the warm-up is as long as the training or longer: the learning "
            "rate did not reach its peak."
        )
    version = next((row["heareval"] for row in rows if row["heareval"]), None)
    scoring = f"heareval {version}, grid {search.grid}, {points}, {search.threads} thread(s); " if version else ""
    notes.append(f"{scoring}torch {rows[0]['torch']}, asda {rows[0]['asda']}.")
    if plan.config.noise_attention:
        notes.append(
            "Noise: share of attention on its patches, divided by chance: 1 is even attention (0 for a change). "
            "Clips used (those with a patch in which the noise is louder): "
            + ", ".join(f"{task} {counted(count, 'clip')}" for task, count in _clip_counts(rows).items())
            + "."
        )
    notes.append(ALL_COSTS_NOTE)
    return notes


def costs_note(headings: Collection[str]) -> str:
    """Footnote on the costs in a table with columns of these headings; "" if none of them is a cost."""
    encoder, training = (
        " and ".join(dict.fromkeys(cost.quantity for cost in SHOWN_COSTS if cost.of == of and cost.heading in headings))
        for of in ("encoder", "training")
    )
    parts = [f"{encoder} of the encoder"] if encoder else []
    parts += [f"{training} of a whole training with its audio"] if training else []
    setup = "; the first training of a process includes one-time setup" if training else ""
    return f"Costs are medians: {', '.join(parts)}{setup}." if parts else ""


ALL_COSTS_NOTE = costs_note({cost.heading for cost in SHOWN_COSTS})


def _infinite_notes(rows: Sequence[ResultRow]) -> list[str]:
    """Which scores are not finite, and why they have no mean."""
    counts: dict[str, int] = {}
    for row in rows:
        if num_not_finite := sum(not math.isfinite(float(value)) for value in str(row["folds"]).split()):
            task = f"{row['metric']} on {row['task']}"
            counts[task] = counts.get(task, 0) + num_not_finite
    reason = "No mean or difference, because a score is not finite (as d' at an AUC of 1)"
    where = [f"{task} in {counted(count, 'fold')}" for task, count in counts.items()]
    return [f"{reason}: {', '.join(where)}."] if where else []


def _aggregate_notes(plan: Plan, rows: Sequence[ResultRow], lines: Sequence[SummaryLine]) -> list[str]:
    """Which tasks the mean over tasks leaves out, what the zero of s(m) is, and which tasks are versions of one."""
    metrics = {str(row["task"]): str(row["metric"]) for row in rows}
    omitted = [f"{task} ({metric})" for task, metric in metrics.items() if metric in UNBOUNDED_METRICS]
    shown = {name for line in lines for name in line.aggregates}
    notes = []
    if omitted and "mean" in shown:
        notes.append(f"The mean is without {', '.join(omitted)}, which may exceed 1.")
    if "s(m)" in shown:
        log_mel = log_mel_line(plan, lines, averaged_tasks(metrics))
        zero = f"the baseline {log_mel.name} of this plan" if log_mel else "HEAR's published log-mel baseline"
        notes.append(f"s(m): 0 is {zero}, 100 the best score of HEAR's leaderboard.")
    return [*notes, *version_notes(metrics)]


def _clip_counts(rows: Sequence[ResultRow]) -> dict[str, int]:
    """Condition -> number of clips, the smallest of any model."""
    counts: dict[str, int] = {}
    for row in rows:
        if row["metric"] == NOISE_METRIC:
            count = len(str(row["folds"]).split())
            counts[row["task"]] = min(count, counts.get(row["task"], count))
    return counts


def _power_notes(lines: Sequence[SummaryLine], reference: SummaryLine) -> list[str]:
    """Smallest detectable difference on each task, from the median spread of the paired differences."""
    notes = []
    for task in reference.results:
        differences = [line.results[task].difference for line in lines if task in line.results and not line.baseline]
        paired = [difference for difference in differences if difference is not None and difference.pairs > 1]
        pairs = max((difference.pairs for difference in paired), default=0)
        spreads = [difference.std for difference in paired if difference.pairs == pairs]
        spread = median(spreads) if spreads else 0.0
        if spread >= TOLERANCE and pairs >= MIN_PAIRS:  # without any spread the power is unknown
            least = min_detectable_difference(spread, pairs)
            notes.append(
                f"With {pairs} seeds a true difference under {least:.3f} on {task} is detected with a power below 80 % "
                "(from the median standard deviation of the paired differences)."
            )
    return notes
