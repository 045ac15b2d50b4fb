"""Output of `asda-hear look`: a self-contained HTML page, a picture or arrays; and its numbers as text."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
from matplotlib.figure import Figure

from asda_core import __version__
from asda_core.system.files import write_atomically, write_text
from asda_core.system.markdown import escape_markdown, table_row
from asda_hear.looking.clip import SILENCE_DB
from asda_hear.looking.drawing import attention_figure
from asda_hear.looking.view import HeadChoice, MeasureRow, Query, View, layer_index, layer_measures, noise_measures

TEMPLATE = Path(__file__).with_name("page.html.j2")
PAGE_DPI, PICTURE_DPI = 160, 220
"""Dots per inch of pictures in a page, and of a picture file."""
FIRST_COLUMNS = ("layer", "map", "lambda")
"""Columns that identify a row; they come first."""
SMALL_VALUE = 0.0005
"""Magnitude below which a number would be shown as 0.000."""


@dataclass(frozen=True)
class Inspection:
    """Contents of the output of `asda-hear look`.

    Attributes:
        audio: the audio file.
        views: one per model.
        choices: layers and heads.
        query: the query whose attention is shown.
    """

    audio: Path
    views: Sequence[View]
    choices: Sequence[HeadChoice]
    query: Query

    @property
    def title(self) -> str:
        """The file, the part of it that was used, and the added noise."""
        view = self.views[0]
        noisy = "" if view.noisy is None else f", noise at {view.noisy.snr_db:g} dB on half of the time steps"
        ends = [each.positions.end_seconds for each in self.views]
        last = " or ".join(dict.fromkeys(f"{end:.2f} s" for end in sorted(ends)))
        each = ", depending on the clip length of the model" if " or " in last else ""
        return f"{self.audio.name}, {view.positions.start_seconds:.2f} s to {last}{each}{noisy}"


def write_page(inspection: Inspection, out: Path) -> None:
    """Write one self-contained HTML file."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    figures = []
    for choice in inspection.choices:
        light, dark = (
            attention_figure(inspection.views, [choice], inspection.query, dark=dark) for dark in (False, True)
        )
        figures.append({"caption": _caption(inspection, choice), "light": _embedded(light), "dark": _embedded(dark)})
    text = template.render(
        title=inspection.title,
        models=[_about(view) for view in inspection.views],
        figures=figures,
        tables=[{"name": view.model.name, **_table(layer_measures(view))} for view in inspection.views],
        noise=[
            {"name": view.model.name, **_table(noise_measures(view))}
            for view in inspection.views
            if noise_measures(view)
        ],
        silence_db=f"{SILENCE_DB:g}",
        version=__version__,
    )
    write_text(out, text)


def write_picture(inspection: Inspection, out: Path) -> None:
    """Write one PNG file."""
    figure = attention_figure(inspection.views, inspection.choices, inspection.query, inspection.title)
    write_atomically(out, lambda part: figure.savefig(part, format="png", dpi=PICTURE_DPI, facecolor="white"))


def write_arrays(inspection: Inspection, out: Path) -> None:
    """Write the maps of the chosen layers, all heads, as NumPy arrays; docs/looking.md lists their names."""
    arrays: dict[str, np.ndarray] = {"models": np.array([view.model.name for view in inspection.views])}
    for number, view in enumerate(inspection.views):
        start = f"model{number}"
        positions = view.positions
        arrays[f"{start}/spectrogram"] = view.spectrogram
        arrays[f"{start}/grid"] = np.array(positions.grid)
        arrays[f"{start}/step_seconds"] = np.array(positions.step_seconds)
        arrays[f"{start}/start_seconds"] = np.array(positions.start_seconds)
        if view.silent is not None:
            arrays[f"{start}/silent"] = view.silent.numpy()
        if view.noisy is not None:
            arrays[f"{start}/noise"] = view.noisy.noise_patches.numpy()
        for layer in sorted({layer_index(view, choice) for choice in inspection.choices}):
            arrays |= {f"{start}/layer{layer}/{name}": value for name, value in _layer_arrays(view, layer).items()}
    with io.BytesIO() as buffer:
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        content = buffer.getvalue()
    write_atomically(out, lambda part: part.write_bytes(content))


def measures_markdown(inspection: Inspection) -> str:
    """Return the tables as Markdown."""
    parts = []
    for view in inspection.views:
        for suffix, rows in (
            ("", layer_measures(view)),
            (": attention on noise", noise_measures(view)),
        ):
            if rows:
                table = _table(rows)
                body = [table["heads"], ["---"] * len(table["heads"]), *table["rows"]]
                parts.append(f"{escape_markdown(view.model.name)}{suffix}\n\n" + "\n".join(map(table_row, body)))
    return "\n\n".join(parts)


def _layer_arrays(view: View, number: int) -> dict[str, np.ndarray]:
    layer = view.layers[number]
    maps, layout = layer.maps, layer.layout
    tensors = {"first": maps.first, "second": maps.second, "weight": maps.weight, "mean": maps.mean}
    arrays = {name: value.numpy() for name, value in tensors.items() if value is not None}
    if maps.second is not None:
        arrays |= {"difference": maps.difference.numpy()}
    arrays = {name: value[0] if value.ndim == 4 else value for name, value in arrays.items()}
    return arrays | {"index": layout.index[0].numpy()}


def _about(view: View) -> dict[str, str]:
    config = view.model.encoder.config
    times, bands = view.positions.grid
    heads = view.layers[-1].maps.first.shape[1]
    shape = f"{config.depth} layers, {heads} heads with a map each, {times} by {bands} patches"
    duration = f"{view.excerpt.num_file_samples / view.model.sample_rate:.2f} s of audio"
    return {"name": view.model.name, "mixer": config.mixer.name, "shape": shape, "duration": duration}


def _caption(inspection: Inspection, choice: HeadChoice) -> str:
    layers = ", ".join(dict.fromkeys(str(layer_index(view, choice)) for view in inspection.views))
    head = "mean over the heads" if choice.head is None else f"head {choice.head}"
    return f"Layer {layers}, {head}"


def _table(rows: Sequence[MeasureRow]) -> dict[str, list[list[str]] | list[str]]:
    """Headings and cells of a table; a cell is empty if its row has no such number."""
    heads = sorted(dict.fromkeys(name for row in rows for name in row), key=lambda name: name not in FIRST_COLUMNS)
    cells = [[_formatted(row.get(name, "")) for name in heads] for row in rows]
    return {"heads": heads, "rows": cells}


def _formatted(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.1e}" if 0 < abs(value) < SMALL_VALUE else f"{value:.3f}"


def _embedded(figure: Figure) -> str:
    """A figure as base64-encoded PNG with a transparent background."""
    with io.BytesIO() as buffer:
        figure.savefig(buffer, format="png", dpi=PAGE_DPI, facecolor="none")
        return base64.b64encode(buffer.getvalue()).decode("ascii")
