"""View of one model on one excerpt: spectrogram, maps, and the measures of every layer."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from asda_core.errors import ConfigError
from asda_core.inference.attention_maps import LayerMaps, attention_maps
from asda_core.log_mel import LogMel
from asda_hear.looking.clip import Excerpt, OpenModel, input_features, mel_energies, silent_patches
from asda_hear.looking.measures import attention_share, distance, entropy, query_mean, token_mask
from asda_hear.looking.noise import DECIBELS, WHITE, NoisyExcerpt, add_noise, draw_noise
from asda_hear.looking.noise_attention import layer_shares
from asda_hear.looking.patch_positions import PatchPositions, patch_positions

MapKind = Literal["map 1", "map 2", "difference"]
MeasureRow = dict[str, float | str]
"""A row of a table: column heading -> value."""


@dataclass(frozen=True)
class Query:
    """The query whose attention is shown.

    Attributes:
        kind: "class" for the class token; "mean" over all tokens; "patch"; "default" for the class token if there is
            one, otherwise the mean.
        seconds, hertz: position of the patch, with times as in the file.
    """

    kind: Literal["default", "class", "mean", "patch"] = "default"
    seconds: float = 0.0
    hertz: float = 0.0


@dataclass(frozen=True)
class HeadChoice:
    """A layer and a head; None selects the last layer, and the mean over the heads."""

    layer: int | None = None
    head: int | None = None


@dataclass(frozen=True)
class AddedNoise:
    """Noise added to half of the time steps: its signal-to-noise ratio in dB, "white" or a file, and the seed."""

    snr_db: float
    source: str | Path = WHITE
    seed: int = 0


@dataclass(frozen=True)
class View:
    """One model on one excerpt.

    Attributes:
        model: the model.
        excerpt: its input, including the noise if any.
        positions: positions of its patches.
        spectrogram: (bins, frames) in dB if the bins are mel bands, otherwise the features themselves.
        layers: maps and layout of each layer.
        silent: patches of silence; None if the bins are not mel bands.
        noisy: the noise, if any; `clean_layers` then holds the maps of the clip without it.
    """

    model: OpenModel
    excerpt: Excerpt
    positions: PatchPositions
    spectrogram: np.ndarray
    layers: list[LayerMaps]
    silent: Bool[Tensor, " patches"] | None
    noisy: NoisyExcerpt | None
    clean_layers: list[LayerMaps] = field(default_factory=list)


@dataclass(frozen=True)
class Panel:
    """A map as it is drawn.

    Attributes:
        values: (bands, time steps) attention of the query on each patch, times the number of tokens: 1 is even.
        class_attention: attention that falls on class tokens.
        weight: lambda of the query, if there is one.
        query: position of its patch, as (time step, band); None for other queries.
        description: description of the query.
    """

    values: np.ndarray
    class_attention: float
    weight: float | None
    query: tuple[int, int] | None
    description: str


def make_view(model: OpenModel, excerpt: Excerpt, noise: AddedNoise | None = None) -> View:
    """Run the model on an excerpt and return its maps, spectrogram and silent patches.

    Raises:
        ConfigError: the mixer exposes no maps, or noise is requested and the model's features are not mel bands.
        AudioError: noise is requested on a silent or very short clip.
    """
    noisy, clean = None, []
    if noise is not None:
        clean = attention_maps(model.encoder, input_features(model, excerpt))
        drawn_noise = draw_noise(model, excerpt, noise.source, noise.seed)
        noisy = add_noise(model, excerpt, drawn_noise, noise.snr_db)
        excerpt = noisy.excerpt
    features = input_features(model, excerpt)
    layers = attention_maps(model.encoder, features)
    positions = patch_positions(model, excerpt, features.shape[2])
    spectrogram, silent = features[0].numpy(), None
    if isinstance(model.front_end, LogMel):
        silent = silent_patches(model, excerpt)
        energies = mel_energies(model, excerpt.audio)[:, : features.shape[2]]
        spectrogram = DECIBELS * np.log10(energies.numpy())
    return View(model, excerpt, positions, spectrogram, layers, silent, noisy, clean)


def layer_index(view: View, choice: HeadChoice) -> int:
    """The number of the chosen layer.

    Raises:
        ConfigError: the model has no such layer, or the layer no such head.
    """
    depth = len(view.layers)
    layer = depth - 1 if choice.layer is None else choice.layer
    if not 0 <= layer < depth:
        raise ConfigError(f"--layer {layer}: {view.model.name} has the layers 0 to {depth - 1}.")
    heads = view.layers[layer].maps.first.shape[1]
    if choice.head is not None and not 0 <= choice.head < heads:
        raise ConfigError(f"--head {choice.head}: layer {layer} of {view.model.name} has the heads 0 to {heads - 1}.")
    return layer


def has_second_map(view: View, choice: HeadChoice) -> bool:
    """Whether the chosen layer has a second map to subtract."""
    return view.layers[layer_index(view, choice)].maps.second is not None


def make_panel(view: View, choice: HeadChoice, query: Query, kind: MapKind) -> Panel | None:
    """A map of a layer and head, arranged on the grid; None if the mixer has no such map.

    Raises:
        ConfigError: the layer, head or query does not exist.
    """
    layer = view.layers[layer_index(view, choice)]
    maps, layout = layer.maps, layer.layout
    if kind != "map 1" and maps.second is None:
        return None
    attention_map = maps.difference if kind == "difference" else (maps.second if kind == "map 2" else maps.first)
    assert attention_map is not None, "checked above"
    heads = slice(None) if choice.head is None else slice(choice.head, choice.head + 1)
    rows, place, description = _queries(view, layer, query)
    attention = attention_map[0, heads][:, rows].mean(dim=(0, 1))
    weight = None
    if maps.weight is not None:
        weights = maps.weight.expand(1, *attention_map.shape[1:3], 1)
        weight = float(weights[0, heads][:, rows].mean())
    patches = ~layout.is_class[0]
    values = torch.zeros(view.positions.grid[0] * view.positions.grid[1])
    values[layout.index[0, patches]] = attention[patches] * len(attention)
    grid = values.reshape(view.positions.grid).T.numpy()
    return Panel(grid, float(attention[~patches].sum()), weight, place, description)


def _queries(view: View, layer: LayerMaps, query: Query) -> tuple[Bool[Tensor, " n"], tuple[int, int] | None, str]:
    """Mask of the query tokens, the position of a patch query, and their description."""
    layout = layer.layout
    has_class = layout.class_column is not None
    if query.kind == "patch":
        index = view.positions.patch_at(query.seconds, query.hertz)
        step, band = divmod(index, view.positions.grid[1])
        return layout.index[0] == index, (step, band), f"patch at {query.seconds:g} s, {query.hertz:g} Hz"
    if query.kind == "class" and not has_class:
        raise ConfigError(
            f"--query class: there is no class token in this layer of {view.model.name}; use a patch, as in "
            "--query 1.0,500, or --query mean."
        )
    if query.kind == "class" or (query.kind == "default" and has_class):
        return layout.is_class[0], None, "class token"
    return layout.valid[0], None, "mean of all tokens"


def layer_measures(view: View) -> list[MeasureRow]:
    """One row per layer and map, with means over heads and queries; the last row is for even attention."""
    rows: list[MeasureRow] = []
    for number, layer in enumerate(view.layers):
        maps, layer_column = layer.maps, MeasureRow(layer=str(number))
        rows.append(layer_column | {"map": "map 1"} | _of_map(view, maps.first, layer))
        if maps.second is not None and maps.weight is not None:
            weight = float(maps.weight.mean())
            rows.append(layer_column | {"map": "map 2", "lambda": weight} | _of_map(view, maps.second, layer))
            rows.append(
                layer_column | {"map": "difference, absolute"} | _of_map(view, maps.difference, layer, softmax=False)
            )
    layer = view.layers[-1]
    tokens = layer.layout.index.shape[1]
    even = torch.full((1, 1, tokens, tokens), 1 / tokens)
    return [*rows, MeasureRow(layer="", map="even attention") | _of_map(view, even, layer)]


def noise_measures(view: View) -> list[MeasureRow]:
    """One row per layer and map: share on noise of all queries, with and without the noise; empty if none was added."""
    noisy, rows = view.noisy, list[MeasureRow]()
    if noisy is None or not noisy.noise_patches.any():
        return rows
    for number, (layer, clean) in enumerate(zip(view.layers, view.clean_layers, strict=True)):
        pairs = zip(
            *(layer_shares(each, noisy.noise_patches, noisy.unpadded_patches) for each in (layer, clean)), strict=True
        )
        for (what, queries, share, chance), (_, _, clean_share, _) in pairs:
            if queries == "all":
                rows.append({"layer": str(number), "map": what, "chance": chance})
                rows[-1] |= {"share": share, "share / chance": share / chance}
                rows[-1] |= {"share, clean clip": clean_share, "clean share / chance": clean_share / chance}
    return rows


def _of_map(view: View, attention: Tensor, layer: LayerMaps, softmax: bool = True) -> MeasureRow:
    """Numbers of one map; a signed map is measured by its absolute values, and has no entropy."""
    layout, row = layer.layout, dict[str, float | str]()
    if softmax:
        bits = query_mean(entropy(attention), layout.valid)
        max_bits = math.log2(layout.index.shape[1]) or 1.0  # log2 of a single token is 0
        row |= {"entropy (bits)": bits, "entropy / log2 N": bits / max_bits}
    along_time, along_frequency = (query_mean(each, layout.valid) for each in distance(attention, layout))
    row |= {"distance (s)": along_time * view.positions.step_seconds, "distance (bands)": along_frequency}
    if view.silent is not None:
        silent = token_mask(layout, view.silent, class_tokens=False)
        row["share on silence"] = query_mean(attention_share(attention.abs(), silent), layout.valid)
    return row
