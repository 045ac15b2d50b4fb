"""The table of a plan as a grid of cells, and in Markdown."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from asda_core.errors import counted
from asda_core.statistics import Estimate
from asda_core.system.markdown import escape_markdown, table_row
from asda_hear.ablation.settings import CPU_SECONDS, PARAMETERS, SECONDS, TRAINED
from asda_hear.reporting.comparing import Difference
from asda_hear.reporting.summary import Summary, SummaryLine

ColumnKind = Literal["label", "cost", "count", "score", "difference", "p", "aggregate"]

SIGNIFICANCE_LEVEL = 0.05
"""A p-value below this is marked; the usual level (Fisher 1925)."""
DIFFERENCE_MARK, P_VALUE_MARK = "†", "‡"
"""Marks for a difference that `is_significant`, and for a corrected p-value below `SIGNIFICANCE_LEVEL`."""
CODE = re.compile("(`[^`]+`)|[^`]+|`")  # code stands as it is
TASK_FOLDER = re.compile(r"([^-\s]+)-(?:v?\d|hear2021|fold).*")
"""Folder name of a HEAR task: task, version, size."""
DOWN_ARROW = "↓"
MIN_SEEDS = 3
"""Number of seeds below which no interval over seeds is marked: two seeds have only three distinct resamples."""
FEW_SEEDS = 6
"""Number of seeds below which bootstrap intervals over seeds are narrower than their nominal level."""
MAX_NAME_CHARACTERS = 60
"""Maximum number of characters of a `short_name`."""
FEW, MANY = 10, 1000
"""Numbers below `FEW` have three decimals, numbers from `MANY` on none, and numbers between them one."""


@dataclass(frozen=True)
class TableCell:
    """One cell of the table.

    Attributes:
        text: a label or the number itself.
        value: sort key within the column; None sorts last.
        half: half the width of an interval, as text; "" if there is none.
        bounds: ends of an interval, as text.
        best: whether the number is the best of its column.
        mark: `DIFFERENCE_MARK`, `P_VALUE_MARK` or "".
    """

    text: str = ""
    value: float | None = None
    half: str = ""
    bounds: tuple[str, ...] = ()
    best: bool = False
    mark: str = ""


@dataclass(frozen=True)
class Column:
    """A column: its heading, the kind of its contents, and a cell per line."""

    heading: str
    kind: ColumnKind
    cells: tuple[TableCell, ...]


@dataclass(frozen=True)
class Grid:
    """The table before formatting: columns, rows, whether each row is a baseline, and footnotes."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[TableCell, ...], ...]
    baselines: tuple[bool, ...]
    footnotes: tuple[str, ...] = field(default=())


def make_grid(summary: Summary) -> Grid:
    """Arrange a summary in columns: labels, seeds, tasks with their differences, p-values, aggregates, costs."""
    lines = summary.lines
    columns = [
        *_label_columns(summary),
        Column("seeds", "count", tuple(TableCell(str(count), count) for count in map(count_seeds, lines))),
        *(column for task in summary.tasks for column in _task_columns(summary, task)),
    ]
    if any(line.p_value is not None for line in lines):
        columns.append(Column("p (Holm)", "p", tuple(p_cell(line.p_value) for line in lines)))
    columns += [*_aggregate_columns(lines), *_cost_columns(lines)]
    rows = tuple(tuple(column.cells[row] for column in columns) for row in range(len(lines)))
    return Grid(tuple(columns), rows, tuple(bool(line.baseline) for line in lines), _footnotes(summary, columns))


def count_seeds(line: SummaryLine) -> int:
    """Number of seeds of a combination, or of evaluations of a baseline."""
    return len(line.seeds) or max((result.estimate.count for result in line.results.values()), default=0)


def short_names(tasks: Iterable[str]) -> dict[str, str]:
    """Return task -> its name without version and size, if that name is still unique."""
    names = list(tasks)
    firsts = [match[1] if (match := TASK_FOLDER.fullmatch(name)) else name for name in names]
    return {name: first if firsts.count(first) == 1 else name for name, first in zip(names, firsts, strict=True)}


def short_name(line: SummaryLine) -> str:
    """The labels of a line without the names of the axes, shortened in the middle if too long."""
    name = line.baseline or " · ".join(line.labels.values())
    half = MAX_NAME_CHARACTERS // 2
    return name if len(name) <= MAX_NAME_CHARACTERS else f"{name[:half]}…{name[-half + 1 :]}"


def number_cell(value: float | None) -> TableCell:
    """A cell with a number in few digits; an empty cell for None."""
    return TableCell() if value is None else TableCell(format_number(value), None if math.isnan(value) else value)


def format_number(value: float) -> str:
    """Format a score or a cost with few digits; NaN gives "nan"."""
    if value == 0 or math.isnan(value):
        return "0" if value == 0 else "nan"
    return f"{value:,.{decimals(value)}f}"


def decimals(value: float) -> int:
    """Number of decimals for a score or a cost of this size."""
    return 3 if abs(value) < FEW else 1 if abs(value) < MANY else 0


def format_signed(value: float) -> str:
    """Format a difference, always with its sign."""
    return "nan" if math.isnan(value) else f"{value:+.3f}"


def excludes_zero(difference: Difference | None) -> bool:
    """Whether the interval over seeds and folds excludes 0; False if there is no interval, or too few seeds for one."""
    if difference is None or difference.pairs < MIN_SEEDS:
        return False
    return difference.interval.low > 0 or difference.interval.high < 0


def is_significant(difference: Difference | None) -> bool:
    """Whether a difference is marked: its interval excludes 0, and the paired t-tests over seeds and over folds agree.

    With few seeds or folds the bootstrap alone marks too much: with 3 seeds, about a quarter of models that do not
    differ, and with 5 folds one in seven of those that differ by fold alone.
    """
    if difference is None or not excludes_zero(difference):
        return False
    return difference.p_value < SIGNIFICANCE_LEVEL and not unconfirmed_level(difference)


def unconfirmed_level(difference: Difference) -> str:
    """The level on which a paired t-test does not confirm the difference: "seeds", "folds", or "" if there is none."""
    if difference.p_value >= SIGNIFICANCE_LEVEL:
        return "seeds"
    return "folds" if difference.p_folds >= SIGNIFICANCE_LEVEL else ""


def p_text(value: float | None) -> str:
    """Format a p-value with two significant digits."""
    if value is None or math.isnan(value):
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.2g}"


def score_cell(estimate: Estimate, best: bool = False) -> TableCell:
    """A cell with a mean and half the width of its interval, both with the decimals of the mean."""
    mean, half = (f"{part:,.{decimals(estimate.mean)}f}" for part in (estimate.mean, estimate.half_width))
    value = None if math.isnan(estimate.mean) else estimate.mean
    return TableCell(mean, value, "" if math.isnan(estimate.half_width) else half, best=best)


def difference_cell(difference: Difference | None) -> TableCell:
    """A cell with a difference and the ends of its interval, marked if it `is_significant`."""
    if difference is None:
        return TableCell()
    low, high = difference.interval.low, difference.interval.high
    bounds = () if math.isnan(low) or math.isnan(high) else (format_signed(low), format_signed(high))
    mark = DIFFERENCE_MARK if is_significant(difference) else ""
    value = None if math.isnan(difference.mean) else difference.mean
    return TableCell(format_signed(difference.mean), value, bounds=bounds, mark=mark)


def to_markdown(summary: Summary) -> str:
    """Return the table in GitHub Markdown: heading, table, notes; best of each column in bold, baselines in italics."""
    grid = make_grid(summary)
    heads = [escape_markdown(column.heading) for column in grid.columns]
    sides = ["---" if column.kind == "label" else "---:" for column in grid.columns]
    lines = [f"## {escape_markdown(summary.question or summary.title)}", "", table_row(heads), table_row(sides)]
    for row, baseline in zip(grid.rows, grid.baselines, strict=True):
        texts = [_markdown_cell(cell) for cell in row]
        lines.append(table_row([f"*{texts[0]}*", *texts[1:]] if baseline else texts))
    notes = [CODE.sub(lambda part: part[1] or escape_markdown(part[0]), note) for note in grid.footnotes]
    return "\n".join([*lines, "", *(f"{note}  " for note in notes), ""])


def _label_columns(summary: Summary) -> list[Column]:
    """One column per axis; baselines have their name in the first."""
    axes = list(summary.axes)
    if not axes:
        return [Column("line", "label", tuple(TableCell(line.name) for line in summary.lines))]
    columns = []
    for place, axis in enumerate(axes):
        texts = [line.labels.get(axis, "" if place else line.baseline) for line in summary.lines]
        columns.append(Column(axis, "label", tuple(TableCell(text) for text in texts)))
    return columns


def _cost_columns(lines: Sequence[SummaryLine]) -> list[Column]:
    names = dict.fromkeys(name for line in lines for name in line.costs)
    if all(line.costs.get(TRAINED, line.costs.get(PARAMETERS)) == line.costs.get(PARAMETERS) for line in lines):
        names.pop(TRAINED, None)  # they differ only with adapters
    if all(CPU_SECONDS in line.costs or not line.costs.get(SECONDS) for line in lines):
        names.pop(SECONDS, None)  # on a busy machine CPU time is more meaningful
    return [Column(name, "cost", tuple(_cost_cell(line.costs.get(name)) for line in lines)) for name in names]


def _aggregate_columns(lines: Sequence[SummaryLine]) -> list[Column]:
    names = dict.fromkeys(name for line in lines for name in line.aggregates)
    return [
        Column(name, "aggregate", tuple(number_cell(line.aggregates.get(name)) for line in lines)) for name in names
    ]


def _cost_cell(value: float | None) -> TableCell:
    if value is None or math.isnan(value):
        return TableCell()
    return TableCell(f"{value:,.0f}" if value >= FEW or value == 0 else f"{value:#.3g}", value)


def p_cell(value: float | None, mark: bool = True) -> TableCell:
    """A cell with a p-value, marked if it is below `SIGNIFICANCE_LEVEL` and `mark` is true."""
    significant = mark and value is not None and value < SIGNIFICANCE_LEVEL
    return TableCell(
        p_text(value), None if value is None or math.isnan(value) else value, mark=P_VALUE_MARK if significant else ""
    )


def _task_columns(summary: Summary, task: str) -> list[Column]:
    """The scores of a task, followed by the differences from the reference if any line has one."""
    short = short_names(summary.tasks)[task]
    arrow = f" {DOWN_ARROW}" if task in summary.lower_is_better else ""
    results = [line.results.get(task) for line in summary.lines]
    scores = tuple(TableCell() if result is None else score_cell(result.estimate, result.best) for result in results)
    metric = "" if task in summary.noise_tasks else f" ({summary.tasks[task]})"
    columns = [Column(f"{short}{metric}{arrow}", "score", scores)]
    if any(result is not None and result.difference is not None for result in results):
        cells = tuple(difference_cell(result.difference if result else None) for result in results)
        columns.append(Column(f"Δ {short}", "difference", cells))
    return columns


def _footnotes(summary: Summary, columns: Sequence[Column]) -> tuple[str, ...]:
    kinds = {column.kind for column in columns}
    has_arrow = any(column.heading.endswith(DOWN_ARROW) for column in columns)
    notes = []
    if "score" in kinds and summary.lines:
        smallest = f" (smallest in columns marked {DOWN_ARROW}: lower is better)" if has_arrow else ""
        notes.append(f"Bold: largest mean of the column{smallest}; this says nothing about significance.")
    if "difference" in kinds and summary.reference is not None:
        notes.append(_difference_note(summary, summary.reference))
    if "p" in kinds:
        notes.append(
            "p: Wilcoxon signed-rank test over tasks against the reference, Holm-corrected; "
            f"{P_VALUE_MARK} p < {SIGNIFICANCE_LEVEL}."
        )
    full_names = [f"{short} is {task}" for task, short in short_names(summary.tasks).items() if short != task]
    if full_names:
        notes.append(f"Tasks: {', '.join(full_names)}.")
    missing = [f"Not in the table: {'; '.join(summary.missing)}."] if summary.missing else []
    return (*notes, *summary.notes, *missing)


def _difference_note(summary: Summary, reference: SummaryLine) -> str:
    """Footnote on the intervals of differences, and on the meaning of their mark if there are enough seeds for one."""
    seeds = max((difference.pairs for difference in _differences(summary.lines)), default=0)
    over = f"{'seeds and ' if seeds > 1 else ''}{summary.unit}s"
    marked = f"{DIFFERENCE_MARK} it excludes 0, and paired t-tests over seeds and, if there are several, "
    marked += f"{summary.unit}s have p < {SIGNIFICANCE_LEVEL}, none corrected for the number of comparisons"
    meaning = marked if seeds >= MIN_SEEDS else f"none is marked below {MIN_SEEDS} seeds"
    start = f"Δ: difference from the reference ({reference.name}) with its 95 % interval over {over}"
    return f"{start}; {meaning}{few_seeds_warning(summary)}."


def _differences(lines: Iterable[SummaryLine]) -> list[Difference]:
    differences = [result.difference for line in lines for result in line.results.values()]
    return [difference for difference in differences if difference is not None]


def few_seeds_warning(summary: Summary) -> str:
    """Warning about bootstrap intervals over few seeds, as the end of a sentence; "" if there are enough seeds."""
    lines = [line for line in summary.lines if not line.baseline]  # baselines have no seeds
    seeds = min((difference.pairs for difference in _differences(lines)), default=FEW_SEEDS)
    return f", and with {counted(seeds, 'seed')} such intervals are too narrow" if seeds < FEW_SEEDS else ""


def _markdown_cell(cell: TableCell) -> str:
    text = f"**{cell.text}**" if cell.best else escape_markdown(cell.text)
    half = f" ± {cell.half}" if cell.half else ""
    bounds = f" [{', '.join(cell.bounds)}]" if cell.bounds else ""
    return f"{text}{half}{bounds}{cell.mark and f' {cell.mark}'}"
