"""Charts of a plan: effects of its axes, scores of every fold, score against cost, training curves."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from asda_core.statistics import Estimate
from asda_hear.ablation.settings import CPU_SECONDS, PARAMETERS, SECONDS
from asda_hear.reporting.line_styles import COLOURS, LineStyle, line_styles, unnamed_sentence
from asda_hear.reporting.summary import Summary, TaskResult, effect_labels, varies
from asda_hear.reporting.svg import FAINT, INK, PAPER, Chart, chart_style, limit_score_axis, make_figure, render_chart
from asda_hear.reporting.tables import DIFFERENCE_MARK, SIGNIFICANCE_LEVEL, is_significant, short_name, short_names

Curves = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
"""Name of a line -> seed -> {"step": update numbers, "loss": loss at each}."""

ROW_INCHES, FRAME_INCHES, PANELS = 0.27, 0.75, 3
"""Height of one line in a chart; height of its axis and title; maximum number of panels side by side."""
TICKS_OF_PANELS = {1: 5, 2: 4, 3: 3}
"""Number of panels side by side -> maximum number of tick intervals, so that their numbers do not overlap."""
LOGARITHMIC_RATIO = 3.0
"""Ratio of the largest to the smallest cost or loss above which the axis is logarithmic."""
LOG_TICK_DIGITS = {10.0: (1, 1.5, 2, 3, 4, 5, 7), 40.0: (1, 2, 5), 400.0: (1, 3), math.inf: (1,)}
"""Ratio of the ends of a logarithmic axis -> leading digits that get a tick up to that ratio."""
SEEDS_FROM, SEEDS_TO, MEAN_AT = -0.32, 0.06, 0.26
"""Positions of the seeds of a line and of its mean, below its centre, in units of the line's height."""


def effect_charts(summary: Summary) -> dict[str, Chart]:
    """Axis -> its chart: its labels, averaged over all other axes, with one panel per task."""
    with chart_style():
        return {axis: _effect_chart(summary, axis) for axis in dict.fromkeys(each.axis for each in summary.effects)}


def score_charts(summary: Summary) -> list[Chart]:
    """One chart per task: every fold of every seed, and the mean and interval of each line."""
    with chart_style():
        return [_score_chart(summary, task) for task in summary.tasks if _has_results(summary, task)]


def cost_charts(summary: Summary) -> list[Chart]:
    """One chart for each cost that differs between lines: CPU time (otherwise wall time), and parameters."""
    varying = [name for name in (CPU_SECONDS, SECONDS, PARAMETERS) if varies(_costs(summary, name))]
    with chart_style():
        return [_cost_chart(summary, name) for name in varying if name != SECONDS or CPU_SECONDS not in varying]


def curve_charts(summary: Summary, curves: Curves) -> list[Chart]:
    """Chart of the training loss of each line, mean and range over its seeds; no chart if nothing was trained."""
    trained = [line for line in summary.lines if curves.get(line.name)]
    if not trained:
        return []
    styles = line_styles(summary)
    with chart_style():
        picture = make_figure(4.0)
        axes = picture.subplots()
        losses = [_draw_curve(axes, curves[line.name], styles[line.name], short_name(line)) for line in trained]
        if logarithmic := _needs_log_axis(np.concatenate(losses)):
            axes.set_yscale("log")
        _plain_ticks(axes.yaxis, logarithmic)
        axes.set(xlabel="updates", ylabel="training loss")
        _legend(picture)
        caption = "Mean over seeds; the band is their range. Losses of different objectives cannot be compared."
        caption += unnamed_sentence(summary, styles)
        return [render_chart("curves", "Training loss", caption, picture)]


def _effect_chart(summary: Summary, axis: str) -> Chart:
    labels, names = summary.axes[axis], short_names(summary.tasks)
    tasks = [task for task in summary.tasks if any((e.axis, e.task) == (axis, task) for e in summary.effects)]
    columns = min(PANELS, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    picture = make_figure(rows * (FRAME_INCHES + ROW_INCHES * len(labels)))
    panels = list(picture.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for panel, task in zip(panels, tasks, strict=False):
        effects = [each for each in summary.effects if (each.axis, each.task) == (axis, task)]
        for effect in effects:
            place = labels.index(effect.label)
            is_reference = effect.label == effect.reference_label
            _draw_estimate(panel, effect.estimate, place, COLOURS[0], hollow=is_reference)
            if is_reference and math.isfinite(effect.estimate.mean):
                panel.axvline(effect.estimate.mean, color=FAINT, linestyle="--", linewidth=1)
            if is_significant(effect.difference):
                panel.annotate(DIFFERENCE_MARK, (effect.estimate.mean, place), (0, 3), textcoords="offset points",
                               ha="center", va="bottom")  # fmt: skip
        for place in set(range(len(labels))) - {labels.index(e.label) for e in effects}:
            panel.text(0.5, place, "no result", transform=panel.get_yaxis_transform(), ha="center", va="center")
        _name_rows(panel, effect_labels(summary, axis), ticks=TICKS_OF_PANELS[columns])
        panel.set(title=names[task], xlabel=_scale_name(summary, task))
        limit_score_axis(panel, task not in summary.unbounded_tasks)
    for panel in panels[len(tasks) :]:
        panel.set_axis_off()
    caption = f"Each label averaged over all other axes: the mean{summary.error_bar_text}. Hollow marker, dashed line: "
    caption += f"the reference label; {DIFFERENCE_MARK} the interval of the difference from it excludes 0, and p < "
    caption += f"{SIGNIFICANCE_LEVEL}."
    return render_chart(f"effect-{list(summary.axes).index(axis)}", f"Effect of {axis}", caption, picture)


def _score_chart(summary: Summary, task: str) -> Chart:
    lines = [line for line in summary.lines if task in line.results]
    picture = make_figure(FRAME_INCHES + 1.3 * ROW_INCHES * len(lines))
    axes = picture.subplots()
    for place, line in enumerate(lines):
        result = line.results[task]
        _draw_folds(axes, result, place)
        _draw_estimate(axes, result.estimate, place + MEAN_AT, INK if line.baseline else COLOURS[1])
    marks = {True: " (reference)", False: ""}
    _name_rows(axes, [short_name(line) + marks[line == summary.reference] for line in lines])
    axes.set_xlabel(_scale_name(summary, task))
    limit_score_axis(axes, task not in summary.unbounded_tasks)
    caption = f"Small markers: {summary.unit}s, a row per seed. "
    caption += f"Large marker below them: the mean{summary.error_bar_text}."
    return render_chart(f"scores-{list(summary.tasks).index(task)}", short_names(summary.tasks)[task], caption, picture)


def _cost_chart(summary: Summary, cost: str) -> Chart:
    styles, names = line_styles(summary), short_names(summary.tasks)
    columns = max(1, min(PANELS, len(summary.tasks)))
    rows = max(1, math.ceil(len(summary.tasks) / columns))
    picture = make_figure(2.9 * rows)
    panels = list(picture.subplots(rows, columns, squeeze=False).flat)
    for panel, task in zip(panels, summary.tasks, strict=False):
        for line in (line for line in summary.lines if task in line.results):
            estimate, style = line.results[task].estimate, styles[line.name]
            if line.baseline:
                panel.axhline(estimate.mean, color=INK, linestyle=":", linewidth=1, label=f"{line.name} (baseline)")
            elif cost in line.costs:
                half = None if math.isnan(estimate.half_width) or not style.named else estimate.half_width
                size, name = (6, short_name(line)) if style.named else (3, None)
                panel.errorbar(line.costs[cost], estimate.mean, half, color=style.colour, marker=style.marker,
                               markersize=size, linewidth=1, label=name, zorder=2 + style.named)  # fmt: skip
        if logarithmic := _needs_log_axis(_costs(summary, cost)):
            panel.set_xscale("log")
        _plain_ticks(panel.xaxis, logarithmic, cost == PARAMETERS)
        panel.set(title=names[task], xlabel=cost, ylabel=_scale_name(summary, task))
        limit_score_axis(panel, task not in summary.unbounded_tasks, vertical=True)
        panel.grid()
    for panel in panels[len(summary.tasks) :]:
        panel.set_axis_off()
    _legend(picture)
    caption = f"The mean{summary.error_bar_text}; cost: median. Dotted: baselines.{unnamed_sentence(summary, styles)}"
    return render_chart(f"cost-{cost.replace(' ', '-')}", f"Score against {cost}", caption, picture)


def _draw_curve(
    axes: Axes, seeds: Mapping[str, Mapping[str, Sequence[float]]], style: LineStyle, name: str
) -> np.ndarray:
    """Draw mean and range at the steps that all seeds have, and return the mean."""
    runs = [dict(zip(run["step"], run["loss"], strict=True)) for run in seeds.values()]
    steps = sorted(set.intersection(*(set(run) for run in runs)))
    losses = np.array([[run[step] for step in steps] for run in runs], dtype=float)
    losses[~np.isfinite(losses)] = np.nan
    mean: np.ndarray = losses.mean(axis=0)
    axes.plot(steps, mean, color=style.colour, linestyle=style.dash, linewidth=1.6 if style.named else 0.7,
              label=name if style.named else None, zorder=2 + style.named)  # fmt: skip
    if style.named and len(runs) > 1:
        axes.fill_between(steps, losses.min(axis=0), losses.max(axis=0), color=style.colour, alpha=0.13, linewidth=0)
    return mean


def _draw_estimate(axes: Axes, estimate: Estimate, place: float, colour: str, hollow: bool = False) -> None:
    if math.isnan(estimate.mean):
        axes.text(0.02, place, "nan", transform=axes.get_yaxis_transform(), va="center")
        return
    half = None if math.isnan(estimate.half_width) else estimate.half_width
    axes.errorbar(estimate.mean, place, xerr=half, color=colour, marker="o", markersize=6, linewidth=1.8, capsize=3,
                  markerfacecolor=PAPER if hollow else colour, zorder=3)  # fmt: skip


def _draw_folds(axes: Axes, result: TaskResult, place: int) -> None:
    offsets = np.linspace(SEEDS_FROM, SEEDS_TO, len(result.scores))
    for offset, folds in zip(offsets, result.scores.values(), strict=True):
        axes.plot(folds, [place + offset] * len(folds), linestyle="", marker="o", markersize=3.2,
                  markeredgecolor=COLOURS[0], markerfacecolor="none", markeredgewidth=0.8)  # fmt: skip


def _name_rows(axes: Axes, names: Sequence[str], ticks: int = 5) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(ticks))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")


def _has_results(summary: Summary, task: str) -> bool:
    return any(task in line.results for line in summary.lines)


def _scale_name(summary: Summary, task: str) -> str:
    return summary.tasks[task] + (" (lower is better)" if task in summary.lower_is_better else "")


def _costs(summary: Summary, cost: str) -> list[float]:
    return [line.costs[cost] for line in summary.lines if cost in line.costs and not line.baseline]


def _needs_log_axis(values: Sequence[float] | np.ndarray) -> bool:
    """Whether the values call for a logarithmic axis."""
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) > LOGARITHMIC_RATIO * min(finite)


def _plain_ticks(axis: Axis, logarithmic: bool, thousands: bool = False) -> None:
    """Format ticks without powers of ten, since SVG text has no superscripts here."""
    if logarithmic:
        low, high = axis.get_view_interval()
        subs = next(subs for ratio, subs in LOG_TICK_DIGITS.items() if high <= ratio * low)
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(EngFormatter() if thousands else FuncFormatter(lambda value, _: f"{value:,.6g}"))


def _legend(picture: Figure) -> None:
    """One legend below all panels, with every name once."""
    entries = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in picture.axes]
    handles = {name: handle for pairs in entries for handle, name in pairs}
    if handles:
        columns = max(1, min(4, 100 // (max(map(len, handles)) + 5)))
        picture.legend(
            list(handles.values()),
            list(handles),
            loc="upper center",
            bbox_to_anchor=(0.5, 0),
            ncols=columns,
            handlelength=3,
        )
