"""The recipes that come with the package: every published number, and their losses with gradients, term by term."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from asda_core import config_io
from asda_core.catalog import Catalog
from asda_core.config import EncoderConfig
from asda_core.config_io import find_config, parse, to_plain, value_at
from asda_core.errors import ConfigError
from asda_core.finetune.augment import mixup, mixup_weights
from asda_core.finetune.losses import batch_loss
from asda_core.finetune.recipes import changed_recipe, check_by_mode, load_recipe, mode_of, recipe_for, with_changes
from asda_core.finetune_config import ClassifierConfig, FinetuneConfig
from asda_core.layout import TokenLayout
from asda_core.model.encoder import EncoderOutput
from asda_core.model.heads import Classifier
from asda_core.settings.released import FINETUNING
from asda_core.settings.strict_yaml import parse_value, read_yaml
from tests.finetune.published import BCE, EAT_ASDA, PUBLISHED, SCORES

FOLDER = Path(__file__).parents[2] / "configs" / "finetune"
WINDOW_SECONDS, HOP_SECONDS = 0.025, 0.010
DIM, CLASSES = 8, 7
EPS = 1e-6
"""Of the LayerNorm of the head."""


def released(name: str) -> FinetuneConfig:
    return changed_recipe(load_recipe(f"finetune/{name}"), ["compat=released"])


RECIPES = [
    (name, compat) for compat in ("default", "released") for name in (PUBLISHED if compat == "default" else EAT_ASDA)
]
"""The switch is of ASDA and EAT alone."""


def recipe_of(name: str, compat: str) -> FinetuneConfig:
    return released(name) if compat == "released" else load_recipe(f"finetune/{name}")


def test_how_many() -> None:
    found = {file.stem for file in FOLDER.glob("*.yaml")}
    assert {name for name in found if not name.startswith("tiny")} == {*PUBLISHED}
    assert len(PUBLISHED) == 15
    assert sum(len(keys) for keys in PUBLISHED.values()) == 425


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers(name: str) -> None:
    """Each stands in the file itself, and is what the file comes to."""
    stated, loaded = read_yaml(FOLDER / f"{name}.yaml"), to_plain(load_recipe(f"finetune/{name}"))
    for key, value in PUBLISHED[name].items():
        if key == "frames":
            key, value = "data.clip_seconds", WINDOW_SECONDS + (value - 1) * HOP_SECONDS
        for plain in (stated, loaded):
            given = value_at(plain, key)
            assert given == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value), key
            assert isinstance(given, bool) == isinstance(value, bool), key


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_header_tells_command_and_score(name: str, catalog: Catalog) -> None:
    header = "\n".join(line for line in (FOLDER / f"{name}.yaml").read_text().splitlines() if line.startswith("#"))
    assert re.search(rf"#   asda finetune finetune/{name} --checkpoint \S+ (--data|--continual)", header)
    for word in ("Needs", "Not run", "arXiv"):
        assert word in header
    score = SCORES[name]
    assert "out of reach" in header if score is None else re.search(rf"Published[^.]*: {score}", header), score
    recipe = load_recipe(f"finetune/{name}")
    check_by_mode(recipe, catalog)
    assert recipe_for(recipe, mode_of(recipe), catalog).mode == recipe.mode


@pytest.mark.parametrize("name", PUBLISHED)
def test_changes_of_the_header_are_of_this_recipe(name: str) -> None:
    """Whatever a command of the header sets is another value of a key that there is."""
    commands = re.findall(r"#   asda finetune finetune/(\S+) .*--set (.+)", (FOLDER / f"{name}.yaml").read_text())
    for other, changes in commands:
        before = load_recipe(f"finetune/{other}")
        for change in changes.split():
            assert changed_recipe(before, [change]) != before, change


def test_found_by_name_in_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel has `configs` as a folder of asda_core, which is looked into first."""
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert '[tool.hatch.build.targets.wheel.force-include]\n"configs" = "asda_core/configs"' in project
    assert config_io.CONFIG_FOLDERS[0] == Path(config_io.__file__).parent / "configs"
    assert find_config("finetune/asda_esc50") == FOLDER / "asda_esc50.yaml"
    monkeypatch.chdir(tmp_path)
    assert find_config("finetune/asda_esc50") == FOLDER / "asda_esc50.yaml"
    with pytest.raises(ConfigError, match="asda_esc51"):
        load_recipe("finetune/asda_esc51")


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("tiny", "tiny"), ("tny", "tiny"), ("finetune/tny", "tiny"), ("asda_as2", "asda_as2m")],
)
def test_a_wrong_name_tells_the_nearest(wrong: str, near: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"unknown recipe '{wrong}'. Did you mean 'finetune/{near}'"):
        load_recipe(wrong)


@pytest.mark.parametrize("name", EAT_ASDA)
def test_released(name: str) -> None:
    """The switch moves all its keys and no other, from the command line as in a file."""
    before, after = to_plain(load_recipe(f"finetune/{name}")), to_plain(released(name))
    in_file = to_plain(parse(FinetuneConfig, {"compat": "released", **read_yaml(FOLDER / f"{name}.yaml")}))
    assert after == in_file
    for key, value in FINETUNING.items():
        assert value_at(after, key) == value
        assert value_at(before, key) != value
    expected = with_changes(load_recipe(f"finetune/{name}"), dict(FINETUNING))
    assert after == {**to_plain(expected), "compat": "released"}
    assert changed_recipe(released(name), ["compat=default"]) == load_recipe(f"finetune/{name}")


def test_tasks_of_ai_cl() -> None:
    """What the header gives for the later tasks is what is published: epochs, clips of a batch, width."""
    text = (FOLDER / "aicl.yaml").read_text()
    for task, epochs, batch in (("esc50", 20, 32), ("ave", 15, 12)):
        found = re.search(rf"#   {task}.yaml +(\{{.*\}})", text)
        assert found is not None
        recipe = with_changes(load_recipe("finetune/aicl"), parse_value(found.group(1))["set"])
        assert (recipe.epochs, recipe.data.batch_size) == (epochs, batch)
        assert recipe.adapter is not None
        assert recipe.adapter.options == {"width": 32, "dropout": 0.1, "beside_mixer": True, "beside_mlp": True}


@pytest.mark.parametrize(
    ("name", "patch", "grid"),
    [
        ("ssast_as20k", (16, 16), (101, 12)),
        ("ssast_esc50", (16, 16), (50, 12)),
        ("ssast_spcv2", (2, 128), (127, 1)),
        ("aicl", (16, 16), (9, 12)),
    ],
)
def test_grids_of_overlapping_patches(name: str, patch: tuple[int, int], grid: tuple[int, int]) -> None:
    """Tokens by clip as published: 1,212, 600, a frame less than there are, and 108."""
    recipe = load_recipe(f"finetune/{name}")
    encoder = EncoderConfig(
        patch_frames=patch[0],
        patch_bins=patch[1],
        stride_frames=recipe.stride_frames,
        stride_bins=recipe.stride_bins,
    )
    frames = int((recipe.data.clip_seconds - WINDOW_SECONDS) / HOP_SECONDS + 1e-6) + 1
    assert encoder.grid(128, frames) == grid


def labels_of(name: str, batch: int) -> Tensor:
    """One label per clip; of AudioSet one to three."""
    labels = torch.eye(CLASSES)[torch.arange(batch) * 3 % CLASSES]
    if name.endswith(("as20k", "as2m")):
        labels[::2, 1] = 1.0
        labels[::3, 5] = 1.0
    return labels


def mixed_labels(name: str, recipe: FinetuneConfig, labels: Tensor) -> Tensor:
    """Our mixup, at a step that mixes; also compared with its formula."""
    config = recipe.augment.mixup
    if not PUBLISHED[name]["augment.mixup.probability"]:
        assert mixup_weights(config, len(labels), np.random.default_rng(0)) is None
        return labels
    drawn = (mixup_weights(config, len(labels), np.random.default_rng(seed)) for seed in range(99))
    weights = next(found for found in drawn if found is not None and 0.2 < found[0] < 0.8)
    mixed = mixup(labels, labels, weights)[1]
    share, mirror = weights.double(), torch.arange(len(labels) - 1, -1, -1)
    expected = share[:, None] * labels.double() + (1 - share)[:, None] * labels.double()[mirror]
    torch.testing.assert_close(mixed.double(), expected, rtol=0, atol=1e-6)
    return mixed


def restated_loss(name: str, compat: str, logits: Tensor, labels: Tensor) -> Tensor:
    """What is published, term by term."""
    smoothing = PUBLISHED[name]["label_smoothing"]
    if PUBLISHED[name]["loss"] == BCE:
        likely = 1 / (1 + torch.exp(-logits))
        total = -(labels * torch.log(likely) + (1 - labels) * torch.log(1 - likely)).sum()
        return total / (labels.sum() if compat == "released" else len(labels))
    per_clip = []
    for row, target in zip(logits, labels, strict=True):
        likely = torch.exp(row) / torch.exp(row).sum()
        smooth = (1 - smoothing) * target + smoothing / CLASSES
        per_clip.append(-(smooth * torch.log(likely)).sum())
    return torch.stack(per_clip).sum() / len(per_clip)


@pytest.mark.parametrize("batch", [6, 5])
@pytest.mark.parametrize(("name", "compat"), RECIPES)
def test_loss_and_its_gradient(name: str, compat: str, batch: int, generator: torch.Generator) -> None:
    recipe = recipe_of(name, compat)
    labels = mixed_labels(name, recipe, labels_of(name, batch))
    logits = torch.randn(batch, CLASSES, generator=generator) * 3
    given = logits.clone().requires_grad_()
    loss = batch_loss(recipe, given, labels)
    (gradient,) = torch.autograd.grad(loss, given)
    wanted = logits.double().requires_grad_()
    expected = restated_loss(name, compat, wanted, labels.double())
    (expected_gradient,) = torch.autograd.grad(expected, wanted)
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=0)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-5, atol=1e-7)


def restated_logits(pooled: Tensor, parameters: dict[str, Tensor]) -> Tensor:
    """LayerNorm and linear of a vector per clip."""
    centred = pooled - pooled.sum(dim=1, keepdim=True) / DIM
    spread = torch.sqrt((centred * centred).sum(dim=1, keepdim=True) / DIM + EPS)
    normed = centred / spread * parameters["norm.weight"] + parameters["norm.bias"]
    return (normed[:, None] * parameters["head.weight"]).sum(dim=2) + parameters["head.bias"]


@pytest.mark.parametrize(("name", "compat"), RECIPES)
def test_gradients_of_the_head(name: str, compat: str, generator: torch.Generator) -> None:
    recipe = recipe_of(name, compat)
    labels = mixed_labels(name, recipe, labels_of(name, 6))
    summary, tokens = torch.randn(6, DIM, generator=generator), torch.randn(6, 12, DIM, generator=generator)
    classifier = Classifier(ClassifierConfig(CLASSES, recipe.pooling, multi_label=recipe.loss == BCE), DIM)
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    wanted = {key: value.detach().double().requires_grad_() for key, value in classifier.named_parameters()}
    batch_loss(recipe, classifier(EncoderOutput(summary, tokens, TokenLayout.full(6, (3, 4)), ())), labels).backward()
    pooled = {"summary": summary.double(), "mean": tokens.double().sum(dim=1) / 12}[PUBLISHED[name]["pooling"]]
    restated_loss(name, compat, restated_logits(pooled, wanted), labels.double()).backward()
    compared = 0
    for key, parameter in classifier.named_parameters():
        expected: Any = wanted[key].grad
        assert parameter.grad is not None
        error = (parameter.grad.double() - expected).abs().max() / expected.abs().max()
        assert error < 1e-5, key
        compared += 1
    assert compared == 4


def test_released_losses_weigh_clips_by_labels(generator: torch.Generator) -> None:
    """On AudioSet the switch changes the loss; with one label per clip it does not."""
    logits = torch.randn(6, CLASSES, generator=generator)
    for name in EAT_ASDA:
        labels = labels_of(name, 6)
        default, release = (batch_loss(recipe_of(name, each), logits, labels) for each in ("default", "released"))
        several = float(labels.sum()) / 6
        assert (several > 1) == name.endswith(("as20k", "as2m"))
        assert float(default) == pytest.approx(
            float(release) * (several if recipe_of(name, "released").loss == BCE else 1)
        )
