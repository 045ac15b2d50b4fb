"""Pooling: statistics over windows are those over the whole clip, and what the package's model takes by default."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from asda_core.assemble import build_encoder, build_parts
from asda_core.catalog import Catalog
from asda_core.checkpoint import checkpoint_metadata, model_tensors, write_model
from asda_core.config import RunConfig
from asda_core.errors import CheckpointError, ConfigError
from asda_hear import get_scene_embeddings, get_timestamp_embeddings, load_model
from asda_hear.pooling import BackboneOutput, StatisticsAccumulator


def audio_of(seconds: float, clips: int = 2) -> Tensor:
    return torch.randn(clips, round(16_000 * seconds), generator=torch.Generator().manual_seed(0)) * 0.1


@pytest.fixture
def model_file(catalog: Catalog, tiny: RunConfig, tmp_path: Path) -> Path:
    file = tmp_path / "model.safetensors"
    write_model(file, model_tensors(build_parts(catalog, tiny), False), checkpoint_metadata(tiny, catalog, 0))
    return file


def test_averages_over_windows_are_those_of_all_steps() -> None:
    steps = torch.randn(3, 11, 5, generator=torch.Generator().manual_seed(0)) + 1000  # a spread beside a large mean
    averaging = StatisticsAccumulator()
    for first, last in ((0, 4), (4, 5), (5, 5), (5, 11)):
        window = BackboneOutput(torch.full((3, 2), float(first)), steps[:, max(0, first - 1) : last + 1], steps)
        keep_from = first - max(0, first - 1)
        averaging.add(window, keep_from, keep_from + last - first)
    found = averaging.compute()
    torch.testing.assert_close(found.mean, steps.mean(dim=1))
    torch.testing.assert_close(found.std, steps.double().std(dim=1, correction=0).float(), rtol=1e-4, atol=1e-4)
    change = steps.double().diff(dim=1).square().mean(dim=1).sqrt()
    torch.testing.assert_close(found.change, change.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.summary, torch.full((3, 2), (0 * 4 + 4 * 1 + 5 * 6) / 11))


def test_one_step_has_no_spread() -> None:
    averaging = StatisticsAccumulator()
    averaging.add(BackboneOutput(torch.ones(1, 2), torch.ones(1, 1, 3), torch.ones(1, 1, 3)), 0, 1)
    assert torch.equal(averaging.compute().std, torch.zeros(1, 3))
    assert torch.equal(averaging.compute().change, torch.zeros(1, 3))


@pytest.mark.parametrize("pooling", ["statistics", "dynamics"])
def test_mean_deviation_and_change_of_each_band(model_file: Path, pooling: str) -> None:
    model = load_model(model_file, scene_pooling=pooling, window_seconds=2.0)
    clip = audio_of(1.0)
    embedding = get_scene_embeddings(clip, model)
    assert embedding.shape == (2, model.scene_embedding_size)
    framing = model.scene_framing
    window = framing.window_audio(clip, 0, framing.num_steps(clip.shape[1]))
    encoded = model.backbone.encoder(model.front_end(window))
    steps = encoded.tokens.unflatten(1, encoded.layout.grid).flatten(2)
    parts = [steps.mean(dim=1), steps.std(dim=1, correction=0), steps.diff(dim=1).square().mean(dim=1).sqrt()]
    explicit = torch.cat(parts[: 3 if pooling == "dynamics" else 2], dim=1)
    torch.testing.assert_close(embedding, explicit, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(get_scene_embeddings(clip[1:], model)[0], embedding[1], rtol=1e-4, atol=1e-5)


def test_the_baseline_has_statistics_too() -> None:
    model = load_model("log_mel", scene_pooling="statistics")
    embedding = get_scene_embeddings(audio_of(3.0), model)
    assert embedding.shape == (2, 256)
    torch.testing.assert_close(embedding[:, :128], get_scene_embeddings(audio_of(3.0), load_model("log_mel")))
    assert embedding[:, 128:].min() >= 0  # of a band that no bin of the spectrum falls into
    assert embedding[:, 128:].mean() > 0.05


def test_change_tells_rattling_from_swelling() -> None:
    """Two sounds with the same spectrum on the whole: noise in pulses of 0.4 s, and in one of 2 s."""
    model = load_model("log_mel", scene_pooling="dynamics")
    noise = audio_of(4.0, clips=1)
    time = torch.arange(noise.shape[1]) / 16_000
    rattling, swelling = ((noise * ((time * rate) % 1 < 0.5)) for rate in (1.25, 0.25))
    fast, slow = (get_scene_embeddings(each, model)[0].unflatten(0, (3, 128)) for each in (rattling, swelling))
    assert (fast[2] / slow[2])[20:].min() > 1.8
    assert ((fast[1] / slow[1])[20:] - 1).abs().mean() < 0.25


def test_layers_stand_side_by_side(model_file: Path) -> None:
    clip = audio_of(1.0)
    options = {"scene_pooling": "statistics", "timestamp_pooling": "concat", "window_seconds": 2.0}
    model = load_model(model_file, **options, layers=[0, 2])
    config, bands = model.backbone.encoder.config, model.backbone.num_bands
    assert config.depth == 2
    scene, (stamped, _) = get_scene_embeddings(clip, model), get_timestamp_embeddings(clip, model)
    assert scene.shape == (2, model.scene_embedding_size) == (2, 4 * bands * config.dim)
    assert stamped.shape[2] == model.timestamp_embedding_size == 2 * bands * config.dim
    alone = load_model(model_file, **options)
    last = stamped.unflatten(2, (bands, 2, config.dim))[:, :, :, 1].flatten(2)
    torch.testing.assert_close(last, get_timestamp_embeddings(clip, alone)[0])
    first = load_model(model_file, **options, layers=[0])
    window = first.scene_framing.window_audio(clip, 0, first.scene_framing.num_steps(clip.shape[1]))
    tokens, layout = first.backbone.encoder.embed(first.front_end(window))
    steps = first.backbone.encoder.input_norm(tokens).unflatten(1, layout.grid).flatten(2)
    explicit = torch.cat([steps.mean(dim=1), steps.std(dim=1, correction=0)], dim=1)
    torch.testing.assert_close(get_scene_embeddings(clip, first), explicit, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", [[], [3], [-1], [1, 1], ["last"], 1])
def test_layers_that_are_none_are_refused(model_file: Path, layers: object) -> None:
    with pytest.raises(ConfigError, match="layers"):
        load_model(model_file, layers=layers)
    with pytest.raises(ConfigError, match="layers"):
        load_model("log_mel", layers=layers)


def test_an_encoder_gives_the_outputs_that_are_asked_for(catalog: Catalog, tiny: RunConfig) -> None:
    for change in ({}, {"token_order": "frequency"}, {"class_token": replace(tiny.encoder.class_token, join_layer=1)}):
        encoder = build_encoder(catalog, replace(tiny.encoder, **change)).eval()
        features = torch.randn(2, 128, 64, generator=torch.Generator().manual_seed(0))
        encoded = encoder(features, (0, 1, 2))
        assert sorted(encoded.outputs) == [0, 1, 2]
        assert torch.equal(encoded.outputs[2], encoded.tokens)
        assert torch.equal(encoded.outputs[0], encoder.input_norm(encoder.embed(features)[0]))
        assert encoded.outputs[1].shape == encoded.tokens.shape
        assert not torch.allclose(encoded.outputs[1], encoded.tokens)
        assert not encoder(features).outputs


def test_a_checkpoint_says_what_suits_it_and_options_go_first(
    catalog: Catalog, tiny: RunConfig, tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    suited = {"scene_pooling": "statistics", "layers": [1, 2]}
    tensors = model_tensors(build_parts(catalog, tiny), False)
    write_model(file, tensors, checkpoint_metadata(tiny, catalog, 0, embedding=suited))
    model = load_model(file)
    assert model.scene_embedding_size == 4 * model.backbone.num_bands * tiny.encoder.dim
    assert model.timestamp_embedding_size == 2 * tiny.encoder.dim
    assert load_model(file, layers=[2], scene_pooling="mean").scene_embedding_size == tiny.encoder.dim
    for wrong in ({"scene_poling": "mean"}, {"layers": "all"}, {"layers": [9]}):
        write_model(file, tensors, checkpoint_metadata(tiny, catalog, 0, embedding=wrong))
        with pytest.raises(ConfigError, match=r"layers|scene_poling"):
            load_model(file)
    write_model(file, tensors, {**checkpoint_metadata(tiny, catalog, 0), "embedding": "[1]"})
    with pytest.raises(CheckpointError, match="cannot read 'embedding' in its metadata"):
        load_model(file)


def test_the_model_of_the_package_takes_its_own_pooling() -> None:
    model = load_model()
    config, layers = model.backbone.encoder.config, len(model.backbone.layers)
    assert model.scene_embedding_size == 3 * layers * model.backbone.num_bands * config.dim
    embeddings, stamps = get_timestamp_embeddings(audio_of(1.0), model)
    assert embeddings.shape[2] == model.timestamp_embedding_size
    assert stamps[0, :3].tolist() == [0.0, 40.0, 80.0]
    mean = load_model(scene_pooling="mean", timestamp_pooling="mean", layers=[config.depth])
    assert mean.scene_embedding_size == mean.timestamp_embedding_size == model.backbone.encoder.config.dim
    with pytest.raises(ConfigError, match="scene_pooling"):
        load_model(scene_pooling="median")
