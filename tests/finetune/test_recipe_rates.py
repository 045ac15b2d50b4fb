"""Rates, weight decay and drop path of every parameter under every published recipe, against their formulas."""

import math
import re

import pytest
import torch
from torch import Tensor, nn

from asda_core.catalog import Catalog
from asda_core.checkpoint import Checkpoint
from asda_core.config import EncoderConfig
from asda_core.finetune.finetune_model import FinetuneModel, build_finetune_model
from asda_core.finetune.optimizing import parameter_groups, set_rates, step_decay_factor
from asda_core.finetune.rates import drop_path_rates
from asda_core.finetune.recipes import changed_recipe, load_recipe, recipe_for
from asda_core.finetune_config import StepDecayConfig
from asda_core.layout import TokenLayout
from asda_core.model.block import Block
from asda_core.pretrain.schedule import optimizer_of
from tests.finetune.making import small_checkpoint, small_run
from tests.finetune.published import EAT_ASDA, PUBLISHED, clips_of

DEPTH = 12
LAYERS = {"embeddings": -1, **{f"block {number}": number for number in range(DEPTH)}, "head": DEPTH}
Rates = dict[str, float]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, catalog: Catalog) -> Checkpoint:
    return small_checkpoint(tmp_path_factory.mktemp("start"), catalog, small_run("standard", depth=DEPTH))


def layer_of(name: str) -> str:
    """In the words of the formula."""
    if found := re.search(r"blocks\.(\d+)\.", name):
        return f"block {found.group(1)}"
    return "head" if name.startswith("classifier.") else "embeddings"


class Trained:
    """A recipe on a model of 12 blocks, with the optimiser that training would have."""

    def __init__(self, name: str, compat: str, catalog: Catalog, start: Checkpoint, mode: str = "") -> None:
        recipe = load_recipe(f"finetune/{name}")
        recipe = recipe_for(recipe, mode, catalog) if mode else recipe
        self.recipe = changed_recipe(recipe, ["compat=released"]) if compat == "released" else recipe
        self.tuned: FinetuneModel = build_finetune_model(catalog, self.recipe, start, ("a", "b"))
        self.optimizer = optimizer_of(parameter_groups(self.tuned, self.recipe), self.recipe.optimizer)

    def settings(self, key: str) -> dict[str, set[float]]:
        """Layer -> the values of a key of the groups that its parameters are in."""
        group_of = {id(p): group for group in self.optimizer.param_groups for p in group["params"]}
        found: dict[str, set[float]] = {}
        for name, parameter in self.tuned.trained_parameters():
            found.setdefault(layer_of(name), set()).add(group_of[id(parameter)][key])
        return found

    def rates(self, step: int, steps: int, steps_per_epoch: float) -> Rates:
        """Layer -> its one rate."""
        set_rates(self.optimizer, self.recipe, step, steps, steps_per_epoch)
        found = self.settings("lr")
        assert all(len(rates) == 1 for rates in found.values())
        return {layer: rates.pop() for layer, rates in found.items()}


def restated(name: str, compat: str, layer: str, step: int) -> float:
    """The rate of a layer of an ASDA or EAT recipe."""
    keys = PUBLISHED[name]
    peak, floor, warmup, steps = (
        keys[key] for key in ("optimizer.peak_lr", "optimizer.floor_lr", "optimizer.warmup_steps", "steps")
    )
    number = LAYERS[layer]
    scale = 1.0 if layer == "head" else 0.65 ** (DEPTH - number)
    wave = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
    if compat == "default":
        return scale * (peak * (step + 1) / warmup if step < warmup else floor + (peak - floor) * wave)
    scale = 1.0 if layer == "embeddings" else scale
    lowest = min(floor, peak * scale)
    return lowest + (peak * scale - lowest) * (step / warmup if step < warmup else wave)


@pytest.mark.parametrize("compat", ["default", "released"])
@pytest.mark.parametrize("name", EAT_ASDA)
def test_rates_of_asda_and_eat(name: str, compat: str, catalog: Catalog, start: Checkpoint) -> None:
    trained = Trained(name, compat, catalog, start)
    steps, warmup = PUBLISHED[name]["steps"], PUBLISHED[name]["optimizer.warmup_steps"]
    assert trained.recipe.steps == steps
    for step in (0, 1, warmup // 2, warmup - 1, warmup, (warmup + steps) // 2, steps - 1):
        found = trained.rates(step, steps, clips_of(name) / PUBLISHED[name]["data.batch_size"])
        assert found.keys() == LAYERS.keys()
        for layer, rate in found.items():
            assert rate == pytest.approx(restated(name, compat, layer, step), rel=1e-9), (layer, step)
    at_peak = trained.rates(warmup, steps, 1.0)
    assert at_peak["head"] == PUBLISHED[name]["optimizer.peak_lr"]
    assert at_peak["embeddings"] == pytest.approx(at_peak["head"] * (1 if compat == "released" else 0.65**13))


@pytest.mark.parametrize("name", EAT_ASDA)
def test_constant_rates_of_the_release(name: str, catalog: Catalog, start: Checkpoint) -> None:
    """Blocks whose peak is below the floor keep it: 0 to 2 at 5e-5, none at 2e-4; by default all rise and fall."""
    peak, steps = PUBLISHED[name]["optimizer.peak_lr"], PUBLISHED[name]["steps"]
    for compat in ("released", "default"):
        trained = Trained(name, compat, catalog, start)
        seen = [trained.rates(step, steps, 1.0) for step in range(0, steps, steps // 40)]
        constant = [layer for layer in LAYERS if len({rates[layer] for rates in seen}) == 1]
        assert constant == (["block 0", "block 1", "block 2"] if (compat, peak) == ("released", 5e-5) else [])
        for layer in constant:
            assert seen[0][layer] == pytest.approx(5e-5 * 0.65 ** (12 - LAYERS[layer]))


@pytest.mark.parametrize(("compat", "algorithm"), [("default", "AdamW"), ("released", "FairseqAdam")])
def test_weight_decay_of_asda(compat: str, algorithm: str, catalog: Catalog, start: Checkpoint) -> None:
    """0.05 on weights; the release also decays norms, biases and class token."""
    trained = Trained("asda_esc50", compat, catalog, start)
    assert type(trained.optimizer).__name__ == algorithm
    group_of = {id(p): group for group in trained.optimizer.param_groups for p in group["params"]}
    plain = 0
    for name, parameter in trained.tuned.trained_parameters():
        weight = name.endswith("weight") and "norm" not in name
        group = group_of[id(parameter)]
        assert group["weight_decay"] == (0.05 if weight or compat == "released" else 0.0), name
        assert (group["betas"], group["eps"]) == ((0.9, 0.95), 1e-8)
        plain += not weight
    assert plain > 4 * DEPTH


OTHERS = [name for name in PUBLISHED if name not in EAT_ASDA]


def epochs_of(name: str) -> float:
    return clips_of(name) / PUBLISHED[name]["data.batch_size"]


@pytest.mark.parametrize("name", OTHERS)
def test_rates_by_epoch(name: str, catalog: Catalog, start: Checkpoint) -> None:
    """One rate for all, in every epoch at its first, middle and last update: warm-up if any, and steps down."""
    keys, per_epoch = PUBLISHED[name], epochs_of(name)
    trained = Trained(name, "default", catalog, start)
    steps = math.ceil(keys["epochs"] * per_epoch)
    for epoch in range(keys["epochs"]):
        first, behind = math.ceil(epoch * per_epoch), math.ceil((epoch + 1) * per_epoch)
        downs = 0
        if begin := keys.get("step_decay.first_epoch"):
            downs = len(range(begin, epoch + 1, keys["step_decay.every"]))
        for step in (first, (first + behind) // 2, behind - 1):
            risen = min(1.0, (step + 1) / (keys["optimizer.warmup_steps"] or 1))
            expected = keys["optimizer.peak_lr"] * risen * keys.get("step_decay.factor", 1.0) ** downs
            found = trained.rates(step, steps, per_epoch)
            assert list(found.values()) == pytest.approx([expected] * len(found), rel=1e-9), (epoch, step)
    everything = {*LAYERS}
    assert found.keys() == (everything if keys["mode"] == "full" else everything - {"embeddings"})
    assert {value for values in trained.settings("weight_decay").values() for value in values} == {
        keys["optimizer.weight_decay"]
    }


def test_steps_down_of_ssast_by_hand() -> None:
    twentieth = StepDecayConfig(first_epoch=10, every=5, factor=0.5)
    assert [step_decay_factor(twentieth, epoch) for epoch in (0, 9, 10, 14, 15, 20, 24)] == [
        1,
        1,
        0.5,
        0.5,
        0.25,
        0.125,
        0.125,
    ]
    each = StepDecayConfig(first_epoch=6, every=1, factor=0.85)
    assert [step_decay_factor(each, epoch) for epoch in (5, 6, 7, 49)] == pytest.approx([1, 0.85, 0.85**2, 0.85**44])


def test_full_fine_tuning_beside_aat(catalog: Catalog, start: Checkpoint) -> None:
    trained = Trained("aat_esc50", "default", catalog, start, mode="full")
    assert trained.recipe.data.batch_size == 48
    found = trained.rates(0, 100, 33.3)
    assert found.keys() == LAYERS.keys()
    assert set(found.values()) == {1e-5}


@pytest.mark.parametrize("name", [*EAT_ASDA, "ssast_esc50", "aat_esc50"])
def test_drop_path_of_the_blocks(name: str, catalog: Catalog, start: Checkpoint) -> None:
    blocks = Trained(name, "default", catalog, start).tuned.encoder.blocks
    expected = torch.linspace(0, 0.1, DEPTH).tolist() if name in EAT_ASDA else [0.0] * DEPTH
    assert [block.drop_path for block in blocks] == pytest.approx(expected, abs=1e-7)


def test_drop_path_rates_of_any_depth() -> None:
    for depth in (1, 2, 3, 12, 24):
        assert drop_path_rates(depth, 0.1) == pytest.approx(torch.linspace(0, 0.1, depth).tolist(), abs=1e-7)


class Constant(nn.Module):
    """A branch of ones."""

    def forward(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        return torch.ones_like(tokens)


def block_of_ones(mlp: bool) -> Block:
    """Adds 1 to its tokens for each branch."""
    config = EncoderConfig(dim=4, num_heads=1, depth=1, norm="pre", mlp_ratio=1.0 if mlp else 0.0)
    block = Block(config, Constant())
    if mlp:
        block.mlp = Constant()
    return block


def test_drop_path_in_training_and_in_evaluation() -> None:
    """A branch of a clip is gone with the probability, else larger: what is expected stays; in evaluation all stays."""
    clips, chance = 20_000, 0.3
    tokens, layout = torch.zeros(clips, 3, 4), TokenLayout.full(clips, (3, 1))
    block = block_of_ones(mlp=True)
    block.drop_path = chance
    torch.manual_seed(0)
    given = block.train()(tokens, layout)[0]
    kept = given[:, 0, 0]
    assert torch.equal(given, kept[:, None, None].expand_as(given))  # whole clips
    counts = [int(((kept - each / 0.7).abs() < 1e-5).sum()) for each in (0, 1, 2)]
    assert sum(counts) == clips
    for count, share in zip(counts, (chance**2, 2 * chance * (1 - chance), (1 - chance) ** 2), strict=True):
        assert count / clips == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / clips))  # branches alone
    assert float(kept.mean()) == pytest.approx(2.0, abs=0.03)
    assert torch.equal(block.eval()(tokens, layout)[0], torch.full_like(tokens, 2.0))
    block.drop_path = 0.0
    assert torch.equal(block.train()(tokens, layout)[0], torch.full_like(tokens, 2.0))


def test_drop_path_leaves_what_the_objective_regresses_on() -> None:
    block = block_of_ones(mlp=False)
    block.drop_path = 0.9
    tokens = torch.zeros(50, 3, 4)
    torch.manual_seed(0)
    given, bent = block.train()(tokens, TokenLayout.full(50, (3, 1)))
    assert given.unique().tolist() == pytest.approx([0.0, 10.0])
    assert torch.equal(bent, torch.ones_like(bent))
