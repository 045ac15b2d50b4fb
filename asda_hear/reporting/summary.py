"""Contents of a table of a plan: lines of estimates, differences from a reference, effects of each axis."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from asda_core.statistics import Estimate
from asda_hear.ablation.noise_metric import NOISE_METRICS
from asda_hear.ablation.plan import Plan, labels_text
from asda_hear.evaluate.task_checks import UNBOUNDED_METRICS
from asda_hear.names import LOG_MEL
from asda_hear.reporting.comparing import Difference

MIN_COST_RANGE = 0.02
"""Relative difference between lines below which a cost gets no chart, and no column in LaTeX."""
ScoresBySeed = Mapping[str, tuple[float, ...]]
"""Seed (as text; "" if there is none) -> scores of its folds, in order."""


@dataclass(frozen=True)
class TaskResult:
    """Result of one line on one task.

    Attributes:
        scores: seed -> scores of its folds.
        estimate: mean over seeds of the mean over folds, and half the width of Student's interval over seeds.
        best: whether no line has a mean that is better by more than `TOLERANCE`.
        difference: from the reference line; None for the reference, and if nothing can be paired.
    """

    scores: ScoresBySeed
    estimate: Estimate
    best: bool
    difference: Difference | None = None


@dataclass(frozen=True)
class SummaryLine:
    """One combination of labels over all its seeds, or one baseline.

    Attributes:
        labels: axis -> label; empty for a baseline.
        baseline: label of the baseline; "" for a combination.
        results: task -> result; tasks that are not done yet are absent.
        costs: heading -> median over seeds, as in "CPU s".
        aggregates: heading -> HEAR's aggregate over tasks, as in "s(m)"; only those that can be computed.
        cells: names of its cells, in the order of `seeds`.
        seeds: in order.
        p_value: Wilcoxon signed-rank test over tasks against the reference, Holm-corrected; None if not computed.
    """

    labels: Mapping[str, str]
    baseline: str
    results: Mapping[str, TaskResult]
    costs: Mapping[str, float]
    aggregates: Mapping[str, float] = field(default_factory=dict)
    cells: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    p_value: float | None = None

    @property
    def key(self) -> tuple[str, ...]:
        """Unique key of the line; names are not unique, as a baseline may be called like a combination."""
        return self.baseline, *self.labels.values()

    @property
    def name(self) -> str:
        """The labels as one text, or that of the baseline."""
        return self.baseline or labels_text(self.labels)


@dataclass(frozen=True)
class Effect:
    """Effect of a label of an axis on a task, averaged over all other axes.

    Attributes:
        estimate: over seeds; each seed is first averaged over the combinations that contain the label.
        difference: from `reference_label`, paired by seed, fold and the other axes; None for that label itself,
            and where the labels were measured on different clips.
        reference_label: the reference's label of the axis, or the first one.
    """

    axis: str
    label: str
    task: str
    estimate: Estimate
    difference: Difference | None
    reference_label: str = ""


@dataclass(frozen=True)
class Summary:
    """Everything that the outputs of a plan show.

    Attributes:
        title, question: of the plan.
        tasks: task -> its primary metric, as in {"esc10-v1.0.0-full": "top1_acc"}.
        lower_is_better: tasks on which lower values are better, such as an error rate.
        axes: axis -> its labels.
        lines: combinations in the order of the plan, then baselines.
        reference: the line that others are compared with.
        effects: of every axis with two labels or more.
        notes: footnotes: definition of the intervals, the search, versions, differences detectable with these seeds.
        missing: what of the plan is not done, and what failed.
        control_tasks: control tasks, on which neither higher nor lower is better.
    """

    title: str
    question: str
    tasks: Mapping[str, str]
    lower_is_better: frozenset[str]
    axes: Mapping[str, tuple[str, ...]]
    lines: tuple[SummaryLine, ...]
    reference: SummaryLine | None
    effects: tuple[Effect, ...]
    notes: tuple[str, ...]
    missing: tuple[str, ...] = ()
    control_tasks: frozenset[str] = frozenset()

    @property
    def noise_tasks(self) -> frozenset[str]:
        """Tasks of attention on noise; their names tell the metric."""
        return frozenset(task for task, metric in self.tasks.items() if metric in NOISE_METRICS)

    @property
    def unbounded_tasks(self) -> frozenset[str]:
        """Tasks whose values are not limited to 0 to 1."""
        return self.noise_tasks | {task for task, metric in self.tasks.items() if metric in UNBOUNDED_METRICS}

    @property
    def unit(self) -> str:
        """What the folds of a task are, see `resampled_unit`."""
        return resampled_unit(self.tasks.values())

    @property
    def error_bar_text(self) -> str:
        """Description of the error bars in charts, to follow the word "mean"."""
        several = any(result.estimate.count > 1 for line in self.lines for result in line.results.values())
        return " with its 95 % interval over seeds" if several else " of one seed, without an interval"


def varies(costs: Sequence[float]) -> bool:
    """Whether costs of several lines, none of them negative, differ by more than `MIN_COST_RANGE`."""
    return bool(costs) and max(costs) - min(costs) > MIN_COST_RANGE * max(costs)


def reference_label(axis: str, labels: Sequence[str], reference: SummaryLine | None) -> str:
    """The label of an axis that others are compared with: the reference's; the first if that is missing."""
    label = labels[0] if reference is None else reference.labels.get(axis, labels[0])
    return label if label in labels else labels[0]


def resampled_unit(metrics: Iterable[str]) -> str:
    """What the folds of a task are: "clip" if all metrics are of attention on noise, of which each clip is a fold."""
    return "clip" if NOISE_METRICS.issuperset(metrics) else "fold"


def averaged_tasks(metrics: Mapping[str, str]) -> frozenset[str]:
    """The tasks (of task -> metric) of which aggregates are means: those of HEAR's metrics between 0 and 1."""
    return frozenset(task for task, metric in metrics.items() if metric not in NOISE_METRICS | UNBOUNDED_METRICS)


def log_mel_line(plan: Plan, lines: Iterable[SummaryLine], tasks: Collection[str]) -> SummaryLine | None:
    """The zero of s(m): the log-mel baseline of a plan if it has all these tasks; None for HEAR's published one."""
    log_mels = [line for line in lines if plan.config.baselines.get(line.baseline) == LOG_MEL]
    return next((line for line in log_mels if line.results.keys() >= set(tasks)), None)


def complete_differences(
    lines: Iterable[SummaryLine], tasks: Collection[str]
) -> list[tuple[SummaryLine, dict[str, Difference]]]:
    """Return the lines that are compared with the reference on all of these tasks, with their differences."""
    compared = []
    for line in lines:
        differences = {task: line.results[task].difference for task in tasks if task in line.results}
        available = {task: difference for task, difference in differences.items() if difference is not None}
        if len(available) == len(tasks):
            compared.append((line, available))
    return compared


def effect_labels(summary: Summary, axis: str) -> list[str]:
    """Return the labels of an axis as charts show them, with marks for the compared label and those without results."""
    effects = [effect for effect in summary.effects if effect.axis == axis]
    with_results, compared = {effect.label for effect in effects}, {effect.reference_label for effect in effects}
    names = []
    for label in summary.axes[axis]:
        mark = "" if label in with_results else " (no results)"
        names.append(f"{label} (reference)" if compared == {label} else f"{label}{mark}")
    return names
