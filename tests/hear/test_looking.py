"""`asda-hear look`: what is drawn and written is what the model attended, and bad input is told of."""

import argparse
import math
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from matplotlib.image import imread

from asda_core.assemble import build_parts
from asda_core.catalog import Catalog
from asda_core.checkpoint import checkpoint_metadata, model_tensors, write_model
from asda_core.config import ClassTokenConfig, PluginChoice, RunConfig
from asda_core.config_io import parse
from asda_core.contracts import FrontEndContext
from asda_core.errors import AsdaError, AudioError, ConfigError
from asda_core.inference.attention_maps import attention_maps
from asda_core.system.command_line import import_function
from asda_hear.arguments import add_look
from asda_hear.looking.clip import OpenModel, input_features, make_excerpt, mel_energies, read_excerpt, silent_patches
from asda_hear.looking.commands import open_models, parse_query
from asda_hear.looking.drawing import attention_figure
from asda_hear.looking.page import Inspection, measures_markdown
from asda_hear.looking.patch_positions import hz_to_mel
from asda_hear.looking.view import (
    AddedNoise,
    HeadChoice,
    Query,
    View,
    layer_measures,
    make_panel,
    make_view,
    noise_measures,
)

RATE = 16_000
SECONDS = 1.295  # 128 frames: 8 time steps of 0.16 s, 8 bands
PLAIN: dict[str, Any] = {"dim": 32, "depth": 2, "num_heads": 2}


def run_config(mixer: str, **encoder: Any) -> RunConfig:
    plain = {"encoder": {**PLAIN, "mixer": mixer}, "data": {"clip_seconds": SECONDS}}
    config = parse(RunConfig, plain)
    return replace(config, encoder=replace(config.encoder, **encoder))


def model_of(catalog: Catalog, mixer: str = "differential", **encoder: Any) -> OpenModel:
    parts = build_parts(catalog, run_config(mixer, **encoder))
    for parameter in parts.encoder.parameters():
        if parameter.ndim == 2:
            parameter.data *= 8  # small weights give even maps
    return OpenModel(mixer, parts.front_end.eval(), parts.encoder.eval(), SECONDS)


def sweep(seconds: float = 2.0) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    return 0.3 * np.sin(2 * np.pi * (200 + 1500 * time) * time)


def view_of(catalog: Catalog, mixer: str = "differential", noise: AddedNoise | None = None, **encoder: Any) -> View:
    model = model_of(catalog, mixer, **encoder)
    return make_view(model, make_excerpt(torch.from_numpy(sweep()).float(), model, 0.5), noise)


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "sweep.wav", sweep(), RATE)
    return tmp_path / "sweep.wav"


@pytest.fixture
def checkpoint(catalog: Catalog, tmp_path: Path) -> Callable[..., Path]:
    def write(mixer: str, name: str = "") -> Path:
        config = run_config(mixer)
        file = tmp_path / f"{name or mixer}.safetensors"
        file.parent.mkdir(exist_ok=True)
        write_model(file, model_tensors(build_parts(catalog, config), False), checkpoint_metadata(config, catalog, 0))
        return file

    return write


def run(*words: Any) -> None:
    parser = argparse.ArgumentParser()
    add_look(parser)
    parsed = parser.parse_args([str(word) for word in words])
    import_function(parsed.run)(parsed)


class Page(HTMLParser):
    """What a page loads, its pictures, and the cells of its tables."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.cells: list[str] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attrs if name in ("src", "srcset", "href")]
        self.inside = tag in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.cells.append(data)
            self.inside = False


def test_a_page(
    audio: Path, checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two models, everything within one file, the same bytes each time, and the numbers on stdout too."""
    models = [checkpoint("standard"), checkpoint("differential")]
    outs = [tmp_path / "new" / f"{number}.html" for number in range(2)]
    for out in outs:
        run(audio, "--checkpoint", *models, "--snr", 5, "--out", out)
    assert outs[0].read_bytes() == outs[1].read_bytes()
    text = outs[0].read_text()
    page = Page()
    page.feed(text)
    assert len(page.loaded) == 3  # light twice, for the screen and for print, and dark
    assert page.loaded[0] == page.loaded[2] != page.loaded[1]
    assert all(each.startswith("data:image/png;base64,iVBOR") for each in page.loaded)
    assert "url(" not in text
    assert "<script" not in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert "sweep.wav, 0.00 s to 1.28 s, noise at 5 dB" in text
    assert {"entropy (bits)", "distance (s)", "lambda", "share / chance", "even attention"} <= set(page.cells)
    told = capsys.readouterr().out
    assert "| 0 | map 2 | 0.100 |" in told
    assert "differential: attention on noise" in told


def test_names_are_escaped(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    audio = tmp_path / "<b>&$x$.wav"
    soundfile.write(audio, sweep(), RATE)
    run(audio, "--checkpoint", checkpoint("standard"), "--out", tmp_path / "page.html")
    assert "&lt;b&gt;&amp;$x$.wav" in (tmp_path / "page.html").read_text()
    run(audio, "--checkpoint", checkpoint("standard"), "--out", tmp_path / "picture.png")


@pytest.mark.parametrize("mixers", [["differential"], ["standard", "dint"]])
def test_a_picture(audio: Path, checkpoint: Callable[..., Path], tmp_path: Path, mixers: list[str]) -> None:
    out = tmp_path / "picture.png"
    models = [checkpoint(mixer) for mixer in mixers]
    run(audio, "--checkpoint", *models, "--query", "0.5,1000", "--head", 0, "--at", 0.3, "--out", out)
    pixels = imread(out)
    assert min(pixels.shape[:2]) > 400
    assert (pixels[0, 0] == 1).all(), "the paper is white"
    assert len(np.unique(pixels[::8, ::8, :3].reshape(-1, 3), axis=0)) > 100


def test_arrays(audio: Path, checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "maps.npz"
    models = [checkpoint("standard"), checkpoint("standard", "other/standard"), checkpoint("differential")]
    run(audio, "--checkpoint", *models, "--layer", 1, "--at", 0.5, "--out", out)
    with np.load(out) as arrays:
        names = arrays["models"].tolist()
        assert names == [str(models[0]), str(models[1]), "differential"], "files that are called alike keep their paths"
        assert arrays["model2/layer1/first"].shape == (2, 65, 65)
        assert "model0/layer1/second" not in arrays
        assert "model0/layer0/first" not in arrays
        lam = arrays["model2/layer1/weight"]
        wanted = arrays["model2/layer1/first"] - lam * arrays["model2/layer1/second"]
        assert np.allclose(arrays["model2/layer1/difference"], wanted, atol=1e-6)
        assert arrays["model2/layer1/index"].tolist() == [-1, *range(64)]
        assert (arrays["model0/grid"].tolist(), float(arrays["model0/start_seconds"])) == ([8, 8], 0.5)
        assert arrays["model0/spectrogram"].shape == (128, 128)


def test_a_panel_is_the_row_of_the_map(catalog: Catalog) -> None:
    view = view_of(catalog)
    layer = attention_maps(view.model.encoder, input_features(view.model, view.excerpt))[1]
    drawn = make_panel(view, HeadChoice(1, 0), Query("patch", 0.5 + 0.16 * 3 + 0.01, 440.0), "map 2")
    assert drawn is not None
    assert drawn.query == (3, 1)
    row = layer.maps.second[0, 0, 1 + 3 * 8 + 1]  # type: ignore[index]
    assert np.allclose(drawn.values, (row[1:] * 65).reshape(8, 8).T, atol=1e-4)
    assert drawn.class_attention == pytest.approx(float(row[0]), abs=1e-6)
    mean = make_panel(view, HeadChoice(1), Query("mean"), "difference")
    assert mean is not None
    assert mean.weight == pytest.approx(0.1)
    assert np.allclose(mean.values, layer.maps.difference[0].mean((0, 1))[1:].reshape(8, 8).T * 65, atol=1e-4)
    assert mean.values.mean() * 64 / 65 + mean.class_attention == pytest.approx(0.9, abs=1e-4)


@pytest.mark.parametrize("changes", [{"wiring": "paired"}, {"token_order": "frequency"}], ids=str)
def test_patches_are_drawn_where_they_are(catalog: Catalog, changes: dict[str, Any]) -> None:
    """Also where the sequence runs backwards, or along the bands: a query at a patch is that patch."""
    view = view_of(catalog, "standard", **changes)
    layer = view.layers[1]
    drawn = make_panel(view, HeadChoice(1, 1), Query("patch", 0.5 + 0.16 * 5.5, 4000.0), "map 1")
    assert drawn is not None
    assert drawn.query is not None
    step, band = drawn.query
    column = (layer.layout.index[0] == step * 8 + band).nonzero().item()
    wanted = layer.maps.first[0, 1, column, (layer.layout.index[0] == 2 * 8 + 7).nonzero().item()]
    assert drawn.values[7, 2] == pytest.approx(float(wanted) * 65, rel=1e-4)


def test_places(catalog: Catalog) -> None:
    """A tone at a frequency is loudest in the bin, and in the patch, that is said to be there."""
    model = model_of(catalog)
    places = view_of(catalog).positions
    assert (places.grid, places.start_seconds, places.end_seconds) == ((8, 8), 0.5, pytest.approx(1.78))
    for hertz in (600.0, 1000.0, 3000.0, 7000.0):
        time = torch.arange(RATE) / RATE
        loudest = int(mel_energies(model, (2 * math.pi * hertz * time).sin()).mean(1).argmax())
        assert abs(loudest - places.mel_bin(hertz)) <= 1
        assert places.patch_at(0.5, hertz) == loudest // 16
    assert hz_to_mel(1000) == pytest.approx(1000, abs=0.1)
    assert [label for _, label in places.ticks()] == ["0.25", "0.5", "1", "2", "4", "8"]


@pytest.mark.parametrize("query", ["0.49,500", "1.79,500", "1,19", "1,9000", "nan,500"])
def test_outside(catalog: Catalog, query: str) -> None:
    view = view_of(catalog)
    with pytest.raises(ConfigError, match="--query"):
        make_panel(view, HeadChoice(), parse_query(query), "map 1")


def test_numbers(catalog: Catalog) -> None:
    view = view_of(catalog)
    rows = layer_measures(view)
    assert [(row["layer"], row["map"]) for row in rows[:3]] == [
        ("0", "map 1"),
        ("0", "map 2"),
        ("0", "difference, absolute"),
    ]
    even = rows[-1]
    assert even["entropy (bits)"] == pytest.approx(math.log2(65))
    assert even["entropy / log2 N"] == pytest.approx(1)
    assert even["distance (bands)"] == pytest.approx((64 - 1) / (3 * 8))
    assert even["distance (s)"] == pytest.approx((64 - 1) / (3 * 8) * 0.16)
    assert float(rows[0]["entropy (bits)"]) < 0.99 * math.log2(65)
    assert rows[1]["lambda"] == pytest.approx(0.1)
    assert noise_measures(view) == []
    text = measures_markdown(Inspection(Path("x"), [view], [HeadChoice()], Query()))
    assert len({line.count("|") for line in text.splitlines() if "|" in line}) == 1


def test_silence(catalog: Catalog) -> None:
    """What is filled in is silent, and so is a clip without sound; even attention gives it its share of tokens."""
    model = model_of(catalog)
    noise = torch.randn(8000, generator=torch.Generator().manual_seed(0)) * 0.1
    stretch = make_excerpt(noise, model)  # 8,000 samples end in the fourth step
    silent = silent_patches(model, stretch).reshape(8, 8)
    assert silent.all(1).tolist() == [False] * 4 + [True] * 4
    assert not silent[:4].any()
    even = layer_measures(make_view(model, stretch))[-1]
    assert even["share on silence"] == pytest.approx(32 / 65)
    assert silent_patches(model, make_excerpt(torch.zeros(RATE), model)).all()


def test_noise_beside_the_clean_clip(catalog: Catalog) -> None:
    noisy, clean = view_of(catalog, noise=AddedNoise(0.0)), view_of(catalog)
    assert noisy.noisy is not None
    assert noisy.noisy.noise_patches.any()
    assert torch.equal(noisy.clean_layers[1].maps.first, clean.layers[1].maps.first)
    assert not torch.equal(noisy.layers[1].maps.first, clean.layers[1].maps.first)
    rows = noise_measures(noisy)
    assert len(rows) == 2 * 4
    for row in rows:
        assert float(row["share"]) == pytest.approx(float(row["share / chance"]) * float(row["chance"]))


def test_the_figure(catalog: Catalog) -> None:
    """A panel for each map there is, one colour scale for all models, 0 in its middle for the difference."""
    views = [view_of(catalog, "standard"), view_of(catalog)]
    figure = attention_figure(views, [HeadChoice(0), HeadChoice(1, 1)], Query(), "both")
    titles = [axes.get_title() for axes in figure.axes]
    assert sum("map 2 (subtracted)" in title for title in titles) == 2
    assert sum("0.10" in title for title in titles) == 2
    maps = [axes.images[1] for axes in figure.axes if len(axes.images) == 2 and "map" in axes.get_title()]
    assert len(maps) == 2 + 3 * 2
    assert len({(image.norm.vmin, image.norm.vmax) for image in maps}) == 2 * 2
    signed = [image.norm for axes, image in ((a, a.images[-1]) for a in figure.axes if "0.10" in a.get_title())]
    assert all(norm.vmin == -norm.vmax for norm in signed)  # type: ignore[operator]
    alone = attention_figure(views[:1], [HeadChoice()], Query())
    assert sum("map" in axes.get_title() for axes in alone.axes) == 1


def test_nearly_even_attention_is_pale(catalog: Catalog) -> None:
    """With weights of 0 every map is even, at 1 of a scale that ends at 2; a difference of such maps likewise."""
    model = model_of(catalog)
    for parameter in model.encoder.parameters():
        parameter.data.zero_()
    view = make_view(model, make_excerpt(torch.from_numpy(sweep()).float(), model))
    figure = attention_figure([view], [HeadChoice()], Query())
    first, second, difference = (axes.images[1] for axes in figure.axes if "map" in axes.get_title())
    for image in (first, second, difference):
        assert float(image.norm.vmax) == pytest.approx(2 * float(np.abs(image.get_array()).mean()))  # type: ignore[arg-type]
    assert float(first.norm.vmax) == pytest.approx(2)  # type: ignore[arg-type]


def test_without_a_checkpoint_it_is_the_model_of_the_package(audio: Path, tmp_path: Path) -> None:
    run(audio, "--out", tmp_path / "x.npz")
    assert list(np.load(tmp_path / "x.npz")["models"]) == ["asda_small"]


def test_without_a_class_token(catalog: Catalog) -> None:
    view = view_of(catalog, class_token=ClassTokenConfig(position="none"))
    drawn = make_panel(view, HeadChoice(), Query(), "map 1")
    assert drawn is not None
    assert drawn.description == "mean of all tokens"
    assert drawn.values.mean() == pytest.approx(1, abs=1e-4)
    with pytest.raises(ConfigError, match="no class token in this layer"):
        make_panel(view, HeadChoice(), Query("class"), "map 1")


def test_a_front_end_without_mel_bands(catalog: Catalog) -> None:
    """Maps are drawn over its features; what needs mel bands is left out or refused."""
    spec = catalog.find("front end", "mfcc").spec
    model = replace(model_of(catalog), front_end=spec.build(spec.config(), FrontEndContext(RATE)))
    stretch = make_excerpt(torch.from_numpy(sweep()).float(), model)
    view = make_view(model, stretch)
    assert view.silent is None
    assert "share on silence" not in layer_measures(view)[0]
    assert attention_figure([view], [HeadChoice()], Query()).axes[0].get_ylabel() == "bin"
    with pytest.raises(ConfigError, match="not mel bands"):
        make_panel(view, HeadChoice(), Query("patch", 0.1, 500.0), "map 1")
    with pytest.raises(ConfigError, match="not mel bands"):
        make_view(model, stretch, AddedNoise(0.0))


@pytest.mark.parametrize(
    ("sound", "channels"),
    [(np.ones(3), 1), (np.zeros(RATE), 1), (sweep(), 2), (sweep(0.2), 1), (np.full(100, 0.5), 1)],
    ids=["3 samples", "silent", "stereo", "short", "constant"],
)
def test_odd_audio(
    checkpoint: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    sound: np.ndarray,
    channels: int,
) -> None:
    file = tmp_path / "odd.wav"
    soundfile.write(file, np.repeat(sound[:, None], channels, axis=1), RATE, subtype="FLOAT")
    run(file, "--checkpoint", checkpoint("differential"), "--out", tmp_path / "odd.npz")
    assert "nan" not in capsys.readouterr().out
    with np.load(tmp_path / "odd.npz") as arrays:
        assert all(np.isfinite(arrays[name]).all() for name in arrays if name != "models")


def test_the_stretch_is_where_it_should_be(catalog: Catalog, tmp_path: Path) -> None:
    """At another rate too; and two equal channels are one."""
    model, file = model_of(catalog), tmp_path / "steps.wav"
    steps = np.repeat(np.linspace(0.1, 0.8, 8), RATE // 4)  # a new level every 0.25 s
    soundfile.write(file, np.stack([steps, steps], axis=1), RATE)
    stretch = read_excerpt(file, model, 0.5)
    assert len(stretch.audio) == 20_720
    assert stretch.num_file_samples == 20_720
    assert stretch.audio[100] == pytest.approx(0.3, abs=1e-3)
    assert stretch.audio[5000] == pytest.approx(0.4, abs=1e-3)
    late = read_excerpt(file, model, 1.75)
    assert late.num_file_samples == 4000
    assert not late.audio[4000:].any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda file: None, "it does not exist"),
        (lambda file: file.write_bytes(b""), "it is empty"),
        (lambda file: file.write_text("text"), "it is damaged, or not an audio format"),
        (lambda file: file.mkdir(), "it is a folder"),
        (lambda file: soundfile.write(file, np.full(RATE, np.nan), RATE, subtype="FLOAT"), "NaN or infinite"),
        (lambda file: soundfile.write(file, np.zeros((0, 1)), RATE), "holds no samples"),
    ],
)
def test_bad_audio(
    checkpoint: Callable[..., Path], tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    make(tmp_path / "bad.wav")
    with pytest.raises(AudioError, match=message):
        run(tmp_path / "bad.wav", "--checkpoint", checkpoint("standard"), "--out", tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layer", 2], "--layer 2: differential has the layers 0 to 1"),
        (["--layer", -1], "--layer -1"),
        (["--head", 2], "--head 2: layer 1 of differential has the heads 0 to 1"),
        (["--head", "first"], "--head 'first' must be a number"),
        (["--query", "noon"], "--query 'noon' must be class, mean, or SECONDS,HZ"),
        (["--query", "3,500"], "3 s is outside the excerpt"),
        (["--at", 5], "holds no samples from 5 s on"),
        (["--at", -1], "--at must be finite and at least 0 s, not -1"),
        (["--at", "nan"], "--at must be finite"),
        (["--snr", "nan"], "must be a finite number of dB"),
        (["--noise", "white"], "--noise requires --snr"),
        (["--snr", 0, "--noise", "nothing.wav"], "it does not exist"),
        (["--snr", 0, "--seed", -1], "--seed must not be negative"),
        (["--out", "look.pdf"], "must end in .html, .png, .npz"),
    ],
    ids=str,
)
def test_wrong_words(
    audio: Path, checkpoint: Callable[..., Path], tmp_path: Path, words: list[Any], message: str
) -> None:
    out = [] if "--out" in words else ["--out", tmp_path / "x.html"]
    with pytest.raises(AsdaError, match=re.escape(message)):
        run(audio, "--checkpoint", checkpoint("differential"), *words, *out)
    assert not (tmp_path / "x.html").exists()


def test_a_mixer_without_maps(audio: Path, checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'two_simplicial' .*Mixers with maps: differential, "):
        run(audio, "--checkpoint", checkpoint("two_simplicial"), "--out", tmp_path / "x.html")


def test_the_baseline_has_no_attention(audio: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'log_mel' is the baseline without a model"):
        run(audio, "--checkpoint", "log_mel", "--out", tmp_path / "x.html")


def test_the_title_tells_of_clips_of_several_lengths(catalog: Catalog) -> None:
    short, other = view_of(catalog), view_of(catalog, "standard")
    long = replace(other, positions=replace(other.positions, grid=(16, 8)))
    titles = [
        Inspection(Path("a.wav"), views, [HeadChoice()], Query()).title for views in ([short, other], [long, short])
    ]
    assert titles[0] == "a.wav, 0.50 s to 1.78 s"
    assert titles[1] == "a.wav, 0.50 s to 1.78 s or 3.06 s, depending on the clip length of the model"


def test_looking_changes_nothing(catalog: Catalog) -> None:
    model = model_of(catalog)
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    make_view(model, make_excerpt(torch.zeros(10), model))
    assert all(torch.equal(value, before[name]) for name, value in model.encoder.state_dict().items())


def test_models_may_be_named(checkpoint: Callable[..., Path]) -> None:
    file = checkpoint("standard")
    assert [model.name for model in open_models([f"ours={file}", str(file)])] == ["ours", "standard"]
    for same in ([str(file)] * 2, [f"x={file}"] * 2):
        with pytest.raises(ConfigError, match="two models are named .*; label one, as in LABEL=PATH"):
            open_models(same)
    odd = file.rename(file.with_name("a=b.safetensors"))
    assert [model.name for model in open_models([str(odd)])] == ["a=b"]


def test_a_learned_lambda_can_be_looked_at(catalog: Catalog) -> None:
    """Its gradient is not kept."""
    config = run_config("differential")
    learned = PluginChoice("differential", {"lambda_learned": True})
    encoder = build_parts(catalog, replace(config, encoder=replace(config.encoder, mixer=learned))).encoder
    for layer in attention_maps(encoder, torch.randn(1, 128, 64)):
        rows = layer.maps.difference.sum(dim=-1)
        assert not rows.requires_grad
        torch.testing.assert_close(rows, torch.full_like(rows, 0.9))
