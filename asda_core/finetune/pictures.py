"""Confusion matrices as pictures."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from asda_core.system.files import write_atomically
from asda_core.system.markdown import escape_surrogates

NUMBERED_CLASSES = 20
"""Largest number of classes whose cells show their counts; beyond it, they are too small to read."""
RULED_CLASSES = 100
"""Largest number of classes with lines between the cells."""
MAX_NAME_CHARACTERS = 24
"""Maximum length of a name in characters; the middle of a longer one is cut."""
SHADE = 0.5
"""Exponent from the share of a row to its shade: 2 % are visible, and 50 % are not yet black."""
DARK = 0.3
"""Share above which a cell is dark and the number on it white."""
NUMBERED_INCHES, PLAIN_INCHES = 0.45, 0.16
"""Side of a cell with and without a number."""
MIN_INCHES, MAX_INCHES = 2.2, 40.0
"""Smallest and largest side of the matrix."""
MARGIN_INCHES = 1.0
"""Margin around the matrix; its unused part is cropped."""
DOTS_PER_INCH = 120
NAME_POINTS, SMALL_POINTS = 9.0, 6.5
"""Font sizes of pictures with and without counts."""
POINTS_PER_INCH = 72


def draw_confusion(matrix: np.ndarray, names: Sequence[str], file: Path, title: str) -> None:
    """Write a picture of a confusion matrix atomically.

    The colour of a cell is its share of its row, so that large classes do not dominate small ones; the number is the
    count of clips, and an empty cell is 0.

    Args:
        matrix: (classes, classes), clips by true class (rows) and predicted class (columns).
        names: names of the classes.
        file: PNG to write; its folder exists.
        title: title of the picture.

    Raises:
        OSError: the file cannot be written.
    """
    figure = confusion_figure(matrix, names, title)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a missing character is drawn as a box
        write_atomically(file, lambda part: figure.savefig(part, format="png", dpi=DOTS_PER_INCH, bbox_inches="tight"))


def confusion_figure(matrix: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Draw a confusion matrix on its own canvas, without touching pyplot or other global state."""
    numbered = len(matrix) <= NUMBERED_CLASSES
    cell = NUMBERED_INCHES if numbered else PLAIN_INCHES
    inches = min(max(MIN_INCHES, len(matrix) * cell), MAX_INCHES)
    side = inches + 2 * MARGIN_INCHES
    figure = Figure(figsize=(side, side))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((MARGIN_INCHES / side, MARGIN_INCHES / side, inches / side, inches / side))
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(SHADE, 0, 1), interpolation="nearest")
    points = NAME_POINTS if numbered else min(SMALL_POINTS, POINTS_PER_INCH * inches / len(matrix))
    _name_classes(axes, [escape_dollars(shorten_name(name)) for name in names], points, slanted=numbered)
    _draw_grid(axes, len(matrix))
    if numbered:
        _write_counts(axes, matrix, shares)
    axes.set_title(escape_dollars(title), fontsize=11, pad=10)
    scale = axes.inset_axes((1 + 0.12 / inches, 0, 0.15 / inches, 1))
    figure.colorbar(image, cax=scale, ticks=[0, 0.05, 0.2, 0.5, 1])
    scale.set_ylabel("share of the true class", fontsize=NAME_POINTS)
    scale.tick_params(labelsize=NAME_POINTS)
    return figure


def shorten_name(name: str) -> str:
    """Cut the middle of a long name: what distinguishes classes is often at the end."""
    if len(name) <= MAX_NAME_CHARACTERS:
        return name
    end = (MAX_NAME_CHARACTERS - 1) // 2
    return f"{name[: MAX_NAME_CHARACTERS - 1 - end]}…{name[-end:]}"


def escape_dollars(text: str) -> str:
    """Escape dollar signs, so that none starts a formula, and bytes that are not UTF-8, which no font draws."""
    return escape_surrogates(text).replace("$", r"\$")


def _name_classes(axes: Axes, names: Sequence[str], points: float, slanted: bool) -> None:
    axes.set_xticks(range(len(names)), names, rotation=45 if slanted else 90, fontsize=points)
    axes.set_yticks(range(len(names)), names, fontsize=points)
    if slanted:
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")


def _draw_grid(axes: Axes, num_classes: int) -> None:
    """Draw thin lines between the cells."""
    axes.tick_params(which="major", length=2)
    if num_classes <= RULED_CLASSES:
        edges = np.arange(num_classes - 1) + 0.5
        axes.set_xticks(edges, minor=True)
        axes.set_yticks(edges, minor=True)
        axes.grid(which="minor", color="0.85", linewidth=0.5)
        axes.tick_params(which="minor", length=0)


def _write_counts(axes: Axes, matrix: np.ndarray, shares: np.ndarray) -> None:
    """Write the counts into the cells that are not 0."""
    for row, column in np.argwhere(matrix > 0):
        count, colour = int(matrix[row, column]), "white" if shares[row, column] > DARK else "black"
        points = NAME_POINTS if count < 10_000 else SMALL_POINTS
        axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=points)
