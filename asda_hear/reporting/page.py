"""The results of a plan as one HTML file that needs nothing else: it opens from disk, prints, and can be sent."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from asda_core.files import write_text
from asda_hear.reporting.charts import Curves, cost_charts, curve_charts, effect_charts, score_charts, short_name
from asda_hear.reporting.summary import Line, Summary, TaskResult
from asda_hear.reporting.tables import (
    SIGNIFICANT,
    Cell,
    difference_cell,
    excludes_zero,
    few_seeds_warning,
    make_grid,
    number,
    p_text,
    score_cell,
    short_names,
    signed,
)

TEMPLATE = "page.html.j2"
SPELLED_TASKS = 3
"""Up to so many tasks the answer speaks of each; beyond, it counts them."""
SEED_LINE = re.compile(r"^seed:.*$", re.MULTILINE)
"""The line of a config in which the cells of a line differ."""


@dataclass(frozen=True)
class Failure:
    """A cell that failed: its name and labels, the error in one line, and the traceback."""

    cell: str
    error: str
    traceback: str = ""


@dataclass(frozen=True)
class PageDetails:
    """What a page shows beside the summary; what is empty is left out.

    Attributes:
        curves: name of a line -> seed -> {"step": updates, "loss": of each}.
        configs: name of a cell -> its config as YAML.
        plan: the plan file.
        environment: fact -> value, as in {"torch": "2.11.0"}.
        commit: of the code.
        command: makes the table.
        cell_commands: name of a cell -> what makes it alone.
        failures: of cells.
        made: date and time, as text.
        wall_seconds, cpu_seconds: of all cells together; None where it is not known.
    """

    curves: Curves = field(default_factory=dict)
    configs: Mapping[str, str] = field(default_factory=dict)
    plan: str = ""
    environment: Mapping[str, str | int] = field(default_factory=dict)
    commit: str = ""
    command: str = ""
    cell_commands: Mapping[str, str] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    made: str = ""
    wall_seconds: float | None = None
    cpu_seconds: float | None = None


@dataclass(frozen=True)
class Recipe:
    """How the cells of a line are made: a config that holds for all of them, and a command for each."""

    line: str
    cells: str
    config: str
    commands: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """A line against the reference on one task, as text."""

    line: str
    task: str
    difference: Cell
    clips: str
    pairs: int
    p_value: str
    holm: str


def write_page(summary: Summary, details: PageDetails, file: Path) -> None:
    """Write the page, whole or not at all.

    Args:
        summary: what is shown; it may hold no line at all.
        details: everything beside the numbers.
        file: HTML to write; its folder is made.

    Raises:
        OSError: it cannot be written.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"svg": Markup, "minus": lambda text: text.replace("-", "−")}  # noqa: RUF001
    text = environment.get_template(TEMPLATE).render(
        summary=summary,
        details=details,
        answer=answer(summary),
        grid=make_grid(summary),
        effects=[(chart, _effect_rows(summary, chart.title)) for chart in effect_charts(summary)],
        scores=score_charts(summary),
        costs=cost_charts(summary),
        curves=curve_charts(summary, details.curves),
        comparisons=_comparisons(summary),
        aggregates=list(dict.fromkeys(name for line in summary.lines for name in line.aggregates)),
        recipes=_recipes(summary, details),
        times=_times(details),
        number=number,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text)


def answer(summary: Summary) -> list[str]:
    """Sentences from the numbers: which line is best and whether that can be told from chance; what cannot be."""
    lines = [line for line in summary.lines if not line.baseline and line.results]
    if not lines:
        return ["No combination of this plan is done yet. Nothing can be said."]
    judged = [task for task in summary.tasks if task not in summary.neutral]
    best = {task: line for task in judged if (line := _best(summary, lines, task)) is not None}
    if not best:
        return ["No combination has a score that is a number. Nothing can be said."]
    if len(best) <= SPELLED_TASKS:
        first = [f"{_on_task(summary, lines, task, line)}." for task, line in best.items()]
    else:
        first = [f"{_on_many(summary, best)}."]
    return [*first, _limits(summary, lines)]


def _best(summary: Summary, lines: Sequence[Line], task: str) -> Line | None:
    """The line with the best mean; the first of equals."""
    sign = -1 if task in summary.lower_is_better else 1
    done = [line for line in lines if task in line.results and not math.isnan(line.results[task].estimate.mean)]
    return max(done, key=lambda line: sign * line.results[task].estimate.mean, default=None)


def _on_task(summary: Summary, lines: Sequence[Line], task: str, line: Line) -> str:
    result = line.results[task]
    estimate = score_cell(result.estimate)
    score = f"{estimate.text}{estimate.half and f' ± {estimate.half}'}"
    others = sum(task in other.results for other in lines)
    best = f"has the best mean of {others}" if others > 1 else "stands alone"
    against = _against_reference(summary, line, result)
    above = _baselines_above(summary, task, result)
    return f"{short_names(summary.tasks)[task]}: {_called(summary, line)} {best}, {score}; {against}{above}"


def _against_reference(summary: Summary, line: Line, result: TaskResult) -> str:
    if summary.reference is None:
        return "there is no reference"
    if line == summary.reference:
        return "it is the reference itself"
    difference = result.difference
    if difference is None or math.isnan(difference.interval.low):
        return "no interval of its difference from the reference"
    excludes = excludes_zero(difference)
    ends = f"[{signed(difference.interval.low)}, {signed(difference.interval.high)}]"
    doubt = f", though a paired t-test over seeds gives p = {p_text(difference.p_value)}"
    return (
        f"{signed(difference.mean)} {ends} from the reference, which {'excludes' if excludes else 'includes'} 0"
        f"{doubt if excludes and difference.p_value >= SIGNIFICANT else ''}"
    )


def _baselines_above(summary: Summary, task: str, result: TaskResult) -> str:
    sign = -1 if task in summary.lower_is_better else 1
    known = [line for line in summary.lines if line.baseline and task in line.results]
    above = [line for line in known if sign * (line.results[task].estimate.mean - result.estimate.mean) > 0]
    if not above:
        return ""
    named = ", ".join(f"{line.name} ({number(line.results[task].estimate.mean)})" for line in above)
    return f", but the baseline {named} is better" if len(above) == 1 else f", but the baselines {named} are better"


def _on_many(summary: Summary, best: Mapping[str, Line]) -> str:
    """One line for many tasks: the one that is best most often, the first of equals."""
    winners = list(best.values())
    line = max(winners, key=winners.count)
    tasks = [task for task, winner in best.items() if winner == line]
    first = f"{_called(summary, line)} has the best mean on {len(tasks)} of {len(best)} tasks"
    if summary.reference is None or line == summary.reference:
        return f"{first}{', and is the reference itself' if line == summary.reference else ''}"
    apart = sum(excludes_zero(line.results[task].difference) for task in tasks)
    reference = _called(summary, summary.reference)
    return f"{first}; the 95 % interval of its difference from {reference} excludes 0 on {apart} of these"


def _limits(summary: Summary, lines: Sequence[Line]) -> str:
    """What cannot be seen, with the width of the intervals that there are."""
    seeds = max(len(line.seeds) for line in lines)
    names, widths = short_names(summary.tasks), []
    for task in list(summary.tasks)[:SPELLED_TASKS]:
        found = (line.results[task].difference for line in lines if task in line.results)
        halves = [(each.interval.high - each.interval.low) / 2 for each in found if each is not None]
        if known := [half for half in halves if not math.isnan(half)]:
            widths.append(f"{number(median(known))} ({names[task]})")
    seen = "no difference can be told from chance"
    if widths:
        few = ", and with so few seeds even that is too narrow" if few_seeds_warning(summary) else ""
        seen = f"the interval of a difference typically reaches {_listed(widths)} to either side{few}"
    unknown = " it is not known how results vary between seeds;" if seeds == 1 else ""
    luck = f"; the best of {len(lines)} is partly the luckiest" if len(lines) > 1 else ""
    return f"With {_counted(seeds, 'seed')},{unknown} {seen}{luck}; nothing follows for other data, sizes or schedules."


def _called(summary: Summary, line: Line) -> str:
    """Its labels, with the names of the axes only where there are several."""
    return short_name(line) if len(summary.axes) == 1 else line.name


def _listed(texts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _effect_rows(summary: Summary, title: str) -> list[tuple[str, str, Cell, Cell]]:
    """The numbers of a chart of effects: label, task, mean, difference from the first label."""
    names = short_names(summary.tasks)
    return [
        (effect.label, names[effect.task], score_cell(effect.estimate), difference_cell(effect.difference))
        for effect in summary.effects
        if title == f"Effect of {effect.axis}"
    ]


def _comparisons(summary: Summary) -> list[Comparison]:
    names = short_names(summary.tasks)
    rows = []
    for line in summary.lines:
        for task, result in line.results.items():
            if (found := result.difference) is not None:
                clips = "" if found.items is None else f"[{signed(found.items.low)}, {signed(found.items.high)}]"
                texts = p_text(found.p_value), p_text(line.p_value)
                rows.append(Comparison(line.name, names[task], difference_cell(found), clips, found.pairs, *texts))
    return rows


def _recipes(summary: Summary, details: PageDetails) -> list[Recipe]:
    """One config for all cells of a line where only the seed differs; then cells in no line, as failed ones."""
    found, seen = [], set()
    for line in summary.lines:
        groups: dict[str, list[str]] = {}
        for cell in line.cells:
            groups.setdefault(SEED_LINE.sub("seed:", details.configs.get(cell, "")), []).append(cell)
        found += [_recipe(line.name, cells, details) for cells in groups.values()]
        seen |= set(line.cells)
    rest = [cell for cell in dict.fromkeys([*details.configs, *details.cell_commands]) if cell not in seen]
    recipes = [*found, *(_recipe("not in the table", [cell], details) for cell in rest)]
    return [recipe for recipe in recipes if recipe.config or recipe.commands]


def _recipe(line: str, cells: Sequence[str], details: PageDetails) -> Recipe:
    texts = [details.configs.get(cell, "") for cell in cells]
    seeds = [found[0].removeprefix("seed:").strip() for text in texts if (found := SEED_LINE.search(text))]
    config = texts[0]
    if len(seeds) > 1:
        config = SEED_LINE.sub(lambda found: f"{found[0]}  # {', '.join(seeds[1:])} in the other cells", config)
    commands = tuple(details.cell_commands[cell] for cell in cells if cell in details.cell_commands)
    return Recipe(line, ", ".join(cells), config, commands)


def _times(details: PageDetails) -> list[str]:
    known = (("of training", details.wall_seconds), ("of processor time", details.cpu_seconds))
    return [f"{_duration(seconds)} {name}" for name, seconds in known if seconds is not None]


def _duration(seconds: float) -> str:
    """Hours and minutes, or seconds where it was short."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
