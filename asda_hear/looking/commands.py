"""The command `asda-hear look`."""

import argparse
from collections.abc import Sequence

from asda_core.errors import ConfigError
from asda_core.system.paths import labelled_path, model_name
from asda_hear.looking.clip import OpenModel, open_model, read_excerpt
from asda_hear.looking.noise import WHITE
from asda_hear.looking.page import Inspection, measures_markdown, write_arrays, write_page, write_picture
from asda_hear.looking.view import AddedNoise, HeadChoice, Query, has_second_map, make_panel, make_view
from asda_hear.names import MEAN_HEAD

WRITERS = {".html": write_page, ".png": write_picture, ".npz": write_arrays}
"""File suffix -> function that writes that format."""


def run_look(parsed: argparse.Namespace) -> None:
    """Run `asda-hear look`: write the output file, and print the numbers of every layer."""
    write = WRITERS.get(parsed.out.suffix.lower())
    if write is None:
        raise ConfigError(f"--out {parsed.out} must end in {', '.join(WRITERS)}.")
    if parsed.noise is not None and parsed.snr is None:
        raise ConfigError("--noise requires --snr, the signal-to-noise ratio in dB.")
    if parsed.seed < 0:
        raise ConfigError(f"--seed must not be negative, not {parsed.seed}.")
    choices, query = parse_choices(parsed.layer, parsed.head), parse_query(parsed.query)
    noise = None if parsed.snr is None else AddedNoise(parsed.snr, parsed.noise or WHITE, parsed.seed)
    models = open_models(parsed.checkpoint)
    views = [make_view(model, read_excerpt(parsed.audio, model, parsed.at), noise) for model in models]
    for view in views:  # an invalid layer, head or query raises before anything is drawn
        for choice in choices:
            make_panel(view, choice, query, "difference" if has_second_map(view, choice) else "map 1")
    inspection = Inspection(parsed.audio, views, choices, query)
    parsed.out.parent.mkdir(parents=True, exist_ok=True)
    write(inspection, parsed.out)
    print(f"{measures_markdown(inspection)}\n\n{parsed.out}")


def open_models(paths: Sequence[str]) -> list[OpenModel]:
    """Open the models, each under a unique name: the part before "=", otherwise one derived from its path.

    Raises:
        ConfigError: two models have the same name.
    """
    labelled = [labelled_path("--checkpoint", text) for text in paths]
    short_names = [name or model_name(path) for name, path in labelled]
    names = [
        name if label or short_names.count(name) == 1 else path
        for (label, path), name in zip(labelled, short_names, strict=True)
    ]
    if duplicate := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"--checkpoint: two models are named {duplicate!r}; label one, as in LABEL=PATH.")
    return [open_model(path, name=name) for (_, path), name in zip(labelled, names, strict=True)]


def parse_choices(layers: Sequence[int], heads: Sequence[str]) -> list[HeadChoice]:
    """Return every chosen layer combined with every chosen head.

    Raises:
        ConfigError: a head is neither a number nor "mean".
    """
    head_numbers = [_head_number(text) for text in dict.fromkeys(heads)]
    layer_numbers: list[int | None] = list(dict.fromkeys(layers)) or [None]
    return [HeadChoice(layer, head) for layer in layer_numbers for head in head_numbers]


def parse_query(text: str) -> Query:
    """Parse the value of `--query`.

    Raises:
        ConfigError: the value is invalid.
    """
    if text == "default":
        return Query()
    if text == "class":
        return Query("class")
    if text == "mean":
        return Query("mean")
    seconds, comma, hertz = text.partition(",")
    try:
        if not comma:
            raise ValueError
        return Query("patch", float(seconds), float(hertz))
    except ValueError:
        raise ConfigError(f"--query {text!r} must be class, mean, or SECONDS,HZ as in 1.2,500.") from None


def _head_number(text: str) -> int | None:
    if text == MEAN_HEAD:
        return None
    if not text.isdecimal():
        raise ConfigError(f"--head {text!r} must be a number of at least 0, or {MEAN_HEAD}.")
    return int(text)
