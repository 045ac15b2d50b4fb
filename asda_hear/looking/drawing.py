"""Figures of attention overlaid on the spectrogram."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from asda_core.finetune.pictures import escape_dollars
from asda_hear.looking.view import HeadChoice, MapKind, Panel, Query, View, has_second_map, layer_index, make_panel

KINDS: tuple[MapKind, ...] = ("map 1", "map 2", "difference")
MAP_NAMES: dict[MapKind, str] = {"map 1": "map 1", "map 2": "map 2 (subtracted)", "difference": "difference"}
RANGE_DB = 70.0
"""Level in dB below the loudest value of all spectrograms from which values are drawn white."""
TOP_PERCENTILE = 98.0
"""Percentile at which the colour scale of attention ends, since a few dominant patches would leave the rest blank."""
MIN_MEANS = 2.0
"""Lower bound of the scale's end, in multiples of the mean, so that nearly even attention has no strong colour."""
MIN_TOP = 1e-6
"""Top of a scale if all values are 0."""
STRONGEST, WEAKEST = 0.92, 0.0
"""Opacity of the strongest and the weakest attention over the spectrogram."""
NUM_COLOURS = 256
WIDTH_INCHES, HEIGHT_INCHES, BAR_INCHES, TITLE_INCHES = 2.7, 1.55, 0.85, 0.75
"""Size of one panel, of the colour bar beside it, and of the title above all panels."""
TEXT_POINTS, SMALL_POINTS = 8.0, 7.0
QUERY_COLOUR, NOISE_COLOUR = "#00a5c8", "#1b9e3a"
LIGHT_INK, DARK_INK = "black", "#e6e6e6"
DARKEST_GREY = 0.45
"""Grey level of the loudest value, from 0 (black) to 1: dark enough to be read, light enough for colours over it."""
MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class FigureRow:
    """A row of panels: the spectrograms (None, None), or one kind of map of one choice."""

    choice: HeadChoice | None
    kind: MapKind | None


@dataclass(frozen=True)
class Scales:
    """Colour scales shared by all models; `spectrogram_label` is the label of that of the spectrograms."""

    spectrogram: Normalize
    spectrogram_label: str
    attention: dict[HeadChoice, Normalize]
    difference: dict[HeadChoice, Normalize]


def attention_figure(
    views: Sequence[View], choices: Sequence[HeadChoice], query: Query, title: str = "", dark: bool = False
) -> Figure:
    """Draw spectrogram, maps and their difference: a column per model, or one line of panels for a single model.

    Colour shows how many times as much attention a patch gets as even attention would give it. The figure has a canvas
    of its own: neither pyplot nor any other state of the program is changed.

    Args:
        views: one per model, in the order of the columns.
        choices: layers and heads.
        query: the query whose attention is drawn.
        title: above all panels.
        dark: draw light text, for a dark page.

    Raises:
        ConfigError: a layer, head or query does not exist.
    """
    lines = _arranged(views, choices)
    single = len(views) == 1
    columns = max(len(line) for line in lines) if single else len(views)
    rows = len(lines) if single else sum(len(line) for line in lines)
    size = (columns * WIDTH_INCHES + (0 if single else BAR_INCHES), rows * (HEIGHT_INCHES + BAR_INCHES * single))
    figure = Figure(figsize=(size[0], size[1] + TITLE_INCHES), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    scales = _scales(views, choices, query)
    for line, axes in _paired(lines, grid, single):
        _draw_line(figure, line, axes, views, query, scales, "bottom" if single else "right")
    _name_models(grid, views)
    descriptions = dict.fromkeys(
        each.description for view in views for choice in choices if (each := make_panel(view, choice, query, "map 1"))
    )
    heading = f"attention of the {', '.join(descriptions)}"
    figure.suptitle(escape_dollars(f"{title}\n{heading}" if title else heading), fontsize=TEXT_POINTS + 1)
    figure.supxlabel("time in the file (s)", fontsize=TEXT_POINTS)
    _ink(figure, DARK_INK if dark else LIGHT_INK)
    return figure


def _arranged(views: Sequence[View], choices: Sequence[HeadChoice]) -> list[list[FigureRow]]:
    """The panels of every choice, each with its spectrogram; with several models the spectrogram only once."""
    lines: list[list[FigureRow]] = [] if len(views) == 1 else [[FigureRow(None, None)]]
    for choice in choices:
        kinds = KINDS if any(has_second_map(view, choice) for view in views) else KINDS[:1]
        maps = [FigureRow(choice, kind) for kind in kinds]
        lines.append([FigureRow(None, None), *maps] if len(views) == 1 else maps)
    return lines


def _paired(lines: list[list[FigureRow]], grid: np.ndarray, single: bool) -> list[tuple[list[FigureRow], np.ndarray]]:
    """Each line with its axes, of shape (rows of the line, models)."""
    pairs, num_rows = [], 0
    for number, line in enumerate(lines):
        if single:
            for spare in grid[number, len(line) :]:
                spare.set_axis_off()
            pairs.append((line, grid[number, : len(line)][:, None]))
        else:
            pairs.append((line, grid[num_rows : num_rows + len(line)]))
        num_rows += len(line)
    return pairs


def _draw_line(
    figure: Figure,
    line: list[FigureRow],
    axes: np.ndarray,
    views: Sequence[View],
    query: Query,
    scales: Scales,
    side: str,
) -> None:
    """Draw the panels of a line and its colour bars: for the spectrograms, the maps and the difference."""
    for row, row_axes in zip(line, axes, strict=True):
        for view, ax in zip(views, row_axes, strict=True):
            _draw(ax, view, row, query, scales)
    for kinds, mappable, label in _bars(line, scales):
        members = [ax for row, row_axes in zip(line, axes, strict=True) if row.kind in kinds for ax in row_axes]
        if members:
            bar = figure.colorbar(mappable, ax=members, location=side, pad=0.02, aspect=25, extend=_open_ends(kinds))
            bar.set_label(label, fontsize=SMALL_POINTS)
            bar.ax.tick_params(labelsize=SMALL_POINTS)


def _bars(line: list[FigureRow], scales: Scales) -> list[tuple[tuple[MapKind | None, ...], ScalarMappable, str]]:
    bars: list[tuple[tuple[MapKind | None, ...], ScalarMappable, str]] = []
    if line[0].kind is None:
        bars.append(((None,), ScalarMappable(scales.spectrogram, _grey()), scales.spectrogram_label))
    choice = line[-1].choice
    if choice is not None:
        bars.append(
            (("map 1", "map 2"), ScalarMappable(scales.attention[choice], _warm()), "attention / even attention")
        )
        bars.append(
            (("difference",), ScalarMappable(scales.difference[choice], _diverging()), "difference / even attention")
        )
    return bars


def _open_ends(kinds: tuple[MapKind | None, ...]) -> str:
    return "min" if kinds == (None,) else ("both" if kinds == ("difference",) else "max")


def _draw(axes: Axes, view: View, row: FigureRow, query: Query, scales: Scales) -> None:
    """Draw one panel: the spectrogram in grey, and the map over it, if any."""
    positions = view.positions
    end, bins = positions.end_seconds, positions.num_bins
    seconds = view.spectrogram.shape[1] * positions.step_seconds / view.model.encoder.config.step_frames
    extent = (positions.start_seconds, positions.start_seconds + seconds, -0.5, bins - 0.5)
    cells = dict[str, Any](origin="lower", aspect="auto", interpolation="nearest")
    axes.imshow(view.spectrogram, extent=extent, norm=scales.spectrogram, cmap=_grey(), rasterized=True, **cells)
    tick_positions, labels = zip(*positions.ticks(), strict=True)
    axes.set_yticks(tick_positions, labels)
    axes.set_xlim(positions.start_seconds, end)
    axes.set_ylim(-0.5, bins - 0.5)
    axes.set_ylabel("frequency (kHz)" if positions.top_hz else "bin", fontsize=SMALL_POINTS)
    axes.tick_params(labelsize=SMALL_POINTS, length=2)
    if row.choice is None or row.kind is None:
        _frame_noise(axes, view)
        return
    drawn = make_panel(view, row.choice, query, row.kind)
    if drawn is None:
        _draw_empty(axes, row.kind)
        return
    scale, colours = (scales.difference, _diverging()) if row.kind == "difference" else (scales.attention, _warm())
    high = positions.grid[1] * positions.step_bins - 0.5
    over = (positions.start_seconds, end, -0.5, high)
    axes.imshow(drawn.values, extent=over, norm=scale[row.choice], cmap=colours, **cells)
    if drawn.query is not None:
        axes.add_patch(_cell(view, drawn.query, QUERY_COLOUR, 1.6))
    _title(axes, _caption(view, row.choice, row.kind, drawn))


def _caption(view: View, choice: HeadChoice, kind: MapKind, drawn: Panel) -> str:
    layer = layer_index(view, choice)
    heads = view.layers[layer].maps.first.shape[1]
    head = f"mean of {heads} heads" if choice.head is None else f"head {choice.head}"
    name = MAP_NAMES[kind]
    if kind == "difference":
        plus = " + mean" if view.layers[layer].maps.mean is not None else ""
        name = f"map 1 {MINUS} {drawn.weight:.2f} {TIMES} map 2{plus}"
    lines = f"{name}, layer {layer}\n{head}"
    has_class = view.layers[layer].layout.class_column is not None
    return f"{lines}; on class token {drawn.class_attention:.1%}".replace("-", MINUS) if has_class else lines


def _draw_empty(axes: Axes, kind: MapKind) -> None:
    """Draw an empty panel with the reason."""
    axes.cla()
    axes.set_axis_off()
    reason = "no second map" if kind == "map 2" else "nothing is subtracted:\nmap 1 is used"
    axes.text(
        0.5, 0.5, reason, ha="center", va="center", fontsize=TEXT_POINTS, style="italic", transform=axes.transAxes
    )


def _frame_noise(axes: Axes, view: View) -> None:
    """Draw the title of a spectrogram, and frames around the patches in which the noise is louder."""
    if view.noisy is None:
        _title(axes, "spectrogram")
        return
    framed = view.noisy.noise_patches.nonzero().flatten().tolist()
    _title(axes, f"{len(framed)} framed patches: noise ({view.noisy.snr_db:g} dB) louder")
    for index in framed:
        axes.add_patch(_cell(view, divmod(index, view.positions.grid[1]), NOISE_COLOUR, 0.5))


def _cell(view: View, place: tuple[int, int], colour: str, width: float) -> Rectangle:
    """The frame of a patch."""
    positions, (step, band) = view.positions, place
    corner = (positions.start_seconds + step * positions.step_seconds, band * positions.step_bins - 0.5)
    return Rectangle(corner, positions.step_seconds, positions.step_bins, fill=False, edgecolor=colour, linewidth=width)


def _name_models(grid: np.ndarray, views: Sequence[View]) -> None:
    """Write the models' names above their columns."""
    if len(views) > 1:
        for axes, view in zip(grid[0], views, strict=True):
            mixer = view.model.encoder.config.mixer.name
            axes.set_title(escape_dollars(f"{view.model.name} ({mixer})\n") + axes.get_title(), fontsize=TEXT_POINTS)


def _title(axes: Axes, text: str) -> None:
    axes.set_title(escape_dollars(text), fontsize=SMALL_POINTS, linespacing=1.25, pad=3)


def _scales(views: Sequence[View], choices: Sequence[HeadChoice], query: Query) -> Scales:
    """Scales over all models; those of spectrograms in dB span `RANGE_DB` below the loudest value."""
    high = max(float(view.spectrogram.max()) for view in views)
    decibels = all(view.positions.top_hz for view in views)
    low = high - RANGE_DB if decibels else min(float(view.spectrogram.min()) for view in views)
    attention, difference = {}, {}
    for choice in choices:
        top = _top(views, choice, query, ("map 1", "map 2"), np.asarray)
        attention[choice] = Normalize(0, top)
        widest = _top(views, choice, query, ("difference",), np.abs)
        difference[choice] = Normalize(-widest, widest)
    loudness = "mel energy (dB)" if decibels else "feature"
    return Scales(Normalize(low, high), loudness, attention, difference)


def _top(
    views: Sequence[View], choice: HeadChoice, query: Query, kinds: Sequence[MapKind],
    size: Callable[[np.ndarray], np.ndarray],
) -> float:  # fmt: skip
    """Upper end of a colour scale."""
    panels = [make_panel(view, choice, query, kind) for view in views for kind in kinds]
    values = [size(each.values).ravel() for each in panels if each is not None]
    if not values:
        return 1.0
    all_values = np.concatenate(values)
    return max(float(np.percentile(all_values, TOP_PERCENTILE)), MIN_MEANS * float(all_values.mean()), MIN_TOP)


def _grey() -> ListedColormap:
    """From white to the darkest grey."""
    return ListedColormap(np.repeat(np.linspace(1, DARKEST_GREY, NUM_COLOURS)[:, None], 3, axis=1))


def _warm() -> ListedColormap:
    """From transparent through orange to dark red; weak values let the spectrogram show through."""
    share = np.linspace(0, 1, NUM_COLOURS)[:, None]
    colours = np.array([1.0, 0.62, 0.1]) * (1 - share) + np.array([0.72, 0.0, 0.06]) * share
    return ListedColormap(np.hstack([colours, WEAKEST + (STRONGEST - WEAKEST) * share**0.7]))


def _diverging() -> ListedColormap:
    """Blue below 0, red above, transparent at 0."""
    share = np.linspace(-1, 1, NUM_COLOURS)[:, None]
    colours = np.where(share < 0, np.array([0.08, 0.25, 0.75]), np.array([0.75, 0.04, 0.06]))
    return ListedColormap(np.hstack([colours, WEAKEST + (STRONGEST - WEAKEST) * np.abs(share) ** 0.7]))


def _ink(figure: Figure, colour: str) -> None:
    """Set text and lines to one colour; panels stay white."""
    for text in figure.findobj(match=lambda each: hasattr(each, "set_text")):
        text.set_color(colour)  # type: ignore[attr-defined]
    for axes in figure.axes:
        axes.tick_params(color=colour, labelcolor=colour)
        for spine in axes.spines.values():
            spine.set_edgecolor(colour)
