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
from asda_core.system.files import write_text, write_whole
from asda_core.system.markdown import escaped, table_row
from asda_hear.looking.clip import SILENCE_DB
from asda_hear.looking.drawing import attention_figure
from asda_hear.looking.view import Choice, Numbers, Query, View, layer_numbers, layer_of, noise_numbers

TEMPLATE = Path(__file__).with_name("page.html.j2")
PAGE_DOTS, PICTURE_DOTS = 160, 220
"""Dots per inch of pictures in a page, and of a picture file."""
FIRST_COLUMNS = ("layer", "map", "lambda")
"""Columns that identify a row; they come first."""
SMALL_VALUE = 0.0005
"""Magnitude below which a number would be shown as 0.000."""


@dataclass(frozen=True)
class Looked:
    """Everything that the output shows.

    Attributes:
        audio: the audio file.
        views: one per model.
        choices: layers and heads.
        query: the query whose attention is shown.
    """

    audio: Path
    views: Sequence[View]
    choices: Sequence[Choice]
    query: Query

    @property
    def title(self) -> str:
        """The file, the part of it that was used, and the added noise."""
        view = self.views[0]
        noisy = "" if view.noisy is None else f", noise at {view.noisy.snr_db:g} dB on half of the time steps"
        ends = [each.places.end_seconds for each in self.views]
        last = " or ".join(dict.fromkeys(f"{end:.2f} s" for end in sorted(ends)))
        each = ", depending on the clip length of the model" if " or " in last else ""
        return f"{self.audio.name}, {view.places.start_seconds:.2f} s to {last}{each}{noisy}"


def write_page(looked: Looked, out: Path) -> None:
    """Write one self-contained HTML file."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    figures = []
    for choice in looked.choices:
        light, dark = (attention_figure(looked.views, [choice], looked.query, dark=dark) for dark in (False, True))
        figures.append({"caption": _caption(looked, choice), "light": _embedded(light), "dark": _embedded(dark)})
    text = template.render(
        title=looked.title,
        models=[_about(view) for view in looked.views],
        figures=figures,
        tables=[{"name": view.model.name, **_table(layer_numbers(view))} for view in looked.views],
        noise=[
            {"name": view.model.name, **_table(noise_numbers(view))} for view in looked.views if noise_numbers(view)
        ],
        silence_db=f"{SILENCE_DB:g}",
        version=__version__,
    )
    write_text(out, text)


def write_picture(looked: Looked, out: Path) -> None:
    """Write one PNG file."""
    figure = attention_figure(looked.views, looked.choices, looked.query, looked.title)
    write_whole(out, lambda part: figure.savefig(part, format="png", dpi=PICTURE_DOTS, facecolor="white"))


def write_arrays(looked: Looked, out: Path) -> None:
    """Write the maps of the chosen layers, all heads, as NumPy arrays; docs/looking.md lists their names."""
    arrays: dict[str, np.ndarray] = {"models": np.array([view.model.name for view in looked.views])}
    for number, view in enumerate(looked.views):
        start = f"model{number}"
        places = view.places
        arrays[f"{start}/spectrogram"] = view.spectrogram
        arrays[f"{start}/grid"] = np.array(places.grid)
        arrays[f"{start}/step_seconds"] = np.array(places.step_seconds)
        arrays[f"{start}/start_seconds"] = np.array(places.start_seconds)
        if view.silent is not None:
            arrays[f"{start}/silent"] = view.silent.numpy()
        if view.noisy is not None:
            arrays[f"{start}/noise"] = view.noisy.noise_patches.numpy()
        for layer in sorted({layer_of(view, choice) for choice in looked.choices}):
            arrays |= {f"{start}/layer{layer}/{name}": value for name, value in _layer_arrays(view, layer).items()}
    with io.BytesIO() as buffer:
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        content = buffer.getvalue()
    write_whole(out, lambda part: part.write_bytes(content))


def numbers_text(looked: Looked) -> str:
    """Return the tables as Markdown."""
    parts = []
    for view in looked.views:
        for suffix, rows in (
            ("", layer_numbers(view)),
            (": attention on noise", noise_numbers(view)),
        ):
            if rows:
                table = _table(rows)
                body = [table["heads"], ["---"] * len(table["heads"]), *table["rows"]]
                parts.append(f"{escaped(view.model.name)}{suffix}\n\n" + "\n".join(map(table_row, body)))
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
    times, bands = view.places.grid
    heads = view.layers[-1].maps.first.shape[1]
    shape = f"{config.depth} layers, {heads} heads with a map each, {times} by {bands} patches"
    duration = f"{view.stretch.num_samples / view.model.sample_rate:.2f} s of audio"
    return {"name": view.model.name, "mixer": config.mixer.name, "shape": shape, "heard": duration}


def _caption(looked: Looked, choice: Choice) -> str:
    layers = ", ".join(dict.fromkeys(str(layer_of(view, choice)) for view in looked.views))
    head = "mean over the heads" if choice.head is None else f"head {choice.head}"
    return f"Layer {layers}, {head}"


def _table(rows: Sequence[Numbers]) -> dict[str, list[list[str]] | list[str]]:
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
        figure.savefig(buffer, format="png", dpi=PAGE_DOTS, facecolor="none")
        return base64.b64encode(buffer.getvalue()).decode("ascii")
