"""The results of a plan as one self-contained HTML file that can be opened from disk, printed and sent."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from asda_core.system.files import write_text
from asda_core.system.resources import format_duration
from asda_hear.reporting.charts import Curves, cost_charts, curve_charts, effect_charts, score_charts
from asda_hear.reporting.comparing import holm
from asda_hear.reporting.conclusion import conclusion
from asda_hear.reporting.summary import Summary
from asda_hear.reporting.tables import (
    TableCell,
    difference_cell,
    format_signed,
    make_grid,
    number_cell,
    p_cell,
    score_cell,
    short_name,
    short_names,
)

TEMPLATE = "page.html.j2"
SEED_LINE = re.compile(r"^seed:.*$", re.MULTILINE)
"""The row of a YAML config in which the cells of a table line differ."""


@dataclass(frozen=True)
class Failure:
    """A failed cell or baseline: its name and labels, the error in one line, and the traceback."""

    cell: str
    error: str
    traceback: str = ""


@dataclass(frozen=True)
class PageDetails:
    """What a page shows in addition to the summary; empty fields are omitted from the page.

    Attributes:
        curves: name of a line -> seed -> {"step": update numbers, "loss": loss at each}.
        configs: name of a cell -> its config as YAML.
        plan: text of the plan file.
        environment: fact -> value, as in {"torch": "2.11.0"}.
        commit: of the code.
        command: command that makes the table.
        cell_commands: name of a cell -> command that makes this cell alone.
        failures: failed cells and baselines.
        created: date and time, as text.
        wall_seconds, cpu_seconds: training time of all cells together; None if unknown.
    """

    curves: Curves = field(default_factory=dict)
    configs: Mapping[str, str] = field(default_factory=dict)
    plan: str = ""
    environment: Mapping[str, str | int] = field(default_factory=dict)
    commit: str = ""
    command: str = ""
    cell_commands: Mapping[str, str] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    created: str = ""
    wall_seconds: float | None = None
    cpu_seconds: float | None = None


@dataclass(frozen=True)
class Recipe:
    """How to reproduce the cells of a line: one config that holds for all of them, and a command for each."""

    line: str
    cells: str
    config: str
    commands: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """A line compared with the reference on one task."""

    line: str
    task: str
    difference: TableCell
    clips: TableCell
    pairs: TableCell
    p_value: TableCell
    p_folds: TableCell
    corrected: TableCell
    over_tasks: TableCell


def write_page(summary: Summary, details: PageDetails, file: Path) -> None:
    """Write the page atomically.

    Args:
        summary: what is shown; it may be without lines.
        details: everything except the numbers.
        file: HTML file to write; its folder is created.

    Raises:
        OSError: the file cannot be written.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"svg": Markup, "code": _code_markup, "minus": lambda text: text.replace("-", "−")}  # noqa: RUF001
    comparisons = _comparisons(summary)
    text = environment.get_template(TEMPLATE).render(
        summary=summary,
        details=details,
        answer=conclusion(summary),
        grid=make_grid(summary),
        effects=[(chart, _effect_rows(summary, axis)) for axis, chart in effect_charts(summary).items()],
        scores=score_charts(summary),
        costs=cost_charts(summary),
        curves=curve_charts(summary, details.curves),
        comparisons=comparisons,
        over_folds=any(comparison.p_folds.text for comparison in comparisons),
        over_clips=any(comparison.clips.text for comparison in comparisons),
        over_tasks=any(line.p_value is not None for line in summary.lines),
        aggregates=list(dict.fromkeys(name for line in summary.lines for name in line.aggregates)),
        recipes=_recipes(summary, details),
        times=_times(details),
        number_cell=number_cell,
        short_name=short_name,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text)


def _code_markup(text: str) -> Markup:
    """Text with the parts in backticks as code elements."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _effect_rows(summary: Summary, axis: str) -> list[tuple[str, str, TableCell, TableCell]]:
    """The numbers of an effect chart: label, task, mean, difference from the label that it is compared with."""
    names = short_names(summary.tasks)
    return [
        (effect.label, names[effect.task], score_cell(effect.estimate), difference_cell(effect.difference))
        for effect in summary.effects
        if effect.axis == axis
    ]


def _comparisons(summary: Summary) -> list[Comparison]:
    """Compare every line with the reference on every task; all t-tests over seeds form one family."""
    names, rows = short_names(summary.tasks), []
    differences = {(line.key, task): r.difference for line in summary.lines for task, r in line.results.items()}
    corrected = holm({place: difference.p_value for place, difference in differences.items() if difference is not None})
    for line in summary.lines:
        for task in line.results:
            if (difference := differences[line.key, task]) is not None:
                items, place = difference.clip_interval, (line.key, task)
                clips = (
                    TableCell()
                    if items is None or math.isnan(items.low)
                    else TableCell(f"[{format_signed(items.low)}, {format_signed(items.high)}]", items.low)
                )
                numbers = (difference.p_value, difference.p_folds, corrected[place], line.p_value)
                p_values = (p_cell(p, mark=False) for p in numbers)
                cell, pairs = difference_cell(difference), TableCell(str(difference.pairs), difference.pairs)
                rows.append(Comparison(short_name(line), names[task], cell, clips, pairs, *p_values))
    return rows


def _recipes(summary: Summary, details: PageDetails) -> list[Recipe]:
    """One recipe for all cells of a line that differ only in the seed; then cells in no line, as failed ones."""
    line_recipes, cells_in_lines = [], set()
    for line in summary.lines:
        groups: dict[str, list[str]] = {}
        for cell in line.cells:
            groups.setdefault(SEED_LINE.sub("seed:", details.configs.get(cell, "")), []).append(cell)
        line_recipes += [_recipe(line.name, cells, details) for cells in groups.values()]
        cells_in_lines |= set(line.cells)
    rest = [cell for cell in dict.fromkeys([*details.configs, *details.cell_commands]) if cell not in cells_in_lines]
    recipes = [*line_recipes, *(_recipe("not in the table", [cell], details) for cell in rest)]
    return [recipe for recipe in recipes if recipe.config or recipe.commands]


def _recipe(line: str, cells: Sequence[str], details: PageDetails) -> Recipe:
    texts = [details.configs.get(cell, "") for cell in cells]
    seeds = [match[0].removeprefix("seed:").strip() for text in texts if (match := SEED_LINE.search(text))]
    config = texts[0]
    if len(seeds) > 1:
        config = SEED_LINE.sub(lambda match: f"{match[0]}  # {', '.join(seeds[1:])} in the other cells", config)
    commands = tuple(details.cell_commands[cell] for cell in cells if cell in details.cell_commands)
    return Recipe(line, ", ".join(cells), config, commands)


def _times(details: PageDetails) -> list[str]:
    durations = (("of training", details.wall_seconds), ("of CPU time", details.cpu_seconds))
    return [f"{format_duration(seconds)} {name}" for name, seconds in durations if seconds is not None]
