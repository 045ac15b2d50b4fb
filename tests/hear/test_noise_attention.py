"""Attention on added noise: the noise is as loud, as placed and as counted as it says."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from asda_core.assemble import build_parts
from asda_core.catalog import Catalog
from asda_core.config import ClassTokenConfig, DataConfig, EncoderConfig, PluginChoice, RunConfig
from asda_core.contracts import FrontEndContext
from asda_core.errors import AudioError, ConfigError
from asda_core.inference.attention_maps import LayerMaps
from asda_core.layout import TokenLayout
from asda_core.model.attention import AttentionMaps
from asda_core.model.patches import patch_values
from asda_hear.looking.clip import OpenModel, input_features, make_excerpt, patch_energies
from asda_hear.looking.measures import attention_share, distance, entropy, query_mean
from asda_hear.looking.noise import add_noise, draw_noise
from asda_hear.looking.noise_attention import (
    NoiseConfig,
    NoiseRow,
    layer_shares,
    main_rows,
    measure_noise,
    noise_attention,
)

RATE = 16_000
SECONDS = 1.295  # 128 frames: 8 time steps of 2,560 samples, 8 bands


def model_of(catalog: Catalog, mixer: str = "differential", **encoder: Any) -> OpenModel:
    config = EncoderConfig(**{"dim": 32, "depth": 2, "num_heads": 2, "mixer": PluginChoice(mixer), **encoder})
    run = RunConfig(encoder=config, data=DataConfig(clip_seconds=SECONDS))
    parts = build_parts(catalog, run)
    return OpenModel("tiny", parts.front_end.eval(), parts.encoder.eval(), SECONDS)


def tone(seconds: float = SECONDS) -> Tensor:
    time = torch.arange(round(seconds * RATE)) / RATE
    return 0.3 * (2 * math.pi * 440 * time).sin()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three tones of which one is short, silence, and something that is no audio."""
    for number, seconds in enumerate((2.0, 1.4, 0.7)):
        soundfile.write(tmp_path / f"tone{number}.wav", tone(seconds).numpy(), RATE)
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    (tmp_path / "text.wav").write_text("no audio")
    return tmp_path


@pytest.mark.parametrize("snr_db", [20.0, 0.0, -5.0])
@pytest.mark.parametrize("seconds", [SECONDS, 0.9])
def test_the_noise_is_as_loud_as_it_says(catalog: Catalog, snr_db: float, seconds: float) -> None:
    model = model_of(catalog)
    stretch = make_excerpt(tone(seconds), model)
    noise = draw_noise(model, stretch, "white", seed=0)
    noisy = add_noise(model, stretch, noise, snr_db)
    added = noisy.excerpt.audio - stretch.audio
    there = noise.gate.bool()
    ratio = 10 * math.log10(stretch.unpadded_audio.square().mean() / added[there].square().mean())
    assert ratio == pytest.approx(snr_db, abs=0.25)  # of what was drawn, part is heard
    assert added[~there].count_nonzero() == 0
    assert added[stretch.num_file_samples :].count_nonzero() == 0


@pytest.mark.parametrize("seed", range(4))
def test_clean_steps_stay_exactly_clean(catalog: Catalog, seed: int) -> None:
    """Half of the steps are noisy in all of their patches, and not one value of the other half has changed."""
    model = model_of(catalog)
    stretch = make_excerpt(tone(), model)
    noise = draw_noise(model, stretch, "white", seed)
    assert noise.steps.sum() == 4
    noisy = add_noise(model, stretch, noise, 0.0)
    clean, changed = (input_features(model, each)[0].unflatten(1, (8, 16)) for each in (stretch, noisy.excerpt))
    for step, is_noisy in enumerate(noise.steps.tolist()):
        assert torch.equal(clean[:, step], changed[:, step]) != is_noisy
    patches = noisy.noise_patches.reshape(8, 8)
    assert not patches[~noise.steps].any()
    louder = patches[noise.steps].all(dim=0).tolist()
    assert louder == [band != 1 for band in range(8)], "noise is the louder one but in the band of the tone at 440 Hz"


@pytest.mark.parametrize("stride", [4, 10])
def test_clean_steps_stay_exactly_clean_where_patches_overlap(catalog: Catalog, stride: int) -> None:
    model = model_of(catalog, stride_frames=stride)
    excerpt = make_excerpt(tone(), model)
    noise = draw_noise(model, excerpt, "white", seed=0)
    noisy = add_noise(model, excerpt, noise, 0.0)
    clean, changed = (
        patch_values(input_features(model, each), model.encoder.config)[0].unflatten(0, (len(noise.steps), -1))
        for each in (excerpt, noisy.excerpt)
    )
    differs = (clean != changed).flatten(1).any(dim=1)
    assert differs.any()
    assert not (differs & ~noise.steps).any()
    assert not noisy.noise_patches.unflatten(0, (len(noise.steps), -1))[~noise.steps].any()


def test_patches_that_overlap_too_far_leave_no_noise(catalog: Catalog) -> None:
    model = model_of(catalog, stride_frames=1)
    with pytest.raises(AudioError, match=r"patches overlap so far .* no noise is left"):
        draw_noise(model, make_excerpt(tone(), model), "white", seed=1)  # the first step is clean


def test_noise_patches_are_those_where_noise_is_louder(catalog: Catalog) -> None:
    model = model_of(catalog)
    stretch = make_excerpt(tone(), model)
    noise = draw_noise(model, stretch, "white", 1)
    noisy = add_noise(model, stretch, noise, 10.0)
    added = noisy.excerpt.audio - stretch.audio
    louder = patch_energies(model, added) > 1.01 * patch_energies(model, stretch.audio)
    assert 0 < louder.sum() < 64
    assert (noisy.noise_patches | ~louder).all()
    faint = add_noise(model, stretch, noise, 200.0)
    assert not faint.noise_patches.any(), "what the model cannot hear is no noise"


def test_short_clips_count_their_sound_alone(catalog: Catalog) -> None:
    model = model_of(catalog)
    stretch = make_excerpt(tone(0.7), model)  # 11,200 samples begin 5 steps of 2,560
    for seed in range(5):
        noise = draw_noise(model, stretch, "white", seed)
        assert noise.steps.sum() == 2
        assert not noise.steps[5:].any()
    assert (
        add_noise(model, stretch, noise, 0.0).unpadded_patches.reshape(8, 8).all(1).tolist() == [True] * 5 + [False] * 3
    )


def test_noise_from_a_file(catalog: Catalog, tmp_path: Path) -> None:
    model, file = model_of(catalog), tmp_path / "hum.wav"
    soundfile.write(file, tone(0.1).numpy(), RATE)  # shorter than the clip: repeated
    stretch = make_excerpt(torch.randn(20_720) * 0.1, model)
    short = draw_noise(model, stretch, file, 0)
    assert torch.equal(short.audio[:1600], short.audio[1600:3200])
    soundfile.write(file, tone(3.0).numpy(), RATE)
    one, same, other = (draw_noise(model, stretch, file, seed).audio for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_no_ratio_without_sound(catalog: Catalog) -> None:
    model = model_of(catalog)
    silent = make_excerpt(torch.zeros(RATE), model)
    with pytest.raises(AudioError, match="the clip is digital silence"):
        add_noise(model, silent, draw_noise(model, silent, "white", 0), 0.0)
    short = make_excerpt(torch.ones(3), model)
    with pytest.raises(AudioError, match="fewer than two time steps"):
        draw_noise(model, short, "white", 0)
    with pytest.raises(ConfigError, match="must be a finite number of dB"):
        add_noise(model, make_excerpt(tone(), model), draw_noise(model, silent, "white", 0), math.nan)
    for too_loud in (-1000.0, -10_000.0):
        with pytest.raises(ConfigError, match="exceed the range of float32"):
            add_noise(model, make_excerpt(tone(), model), draw_noise(model, silent, "white", 0), too_loud)


def test_measures_by_hand() -> None:
    layout = TokenLayout.full(1, (2, 2)).with_class_token(0)  # class, (0, 0), (0, 1), (1, 0), (1, 1)
    attention = torch.full((1, 1, 5, 5), 0.2)
    attention[0, 0, 1] = torch.tensor([0.5, 0.0, 0.0, 0.0, 0.5])
    attention[0, 0, 2] = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0])
    assert entropy(attention)[0, 0].tolist() == pytest.approx([math.log2(5), 1.0, 0.0, math.log2(5), math.log2(5)])
    time, band = distance(attention, layout)
    assert torch.isnan(time[0, 0, 0])
    assert time[0, 0, 1:].tolist() == pytest.approx([1.0, 0.0, 0.5, 0.5])
    assert band[0, 0, 1:].tolist() == pytest.approx([1.0, 0.0, 0.5, 0.5])
    assert query_mean(time, layout.valid) == pytest.approx(0.5)
    chosen = torch.tensor([[False, False, False, False, True]])
    assert attention_share(attention, chosen)[0, 0].tolist() == pytest.approx([0.2, 0.5, 0.0, 0.2, 0.2])
    counted = torch.tensor([[False, False, True, True, True]])
    shares = attention_share(attention, chosen, counted)[0, 0]
    assert shares.tolist() == pytest.approx([1 / 3, 1.0, 0.0, 1 / 3, 1 / 3])
    assert torch.isnan(attention_share(torch.zeros(1, 1, 5, 5), chosen)).all()


def test_shares_by_hand() -> None:
    """A first map that is even, a second one that looks at the noise alone, and lambda one half."""
    layout = TokenLayout.full(1, (3, 1)).with_class_token(0)
    noise, counted = torch.tensor([False, True, False]), torch.tensor([True, True, True])
    first, second = torch.full((1, 1, 4, 4), 0.25), torch.zeros(1, 1, 4, 4)
    second[..., 2] = 1.0
    layer = LayerMaps(AttentionMaps(first, second, torch.tensor(0.5)), layout)
    found = {(what, queries): (share, chance) for what, queries, share, chance in layer_shares(layer, noise, counted)}
    assert len(found) == 8
    assert {chance for _, chance in found.values()} == {0.25}
    for queries in ("all", "class token"):
        assert found["map 1", queries][0] == pytest.approx(0.25)
        assert found["map 2", queries][0] == pytest.approx(1.0)
        assert found["difference, net", queries][0] == pytest.approx((0.25 - 0.5) / (1 - 0.5))
        assert found["difference, absolute", queries][0] == pytest.approx(0.25 / (0.75 + 0.25))


@pytest.mark.parametrize("mixer", ["standard", "differential", "dint"])
def test_even_attention_has_a_ratio_of_one(catalog: Catalog, folder: Path, mixer: str) -> None:
    """Also in the clip that is followed by silence, with class tokens and without."""
    model = model_of(catalog, mixer)
    for name, parameter in model.encoder.named_parameters():
        if ".qk" in name:
            parameter.data.zero_()
    files = [folder / f"tone{number}.wav" for number in range(3)]
    rows = noise_attention(model, files, NoiseConfig()).rows
    whats = {"map 1"} if mixer == "standard" else {"map 1", "map 2", "difference, net", "difference, absolute"}
    assert {row.what for row in rows} == whats
    for row in rows:
        assert row.ratio == pytest.approx(1.0, abs=1e-4), row
        assert len(row.ratios) == 3


def by_key(rows: list[NoiseRow]) -> dict[tuple[Any, ...], NoiseRow]:
    found = {(row.condition, row.snr_db, row.what, row.queries, row.layer): row for row in rows}
    assert len(found) == len(rows)
    return found


def test_rows(catalog: Catalog, folder: Path) -> None:
    """Every condition beside the same tokens of the clean clip; layers and their mean; a seed decides everything."""
    model = model_of(catalog)
    files = sorted(folder.glob("*.wav"))
    result = noise_attention(model, files, NoiseConfig((10.0, -5.0), seed=3))
    assert result.num_clips == 3
    assert sorted(reason.split("/")[-1].split(".wav")[0] for reason in result.skipped) == ["silent", "text"]
    rows = by_key(result.rows)
    assert len(rows) == 2 * 2 * 4 * 2 * 3  # ratios, with and without, what, queries, layers and mean
    for snr_db, condition in ((10.0, "10 dB"), (-5.0, "-5 dB")):
        noisy, clean = (rows[each, snr_db, "map 1", "all", "mean"] for each in (condition, "clean"))
        assert noisy.chance == clean.chance
        assert noisy.share != clean.share
        assert noisy.ratio == pytest.approx(noisy.share / noisy.chance)
        layers = [rows[condition, snr_db, "map 1", "all", layer].share for layer in (0, 1)]
        assert noisy.share == pytest.approx(sum(layers) / 2)
    assert rows["-5 dB", -5.0, "map 1", "all", 0].chance > rows["10 dB", 10.0, "map 1", "all", 0].chance
    assert noise_attention(model, files, NoiseConfig((10.0, -5.0), seed=3)).rows == result.rows
    assert noise_attention(model, files, NoiseConfig((10.0, -5.0), seed=4)).rows != result.rows
    limited = noise_attention(model, files, NoiseConfig(clips=2))
    assert limited.num_clips == 2
    assert all(len(row.ratios) == 2 for row in limited.rows)


def test_the_main_number(catalog: Catalog, folder: Path) -> None:
    files = [folder / "tone0.wav"]
    for mixer, what in (("standard", "map 1"), ("differential", "difference, absolute")):
        rows = main_rows(noise_attention(model_of(catalog, mixer), files, NoiseConfig()).rows)
        assert [row.condition for row in rows] == ["clean", "10 dB", "clean", "0 dB"]
        assert {(row.what, row.queries, row.layer, row.mixer) for row in rows} == {(what, "all", "mean", mixer)}
        assert [row.snr_db for row in rows] == [10.0, 10.0, 0.0, 0.0]


def test_without_class_token_and_with_a_late_one(catalog: Catalog, folder: Path) -> None:
    files = [folder / "tone0.wav"]
    none = model_of(catalog, class_token=ClassTokenConfig(position="none"))
    assert {row.queries for row in noise_attention(none, files, NoiseConfig()).rows} == {"all"}
    late = model_of(catalog, class_token=ClassTokenConfig(join_layer=1))
    rows = noise_attention(late, files, NoiseConfig()).rows
    assert {row.layer for row in rows if row.queries == "class token"} == {1, "mean"}


def test_overlapping_patches(catalog: Catalog, folder: Path) -> None:
    model = model_of(catalog, stride_frames=8, stride_bins=8)
    result = noise_attention(model, [folder / "tone0.wav"], NoiseConfig())
    assert all(0 < row.chance < 0.8 for row in result.rows)


def test_what_cannot_be_measured(catalog: Catalog, folder: Path) -> None:
    model, tones = model_of(catalog), [folder / "tone0.wav"]
    with pytest.raises(AudioError, match=r"none of 2 audio files can be used: .*silent.wav"):
        noise_attention(model, [folder / "silent.wav", folder / "text.wav"], NoiseConfig())
    with pytest.raises(AudioError, match=r"cannot read .*nothing.wav"):
        noise_attention(model, tones, NoiseConfig(noise=str(folder / "nothing.wav")))
    with pytest.raises(ConfigError, match="has no attention maps"):
        noise_attention(model_of(catalog, "two_simplicial"), tones, NoiseConfig())
    mfcc = catalog.find("front end", "mfcc").spec
    deaf = replace(model, front_end=mfcc.build(mfcc.config(), FrontEndContext(RATE)))
    with pytest.raises(ConfigError, match="uses the front end Mfcc, whose bins are not mel bands"):
        noise_attention(deaf, tones, NoiseConfig())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"snr_db": ()}, "one or more finite numbers"),
        ({"snr_db": (math.nan,)}, "one or more finite numbers"),
        ({"snr_db": (1.0, 1.0)}, "duplicates"),
        ({"clips": 0}, "at least 1"),
        ({"seed": -1}, "not be negative"),
    ],
)
def test_settings_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NoiseConfig(**options)


def test_in_one_call(catalog: Catalog, folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text("encoder: {dim: 32, depth: 2, num_heads: 2, mixer: standard}\ndata: {clip_seconds: 1.295}\n")
    rows = measure_noise(str(config), sorted(folder.glob("*.wav")), NoiseConfig((0.0,)), False, catalog)
    assert {row.condition for row in rows} == {"clean", "0 dB"}
    told = capsys.readouterr().err
    assert "silent.wav" in told
    assert "text.wav" in told
    assert "3 clips used, 2 skipped" in told
