"""How the lines of a plan look in its charts: a colour, marker and dash each, which tell them apart."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from asda_hear.reporting.summary import Summary, SummaryLine
from asda_hear.reporting.svg import FAINT

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colour-blind-safe palette (Okabe and Ito 2008), without yellow, which is hardly visible on white."""
MARKERS = "osD^vP"
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
"""Used in addition to colour, so that no distinction depends on colour alone."""
MAX_NAMED_LINES = 12
"""Maximum number of lines with a colour and name of their own; the others are grey."""


@dataclass(frozen=True)
class LineStyle:
    """How a line is drawn in every chart."""

    colour: str
    marker: str
    dash: str | tuple[int, tuple[int, ...]]
    named: bool


def line_styles(summary: Summary) -> dict[str, LineStyle]:
    """Return name of a line -> how it is drawn: colour encodes the first axis, marker and dash the others.

    If an axis has more labels than there are colours, or not all lines can be named, each named line has a look of its
    own, whatever its labels; the lines without a name are grey.
    """
    named = _named_lines(summary)
    lines = [line for line in summary.lines if line.name in named]
    labels = [tuple(line.labels.values()) or ("",) for line in lines]
    firsts, rests = list(dict.fromkeys(each[0] for each in labels)), list(dict.fromkeys(each[1:] for each in labels))
    looks = [(firsts.index(each[0]), rests.index(each[1:])) for each in labels]
    truncated = len(lines) < sum(not each.baseline for each in summary.lines)
    if truncated or len(rests) == 1 or max(len(firsts), len(rests)) > len(COLOURS):
        numbers = [named.index(line.name) for line in lines]
        looks = [(number, number + number // len(COLOURS)) for number in numbers]
    styles = {line.name: LineStyle(FAINT, MARKERS[0], DASHES[0], named=False) for line in summary.lines}
    for line, (first, other) in zip(lines, looks, strict=True):
        colour, marker, dash = COLOURS[first % len(COLOURS)], MARKERS[other % len(MARKERS)], DASHES[other % len(DASHES)]
        styles[line.name] = LineStyle(colour, marker, dash, named=True)
    return styles


def unnamed_sentence(summary: Summary, styles: Mapping[str, LineStyle]) -> str:
    """The sentence of a caption about unnamed lines; "" if there are none."""
    rest = sum(not line.baseline and not styles[line.name].named for line in summary.lines)
    return f" Grey: the other {rest} combinations; the reference and the best are named." if rest else ""


def _named_lines(summary: Summary) -> list[str]:
    """Names of the lines that get a colour: all, or the reference and the best of the first task."""
    lines = [line for line in summary.lines if not line.baseline]
    if len(lines) <= MAX_NAMED_LINES:
        return [line.name for line in lines]
    task = next(iter(summary.tasks), "")
    sign = 1 if task in summary.lower_is_better else -1

    def rank(line: SummaryLine) -> tuple[bool, float]:
        mean = line.results[task].estimate.mean if task in line.results else math.nan
        return line != summary.reference, math.inf if math.isnan(mean) else sign * mean

    return [line.name for line in sorted(lines, key=rank)[:MAX_NAMED_LINES]]
