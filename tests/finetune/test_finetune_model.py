"""What trains in each mode, and how fast."""

import copy
import json
import os
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from asda_core.assemble import build_encoder
from asda_core.catalog import Catalog
from asda_core.checkpoint import Checkpoint, checkpoint_metadata, load_strict, read_checkpoint
from asda_core.config_io import to_plain
from asda_core.data import clip_reader
from asda_core.data.clip_reader import ClipReader
from asda_core.errors import AudioError, CheckpointError, ConfigError, PluginError
from asda_core.finetune.finetune_model import FinetuneModel, build_finetune_model, load_finetune_model
from asda_core.finetune.frozen import encode_once
from asda_core.finetune.jobs import Job
from asda_core.finetune.optimizing import parameter_groups, set_rates
from asda_core.finetune.recipes import check_by_mode, load_recipe, mode_of, recipe_for, with_changes
from asda_core.finetune.running import finetune
from asda_core.finetune_config import FinetuneConfig
from asda_core.labelled.reading import read_labelled
from asda_core.labelled.source import SourceConfig
from asda_core.labelled.splits import rounds
from asda_core.pretrain.schedule import optimizer_of
from tests.finetune.making import small_checkpoint, small_recipe, small_run, write_tones

CLASSES = ("a", "b", "c")
MODES = ["full", "linear", "attentive", "last_blocks=1", "bottleneck", "convolution", "low_rank", "prompt", "bias_only"]


@pytest.fixture
def start(tmp_path: Path, catalog: Catalog) -> Checkpoint:
    return small_checkpoint(tmp_path / "start", catalog)


def made(catalog: Catalog, start: Checkpoint, mode: str, **more: object) -> tuple[FinetuneModel, FinetuneConfig]:
    recipe = recipe_for(small_recipe(**more), mode, catalog)
    return build_finetune_model(catalog, recipe, start, CLASSES), recipe


def test_a_model_that_does_not_fit_on_the_device(
    catalog: Catalog, start: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    tuned, _ = made(catalog, start, "full")
    monkeypatch.setattr(torch.nn.Module, "to", fails)
    with pytest.raises(ConfigError, match=r"the model does not fit into memory: 2.00 GiB\."):
        tuned.move_to(torch.device("cpu"))


def test_the_objective_of_pre_training_is_not_needed(catalog: Catalog, start: Checkpoint) -> None:
    """Its package may be gone; what is pre-trained on needs it."""
    offers = {key: offer for key, offer in catalog.offers.items() if key[0] != "objective"}
    bare = replace(catalog, offers=MappingProxyType(offers))
    tuned, _ = made(bare, start, "linear")
    written = checkpoint_metadata(tuned.config, bare, 1, classifier=tuned.classifier.config)
    assert json.loads(written["plugins"]).keys() == {"front end", "mixer"}
    with pytest.raises(PluginError, match="unknown objective"):
        checkpoint_metadata(tuned.config, bare, 1)


@pytest.mark.parametrize("mode", MODES)
def test_what_trains(mode: str, catalog: Catalog, start: Checkpoint) -> None:
    """After three updates what trains has moved, all of it, and nothing else by a single bit."""
    tuned, recipe = made(catalog, start, mode)
    before = {name: tensor.clone() for name, tensor in tuned.tensors().items()}
    trained = {name for name, _ in tuned.trained_parameters()}
    assert all(name.startswith("classifier.") for name in trained) == (mode in ("linear", "attentive"))
    optimizer = optimizer_of(parameter_groups(tuned, recipe), recipe.optimizer)
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(6, 128, 32, generator=generator), torch.eye(3).repeat(2, 1)
    for step in range(4):
        set_rates(optimizer, recipe, step + 1, 6, 2.0)
        tuned.set_training(True)
        loss = torch.nn.functional.cross_entropy(tuned.classifier(tuned.encoder(features)), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    after = tuned.tensors()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == trained - {name for name in trained if name.endswith("in_proj_bias") and name not in moved}
    assert tuned.sizes()["trained"] == sum(tensor.numel() for name, tensor in after.items() if name in trained)


@pytest.mark.parametrize("mode", MODES)
def test_at_first_the_encoder_is_that_of_the_checkpoint(mode: str, catalog: Catalog, start: Checkpoint) -> None:
    features = torch.randn(2, 128, 32, generator=torch.Generator().manual_seed(0))
    tuned, _ = made(catalog, start, mode)
    full, _ = made(catalog, start, "full")
    for each in (tuned, full):
        each.set_training(False)
    torch.testing.assert_close(tuned.encoder(features).tokens, full.encoder(features).tokens, rtol=1e-5, atol=1e-5)


def test_last_blocks(catalog: Catalog, start: Checkpoint) -> None:
    tuned, _ = made(catalog, start, "last_blocks=1")
    assert {name.split(".")[2] for name, _ in tuned.trained_parameters() if name.startswith("encoder.blocks")} == {"1"}
    with pytest.raises(ConfigError, match="blocks 3 is more than the 2 blocks of the encoder"):
        made(catalog, start, "last_blocks=3")


def test_rates_by_layer(catalog: Catalog, start: Checkpoint) -> None:
    """The layer below the first block learns slowest, the head fastest; as released, what is no block learns fully."""
    tuned, recipe = made(catalog, start, "full", layer_decay=0.5, head_rate=3.0)
    scale = {id(p): group["scale"] for group in parameter_groups(tuned, recipe) for p in group["params"]}
    by_name = {name: scale[id(parameter)] for name, parameter in tuned.trained_parameters()}
    assert by_name["encoder.blocks.1.norm1.weight"] == 0.5
    assert by_name["encoder.blocks.0.norm1.weight"] == 0.25
    assert {
        value for name, value in by_name.items() if name.startswith(("encoder.patches", "encoder.class_token"))
    } == {0.125}
    assert by_name["classifier.head.weight"] == 3.0
    released = with_changes(recipe, {"compat": "released"})
    scale = {id(p): group["scale"] for group in parameter_groups(tuned, released) for p in group["params"]}
    assert {scale[id(p)] for name, p in tuned.trained_parameters() if name.startswith("encoder.patches")} == {1.0}
    assert {scale[id(p)] for name, p in tuned.trained_parameters() if name.startswith("encoder.blocks.0.")} == {0.25}


def test_layer_decay_is_not_for_adapters(catalog: Catalog, start: Checkpoint) -> None:
    tuned, recipe = made(catalog, start, "bottleneck", layer_decay=0.5)
    assert {group["scale"] for group in parameter_groups(tuned, recipe)} == {1.0}


def test_drop_path_grows_with_depth(catalog: Catalog, start: Checkpoint) -> None:
    tuned, _ = made(catalog, start, "full", drop_path=0.3)
    assert [block.drop_path for block in tuned.encoder.blocks] == [0.0, 0.3]
    features = torch.randn(2, 128, 32)
    tuned.set_training(True)
    torch.manual_seed(0)
    assert not torch.equal(tuned.encoder(features).tokens, tuned.encoder(features).tokens)
    tuned.set_training(False)
    assert torch.equal(tuned.encoder(features).tokens, tuned.encoder(features).tokens)


def test_another_front_end_and_mixer(catalog: Catalog, tmp_path: Path) -> None:
    """Mean and std of the data, and a mixer that takes over the weights; what does not fit is refused."""
    standard = small_checkpoint(tmp_path / "standard", catalog, small_run("standard"))
    tuned = build_finetune_model(catalog, small_recipe(front_end={"mean": -6.627, "std": 5.359}), standard, CLASSES)
    assert (tuned.front_end.mean, tuned.front_end.std) == (-6.627, 5.359)
    assert tuned.config.front_end.options == {"mean": -6.627, "std": 5.359}
    tuned = build_finetune_model(catalog, small_recipe(mixer="frequency_time"), standard, CLASSES)
    assert tuned.config.encoder.mixer.name == "frequency_time"
    with pytest.raises(ConfigError, match="mixer"):
        build_finetune_model(catalog, small_recipe(mixer="differential"), standard, CLASSES)
    with pytest.raises(ConfigError, match="meen"):
        build_finetune_model(catalog, small_recipe(front_end={"meen": 1.0}), standard, CLASSES)


def test_patches_that_overlap_in_fine_tuning(catalog: Catalog, tmp_path: Path) -> None:
    """As SSAST's: pre-trained side by side with a learned table, fine-tuned every 10 frames and bins."""
    table = {"type": "learned", "grid": (2, 8)}
    start = small_checkpoint(tmp_path / "learned", catalog, small_run("standard", norm="pre", positions=table))
    tuned = build_finetune_model(catalog, small_recipe(stride_frames=10, stride_bins=10), start, CLASSES)
    tuned.set_training(False)
    encoded = tuned.encoder(torch.randn(1, 128, 64))
    assert encoded.layout.grid == (5, 12)
    built = build_encoder(catalog, replace(start.config.encoder, stride_frames=10, stride_bins=10)).eval()
    load_strict(built, start.tensors, "encoder.", start.file)
    features = torch.randn(1, 128, 64)
    torch.testing.assert_close(tuned.encoder(features).tokens, built(features).tokens)


def test_on_from_an_adapted_checkpoint(catalog: Catalog, start: Checkpoint, tmp_path: Path) -> None:
    """An adapter in the checkpoint goes on with the same one, trains with all in mode full, and does not stack."""
    _, recipe = made(catalog, start, "bottleneck")
    source = SourceConfig(data=str(write_tones(tmp_path / "tones")))
    data = read_labelled(source, Path())
    finetune(Job(recipe, start, data, rounds(data, source)[0]), tmp_path / "run", catalog, progress=False)
    adapted = read_checkpoint(tmp_path / "run")
    for mode in ("bottleneck", "full", "linear"):
        again, _ = made(catalog, adapted, mode)
        for name, tensor in adapted.tensors.items():
            if name.startswith("encoder."):
                assert torch.equal(again.tensors()[name], tensor), name
        assert again.config.adapter == adapted.config.adapter
        assert again.frozen == (mode == "linear")
    with pytest.raises(ConfigError, match="cannot be stacked"):
        made(catalog, adapted, "low_rank")
    assert load_finetune_model(adapted, catalog).config.adapter is not None
    with pytest.raises(CheckpointError, match="no classifier"):
        load_finetune_model(start, catalog)


def test_frozen_clips_are_encoded_once_and_the_same(catalog: Catalog, start: Checkpoint, tmp_path: Path) -> None:
    """A probe that trains on what was encoded once ends as one that encodes every batch."""
    source = SourceConfig(data=str(write_tones(tmp_path / "tones")))
    data = read_labelled(source, Path())
    split = rounds(data, source)[0]
    for mode in ("linear", "attentive"):
        found = []
        for mebibytes in (64, 0):
            recipe = recipe_for(small_recipe(), mode, catalog)
            recipe = with_changes(recipe, {"data.cache_mebibytes": mebibytes})
            tuned = build_finetune_model(catalog, recipe, start, data.classes)
            known = encode_once(tuned, recipe, ClipReader(recipe.data, 16_000), split.train, False)
            assert (known is None) == (mebibytes == 0)
            folder = tmp_path / f"{mode}{mebibytes}"
            finetune(Job(recipe, start, data, split), folder, catalog, progress=False)
            found.append(read_checkpoint(folder).tensors)
        for name, tensor in found[0].items():
            torch.testing.assert_close(tensor, found[1][name], rtol=1e-4, atol=1e-5)


def test_encoding_once_holds_the_tokens_alone(catalog: Catalog, start: Checkpoint, tmp_path: Path) -> None:
    """The outputs of all layers of all clips would take many times the memory that the config allows."""
    data = read_labelled(SourceConfig(data=str(write_tones(tmp_path / "tones"))), Path())
    recipe = recipe_for(small_recipe(), "linear", catalog)
    tuned = build_finetune_model(catalog, recipe, start, data.classes)
    held = []
    tuned.encoder.register_forward_hook(lambda _, __, encoded: held.append((len(encoded.layers), len(encoded.outputs))))
    assert encode_once(tuned, recipe, ClipReader(recipe.data, 16_000), data.examples, False) is not None
    assert held
    assert set(held) == {(0, 0)}


def test_encoding_once_keeps_to_the_memory_limit_if_the_last_clip_is_missing(
    catalog: Catalog, start: Checkpoint, tmp_path: Path
) -> None:
    data = read_labelled(SourceConfig(data=str(write_tones(tmp_path / "tones"))), Path())
    recipe = with_changes(recipe_for(small_recipe(), "linear", catalog), {"data.cache_mebibytes": 0})
    tuned = build_finetune_model(catalog, recipe, start, data.classes)
    examples = [*data.examples, replace(data.examples[0], file=tmp_path / "missing.flac")]
    assert encode_once(tuned, recipe, ClipReader(recipe.data, 16_000), examples, False) is None


def test_a_clip_of_which_a_part_can_be_read_is_not_encoded_once(
    catalog: Catalog, start: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training hears what is whole of it, and must not be given another clip's row."""
    root = write_tones(tmp_path / "tones")
    cut = root / "tone0" / "cut.flac"
    soundfile.write(cut, np.random.default_rng(0).normal(size=48_000) / 10, 16_000)
    os.truncate(cut, cut.stat().st_size * 8 // 10)
    data = read_labelled(SourceConfig(data=str(root)), Path())
    recipe = recipe_for(small_recipe(), "linear", catalog)
    tuned = build_finetune_model(catalog, recipe, start, data.classes)
    known = encode_once(tuned, recipe, ClipReader(recipe.data, 16_000), data.examples, False)
    assert known is not None
    gone = next(number for number, example in enumerate(data.examples) if example.file == cut)
    assert int(known.row[gone]) == -1
    with pytest.raises(AudioError, match="could not be read during encoding"):
        known.batch(torch.tensor([gone]))
    monkeypatch.setattr(clip_reader, "WHOLE_FILE_SECONDS", 1.0)
    assert encode_once(tuned, recipe, ClipReader(recipe.data, 16_000), data.examples, False) is None


@pytest.mark.parametrize("change", [{"augment.roll": True}, {"augment.noise": 0.1}, {"augment.mixup.probability": 0.5}])
def test_augmented_clips_are_not_encoded_once(
    change: dict[str, Any], catalog: Catalog, start: Checkpoint, tmp_path: Path
) -> None:
    source = SourceConfig(data=str(write_tones(tmp_path / "tones")))
    data = read_labelled(source, Path())
    recipe = with_changes(recipe_for(small_recipe(), "linear", catalog), change)
    tuned = build_finetune_model(catalog, recipe, start, data.classes)
    assert encode_once(tuned, recipe, ClipReader(recipe.data, 16_000), data.examples, False) is None


def test_modes_by_name(catalog: Catalog) -> None:
    recipe = small_recipe(by_mode={"adapter": {"optimizer.peak_lr": 0.5}, "low_rank": {"adapter.options.rank": 2}})
    assert recipe_for(recipe, "bottleneck", catalog).optimizer.peak_lr == 0.5
    low_rank = recipe_for(recipe, "low_rank", catalog)
    assert low_rank.adapter is not None
    assert (low_rank.optimizer.peak_lr, low_rank.adapter.options) == (0.5, {"rank": 2})
    assert recipe_for(recipe, "full", catalog).optimizer.peak_lr == 0.01
    assert [mode_of(recipe_for(recipe, mode, catalog)) for mode in MODES] == MODES
    for wrong, message in (
        ("bottelneck", "did you mean|Did you mean 'bottleneck'"),
        ("last_blocks", "last_blocks=2"),
        ("adapter", "unknown mode"),
        ("full=2", "unknown mode"),
    ):
        with pytest.raises(ConfigError, match=message):
            recipe_for(recipe, wrong, catalog)
    with pytest.raises(ConfigError, match=r"by_mode\.linear.*epoch"):
        check_by_mode(small_recipe(by_mode={"linear": {"epoch": 3}}), catalog)
    with pytest.raises(ConfigError, match=r"by_mode\.lineer"):
        check_by_mode(small_recipe(by_mode={"lineer": {}}), catalog)


def test_a_length_takes_the_place_of_the_other() -> None:
    recipe = small_recipe(epochs=2)
    assert with_changes(recipe, {"steps": 7}).epochs == 0
    assert with_changes(with_changes(recipe, {"steps": 7}), {"epochs": 1}).steps == 0


def test_partial_keys_keep_the_defaults_of_fine_tuning(tmp_path: Path) -> None:
    """`optimizer: {peak_lr: ...}` must not bring the warm-up of pre-training."""
    file = tmp_path / "recipe.yaml"
    file.write_text("epochs: 1\noptimizer: {peak_lr: 0.001}\ndata: {batch_size: 2}\n")
    recipe = load_recipe(file)
    assert (recipe.optimizer.warmup_steps, recipe.optimizer.clip_norm, recipe.data.clip_seconds) == (400, 0.0, 5.135)
    file.write_text("epoch: 1")
    with pytest.raises(ConfigError, match=r"recipe\.yaml.*unknown config key 'epoch'"):
        load_recipe(file)


def test_released_keys(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("compat: released\nepochs: 1\ndata: {crop: random}\n")
    recipe = load_recipe(file)
    assert (recipe.optimizer.algorithm, recipe.optimizer.schedule, recipe.loss_per, recipe.select) == (
        "fairseq_adam", "fairseq_cosine", "labels", "test",
    )  # fmt: skip
    assert recipe.data.crop == "random"
    file.write_text("epochs: 1\n")
    usual = load_recipe(file)
    changed = with_changes(usual, {"compat": "released"})
    assert (changed.optimizer.algorithm, changed.data.padding, changed.data.min_samples) == (
        "fairseq_adam", "features", 10_000,
    )  # fmt: skip
    assert to_plain(with_changes(changed, {"compat": "default"})) == to_plain(usual)


def test_attentive_pooling_learns_from_every_token_and_ignores_padding(catalog: Catalog, start: Checkpoint) -> None:
    tuned, _ = made(catalog, start, "attentive")
    encoded = tuned.encoder(torch.randn(2, 128, 32))
    tokens = encoded.tokens.detach().requires_grad_()
    other = copy.copy(encoded)
    object.__setattr__(other, "tokens", tokens)
    tuned.classifier(other).sum().backward()  # type: ignore[no-untyped-call]
    assert tokens.grad is not None
    assert bool((tokens.grad.abs().sum(-1) > 0).all())
    hidden = torch.zeros(tokens.shape[:2], dtype=torch.bool)
    hidden[:, -1] = True
    layout = copy.copy(encoded.layout)
    object.__setattr__(layout, "padding", hidden)
    object.__setattr__(other, "layout", layout)
    before = tuned.classifier(other)
    object.__setattr__(other, "tokens", torch.where(hidden[..., None], 99.0, tokens))
    torch.testing.assert_close(tuned.classifier(other), before)
