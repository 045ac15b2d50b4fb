"""Share of attention on added noise, compared with the same tokens of the clean clip and with chance.

It tests the claim that differential attention cancels noise. Even attention gives a ratio of 1; a mechanism that
cancels noise has a smaller ratio with noise than the same tokens have in the clean clip.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor
from tqdm import tqdm

from asda_core.audio.reading import read_audio
from asda_core.catalog import Catalog
from asda_core.errors import AudioError, ConfigError, first_reasons
from asda_core.inference.attention_maps import LayerMaps, attention_maps
from asda_hear.looking.clip import OpenModel, input_features, open_model, read_excerpt
from asda_hear.looking.measures import attention_share, query_mean, token_mask
from asda_hear.looking.noise import WHITE, NoisyExcerpt, add_noise, draw_noise

MapMeasure = Literal["map 1", "map 2", "difference, net", "difference, absolute"]
QueryKind = Literal["all", "class token"]
CLEAN = "clean"
"""Condition without added noise."""
ALL_LAYERS = "mean"
"""Value of `layer` for the mean over the layers."""
SEED_STRIDE = 1_000_003
"""Distance between the seeds of two runs, so that their clips share no draws. A prime above any number of clips."""

ConditionKey = tuple[str, float, MapMeasure, QueryKind, int | str]
"""Condition, signal-to-noise ratio, what, queries, layer."""
Shares = dict[ConditionKey, tuple[float, float]]
"""Share and chance for one clip."""


@dataclass(frozen=True)
class NoiseConfig:
    """Settings of the measurement of attention on noise.

    Attributes:
        snr_db: signal-to-noise ratios, in dB.
        noise: "white", or an audio file.
        clips: maximum number of usable files, drawn from all; None for all.
        seed: of that draw, of the noise and of the time steps to which it is added.
    """

    snr_db: tuple[float, ...] = (10.0, 0.0)
    noise: str = WHITE
    clips: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.snr_db or not all(abs(each) < float("inf") for each in self.snr_db):
            raise ConfigError(f"snr_db must be one or more finite numbers, not {self.snr_db}.")
        if len(set(self.snr_db)) < len(self.snr_db):
            raise ConfigError(f"snr_db has duplicates: {self.snr_db}.")
        if self.clips is not None and self.clips < 1:
            raise ConfigError(f"clips must be at least 1, not {self.clips}.")
        if self.seed < 0:
            raise ConfigError(f"seed must not be negative, not {self.seed}.")


@dataclass(frozen=True)
class NoiseRow:
    """One measurement and its conditions.

    Attributes:
        condition: "clean", or the ratio, as in "10 dB".
        snr_db: ratio at which the noise patches were found; a clean row uses the same patches without the noise.
        what: the map; for a signed difference the net share, or that of its absolute values.
        queries: "all" or "class token".
        layer: a number from 0, or "mean" for the mean over layers.
        share: share of the attention that falls on the noise patches, mean over clips.
        chance: share of the tokens that are noise patches, mean over clips.
        ratio: share / chance.
        ratios: share / chance of every clip.
        clips: their file names, in the same order.
        mixer: of the model.
    """

    condition: str
    snr_db: float
    what: MapMeasure
    queries: QueryKind
    layer: int | str
    share: float
    chance: float
    ratio: float
    ratios: tuple[float, ...]
    clips: tuple[str, ...]
    mixer: str = ""


@dataclass(frozen=True)
class NoiseResult:
    """All rows of a model, the number of clips used, and why others were skipped."""

    rows: list[NoiseRow]
    num_clips: int
    skipped: tuple[str, ...] = field(default=())


def measure_noise(
    model: str | Path,
    files: Sequence[str | Path],
    config: NoiseConfig,
    progress: bool = True,
    catalog: Catalog | None = None,
) -> list[NoiseRow]:
    """Open a model and measure it; files that cannot be used are reported on stderr.

    Args:
        model: checkpoint, run folder or config.
        files: audio files.
        config: the noise, and the number of clips.
        progress: whether to show a progress bar.
        catalog: plugins to use; by default those installed.

    Raises:
        AudioError: no file can be used.
        CheckpointError, ConfigError: the model cannot be used, or has no maps.
    """
    result = noise_attention(open_model(model, catalog), [Path(file) for file in files], config, progress)
    for reason in result.skipped:
        print(f"skipped: {reason}", file=sys.stderr)
    if result.skipped:
        print(f"{result.num_clips} clips used, {len(result.skipped)} skipped.", file=sys.stderr)
    return result.rows


def noise_attention(
    model: OpenModel, files: Sequence[Path], config: NoiseConfig, progress: bool = False
) -> NoiseResult:
    """Measure the share of attention on noise, for every ratio, map, layer and kind of query.

    Raises:
        AudioError: no file can be used, or the noise file cannot.
        ConfigError: the mixer exposes no maps, or the model's features are not mel bands.

    **Differs**: no published measure of this kind is known to us; Ye et al. 2025 (table 3) measure how much attention
    of a language model falls on an answer and on the text around it.
    """
    if config.noise != WHITE:
        read_audio(config.noise, model.sample_rate)  # fail here rather than for every clip
    generator = torch.Generator().manual_seed(config.seed)
    order = torch.randperm(len(files), generator=generator).tolist()
    limit = len(files) if config.clips is None else config.clips
    measured: dict[int, Shares] = {}
    skipped: list[str] = []
    with tqdm(total=min(limit, len(files)), disable=not progress, unit="clip", desc=model.name) as bar:
        for number in order:
            if len(measured) == limit:
                break
            try:
                measured[number] = _measure_file(model, files[number], config, number)
                bar.update()
            except AudioError as error:
                skipped.append(str(error) if str(files[number]) in str(error) else f"{files[number]}: {error}")
    if not measured:
        raise AudioError(f"none of {len(files)} audio files can be used: {first_reasons(skipped) or 'none given'}")
    names = [file.name for file in files]
    by_name = {
        names[number]
        if names.count(names[number]) == 1
        else f"{files[number].parent.name}/{names[number]} ({number})": shares
        for number, shares in measured.items()
    }
    return NoiseResult(_rows(by_name, model.encoder.config.mixer.name), len(measured), tuple(skipped))


def main_rows(rows: Sequence[NoiseRow]) -> list[NoiseRow]:
    """The rows for the map that the model uses: |difference|, or map 1 if there is no second; mean over layers."""
    used = "difference, absolute" if any(row.what == "difference, absolute" for row in rows) else "map 1"
    return [row for row in rows if (row.what, row.queries, row.layer) == (used, "all", ALL_LAYERS)]


def layer_shares(
    layer: LayerMaps, noise_patches: Bool[Tensor, " patches"], unpadded_patches: Bool[Tensor, " patches"]
) -> Iterator[tuple[MapMeasure, QueryKind, float, float]]:
    """Yield (what, queries, share, chance) of one layer; class tokens are counted, padding is not.

    Shares are relative to the counted tokens, so that even attention has a ratio of 1 in short clips too.
    """
    maps, layout = layer.maps, layer.layout
    noise = token_mask(layout, noise_patches & unpadded_patches, class_tokens=False)
    counted_tokens = token_mask(layout, unpadded_patches, class_tokens=True) & layout.valid
    chance = float(noise.sum() / counted_tokens.sum())
    by_map: dict[MapMeasure, Tensor] = {"map 1": maps.first}
    if maps.second is not None:
        difference = maps.difference
        by_map |= {"map 2": maps.second, "difference, net": difference, "difference, absolute": difference.abs()}
    query_masks: dict[QueryKind, Tensor] = {"all": counted_tokens}
    if layout.class_column is not None:
        query_masks["class token"] = layout.is_class
    for what, attention in by_map.items():
        shares = attention_share(attention, noise, counted_tokens)
        for queries, rows in query_masks.items():
            yield what, queries, query_mean(shares, rows), chance


def _measure_file(model: OpenModel, file: Path, config: NoiseConfig, number: int) -> Shares:
    """Shares and chances of a clip under every condition; ratios at which the noise is nowhere louder are excluded."""
    excerpt = read_excerpt(file, model)
    noise = draw_noise(model, excerpt, config.noise, config.seed * SEED_STRIDE + number)
    clean = attention_maps(model.encoder, input_features(model, excerpt))
    measured: Shares = {}
    for snr_db in config.snr_db:
        noisy = add_noise(model, excerpt, noise, snr_db)
        if not noisy.noise_patches.any():
            continue
        with_noise = attention_maps(model.encoder, input_features(model, noisy.excerpt))
        measured |= _measure(CLEAN, clean, noisy) | _measure(f"{snr_db:g} dB", with_noise, noisy)
    if not measured:
        raise AudioError(f"the noise is not louder than the clip in any patch, at {config.snr_db} dB.")
    return measured


def _measure(condition: str, layers: Sequence[LayerMaps], noisy: NoisyExcerpt) -> Shares:
    """Shares of every layer, and their mean over the layers that have these queries."""
    measured: Shares = {}
    over_layers: dict[tuple[MapMeasure, QueryKind], list[tuple[float, float]]] = {}
    for number, layer in enumerate(layers):
        for what, queries, share, chance in layer_shares(layer, noisy.noise_patches, noisy.unpadded_patches):
            measured[condition, noisy.snr_db, what, queries, number] = (share, chance)
            over_layers.setdefault((what, queries), []).append((share, chance))
    for (what, queries), pairs in over_layers.items():
        mean = (fmean(share for share, _ in pairs), fmean(chance for _, chance in pairs))
        measured[condition, noisy.snr_db, what, queries, ALL_LAYERS] = mean
    return measured


def _rows(measured: Mapping[str, Shares], mixer: str) -> list[NoiseRow]:
    """Means over the clips, with a row for every key that any clip has."""
    keys = list(dict.fromkeys(key for clip in measured.values() for key in clip))
    return [_row(key, {name: clip[key] for name, clip in measured.items() if key in clip}, mixer) for key in keys]


def _row(key: ConditionKey, by_clip: Mapping[str, tuple[float, float]], mixer: str) -> NoiseRow:
    condition, snr_db, what, queries, layer = key
    share, chance = (fmean(values) for values in zip(*by_clip.values(), strict=True))
    ratios = tuple(share / chance for share, chance in by_clip.values())
    return NoiseRow(
        condition, snr_db, what, queries, layer, share, chance, share / chance, ratios, tuple(by_clip), mixer
    )
