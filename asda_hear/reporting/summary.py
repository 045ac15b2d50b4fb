"""What a table of a plan says: lines of estimates, differences from a reference, effects of each axis."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from asda_core.statistics import Estimate
from asda_hear.ablation.plan import text_of
from asda_hear.reporting.comparing import Difference

ScoresBySeed = Mapping[str, tuple[float, ...]]
"""Seed (as text; "" where there is none) -> scores of its folds, in order."""


@dataclass(frozen=True)
class TaskResult:
    """One line on one task.

    Attributes:
        scores: seed -> folds.
        estimate: mean over seeds of the mean over folds, and half of Student's interval over seeds.
        best: whether no line has a better mean.
        difference: from the reference line; None for the reference, and where nothing can be paired.
    """

    scores: ScoresBySeed
    estimate: Estimate
    best: bool
    difference: Difference | None = None


@dataclass(frozen=True)
class Line:
    """One combination of labels over all its seeds, or one baseline.

    Attributes:
        labels: axis -> label; empty for a baseline.
        baseline: its label; "" for a combination.
        results: task -> what was measured; a task that is not done yet is missing.
        costs: heading -> median over seeds, as in "CPU s".
        aggregates: heading -> HEAR's aggregate over tasks, as in "s(m)"; only those that can be computed.
        cells: names of its cells, in the order of `seeds`.
        seeds: in order.
        p_value: Wilcoxon signed-rank over tasks against the reference, corrected after Holm; None where there is none.
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
        """What tells it from all others: a baseline may be called as a combination is."""
        return self.baseline, *self.labels.values()

    @property
    def name(self) -> str:
        """Its labels in one text."""
        return self.baseline or text_of(self.labels)


@dataclass(frozen=True)
class Effect:
    """A label of an axis on a task, averaged over all other axes.

    Attributes:
        estimate: over seeds, each of which is first averaged over the combinations that hold the label.
        difference: paired by seed and by everything else, from the label `other`; None for that label.
        other: the reference's label of the axis, or the first.
    """

    axis: str
    label: str
    task: str
    estimate: Estimate
    difference: Difference | None
    other: str = ""


@dataclass(frozen=True)
class Summary:
    """All that the outputs show.

    Attributes:
        title, question: of the plan.
        tasks: task -> its primary metric, as in {"esc10-v1.0.0-full": "top1_acc"}.
        lower_is_better: tasks for which less is more, as the share of attention on noise.
        neutral: those of which neither is better: controls.
        axes: axis -> its labels.
        lines: combinations in the order of the plan, then baselines.
        reference: the line that others are compared with.
        effects: of every axis with two labels or more.
        notes: sentences for the foot: what intervals are, the search, versions, what can be seen with so many seeds.
        missing: what of the plan is not done, and what failed.
    """

    title: str
    question: str
    tasks: Mapping[str, str]
    lower_is_better: frozenset[str]
    axes: Mapping[str, tuple[str, ...]]
    lines: tuple[Line, ...]
    reference: Line | None
    effects: tuple[Effect, ...]
    notes: tuple[str, ...]
    missing: tuple[str, ...] = ()
    neutral: frozenset[str] = frozenset()

    @property
    def measured(self) -> frozenset[str]:
        """Tasks that are no scores between 0 and 1."""
        return self.lower_is_better | self.neutral

    @property
    def around_means(self) -> str:
        """What charts have around a mean, to stand behind the word."""
        several = any(result.estimate.count > 1 for line in self.lines for result in line.results.values())
        return " with its 95 % interval over seeds" if several else " of one seed, without an interval"


def compared_label(axis: str, labels: Sequence[str], reference: Line | None) -> str:
    """With which label of an axis the others are compared: that of the reference, or the first beside a baseline."""
    label = labels[0] if reference is None else reference.labels.get(axis, labels[0])
    return label if label in labels else labels[0]


def compared_on_all(lines: Iterable[Line], tasks: Collection[str]) -> list[tuple[Line, dict[str, Difference]]]:
    """Lines that are compared with the reference on all of these tasks, with their differences."""
    found = []
    for line in lines:
        differences = {task: line.results[task].difference for task in tasks if task in line.results}
        known = {task: difference for task, difference in differences.items() if difference is not None}
        if len(known) == len(tasks):
            found.append((line, known))
    return found


def effect_names(summary: Summary, axis: str, task: str) -> list[str]:
    """The labels of an axis as a chart names them: which is compared with, and which have no results."""
    others = {effect.label: effect.other for effect in summary.effects if (effect.axis, effect.task) == (axis, task)}
    told = {label: " (compared with)" if others.get(label) == label else "" for label in summary.axes[axis]}
    return [f"{label}{told[label]}" if label in others else f"{label} (no results)" for label in told]
