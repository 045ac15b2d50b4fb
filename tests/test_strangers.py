"""Plugins of others that keep to no contract, or come in another version than the one that made the weights."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asda_core.audio_files.sources import find_audio
from asda_core.catalog import load_catalog
from asda_core.checkpoint import read_checkpoint, write_model
from asda_core.cli import main
from asda_core.config import RunConfig
from asda_core.config_io import parse, to_yaml
from asda_core.contracts import (
    AdapterSpec,
    FrontEndSpec,
    Losses,
    MixerContext,
    MixerSpec,
    ObjectiveSpec,
    hookimpl,
)
from asda_core.errors import PluginError
from asda_core.finetune.finetune_model import build_finetune_model
from asda_core.finetune.recipes import recipe_for
from asda_core.layout import TokenLayout
from asda_core.model.encoder import Encoder
from asda_core.pretrain.loop import pretrain
from asda_core.system.command_line import EXIT_ERROR
from asda_core.system.paths import newest_step
from asda_core.testing import check_adapter, check_front_end, check_mixer, check_objective
from asda_core.weights.provenance import outdated_installs
from asda_core.weights.tensor_files import read_tensors
from asda_hear.api import get_scene_embeddings, load_model
from asda_hear.evaluate.identity import weights_identity
from tests.conftest import BUILT_IN, TINY
from tests.finetune.making import small_checkpoint, small_recipe, small_run, write_tones
from tests.hear.plans import tone_plan, work_on


@dataclass(frozen=True)
class Nothing:
    """No options."""


class Mean(nn.Module):
    """A mixer that holds to the contract."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear, self.other = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)

    def forward(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        weight = layout.valid.to(tokens).unsqueeze(-1)
        mixed: Tensor = self.linear((tokens * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True))
        return mixed + self.other(tokens)


class Tied(Mean):
    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.other.weight = self.linear.weight


class Stateful(Mean):
    def get_extra_state(self) -> dict[str, int]:
        return {"a": 1}

    def set_extra_state(self, state: dict[str, int]) -> None:
        pass


class Whole(Mean):
    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.order = nn.Parameter(torch.arange(3), requires_grad=False)


class OneToken(Mean):
    def forward(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        return super().forward(tokens, layout) * (torch.nan if layout.class_count > 1 else 1)


def mixer(kind: type[Mean]) -> MixerSpec[Nothing]:
    return MixerSpec("strange", Nothing, lambda config, context: kind(context.dim), "for tests", "here")


def run_with(folder: Path, audio: Path, changes: dict[str, Any], **hooks: Callable[[], Any]) -> Path:
    plugins = [SimpleNamespace(**{name: hookimpl(hook)}) for name, hook in hooks.items()]
    catalog = load_catalog(*BUILT_IN, *plugins, installed=False)
    config = parse(RunConfig, {**TINY, "steps": 2, "checkpoint_every": 1, **changes})
    return pretrain(config, find_audio(audio), folder, catalog, progress=False)


STRANGE = {"encoder": {"dim": 32, "depth": 2, "num_heads": 2, "mixer": "strange"}}


def test_tied_weights_are_saved_and_gone_on_with(audio_folder: Path, tmp_path: Path) -> None:
    check_mixer(mixer(Tied))
    file = run_with(tmp_path / "run", audio_folder, STRANGE, asda_mixers=lambda: mixer(Tied))
    whole = file.read_bytes()
    shutil.rmtree(tmp_path / "run" / "step-00000002")
    assert run_with(tmp_path / "run", audio_folder, STRANGE, asda_mixers=lambda: mixer(Tied)).read_bytes() == whole
    tensors = read_checkpoint(file).tensors
    for layer in range(2):
        one, other = (tensors[f"encoder.blocks.{layer}.mixer.{name}.weight"] for name in ("linear", "other"))
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Stateful, "state_dict may hold only tensors; not a tensor: _extra_state"),
        (Whole, "parameters must be floating point; make order a buffer"),
        (OneToken, r"strange on \(3, 9\) tokens .*: output is not finite"),
    ],
)
def test_mixers(kind: type[Mean], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_mixer(mixer(kind))


def test_what_no_checkpoint_can_hold_shows_before_the_training(audio_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="_extra_state is not a tensor: checkpoints store only tensors"):
        run_with(tmp_path / "run", audio_folder, STRANGE, asda_mixers=lambda: mixer(Stateful))
    assert not (tmp_path / "run").exists()


class Energies(nn.Module):
    """A front end that holds to the contract: mean squares of sixteen parts of each window."""

    sample_rate, num_bins, hop_samples, window_samples = 16_000, 16, 160, 400

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        if fault == "trains":
            self.gain = nn.Parameter(torch.ones(()))

    def forward(self, audio: Tensor) -> Tensor:
        frames = audio.unfold(1, self.window_samples, self.hop_samples)
        energies = frames.unflatten(2, (16, -1)).square().mean(3).transpose(1, 2)
        if self.fault == "clip":
            return energies - energies.amax((1, 2), keepdim=True)
        if self.fault == "batch":
            return energies - energies.amax()
        if self.fault == "next":
            return energies + energies.roll(-1, dims=2)
        return energies.double() if self.fault == "double" else energies


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("", ""),
        ("clip", "frame 3 depends on audio outside its window"),
        ("next", "a delay of one hop is not one frame|depends on audio outside its window"),
        ("batch", "a clip alone differs"),
        ("double", "torch.float64, not torch.float32"),
        ("trains", "no gradient reaches gain; register as buffers"),
    ],
)
def test_front_ends(fault: str, message: str) -> None:
    spec = FrontEndSpec("strange", Nothing, lambda config, context: Energies(fault), "for tests", "here")
    if not message:
        check_front_end(spec)
        return
    with pytest.raises(AssertionError, match=message):
        check_front_end(spec)


class Squares(nn.Module):
    """An objective: tokens are to be small."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer

    def loss(self, encoder: Encoder, features: Tensor, generator: torch.Generator) -> Any:
        encoded = encoder(features, layers=False)
        return self.answer((encoded.tokens - 1).square().mean() + encoded.summary.square().mean())

    def after_step(self, encoder: Encoder, step: int) -> None:
        pass


def with_parts(total: Tensor, parts: object) -> Losses:
    """Losses with parts that the checks of types in these tests would not let in."""
    losses = Losses(total, {})
    object.__setattr__(losses, "parts", parts)
    return losses


OBJECTIVES: list[tuple[Callable[[Tensor], Any], str]] = [
    (lambda total: total, "must return Losses, not Tensor"),
    (lambda total: Losses(total.expand(2), {}), "a scalar tensor as total"),
    (lambda total: Losses(total, {"v": total.expand(3)}), "part 'v' of the objective's loss must be a single number"),
    (lambda total: with_parts(total, {1: 1.0}), "the parts of the objective's loss must have strings as names, not 1"),
    (lambda total: Losses(total, {"loss": total}), "names a part of its loss 'loss', which is a reserved log key"),
    (lambda total: Losses(total, {"step": total}), "names a part of its loss 'step', which is a reserved log key"),
]


@pytest.mark.parametrize(("answer", "message"), OBJECTIVES)
def test_objectives(answer: Callable[[Tensor], Any], message: str, audio_folder: Path, tmp_path: Path) -> None:
    """By the contract, and in a run, before anything is logged or saved."""
    spec = ObjectiveSpec("strange", Nothing, lambda config, context: Squares(answer), "for tests", "here")
    with pytest.raises(AssertionError, match=message):
        check_objective(spec)
    with pytest.raises(PluginError, match=message):
        run_with(tmp_path / "run", audio_folder, {"objective": "strange"}, asda_objectives=lambda: spec)
    assert newest_step(tmp_path / "run") is None


class Attaches(nn.Module):
    """An adapter that does something to an encoder."""

    def __init__(self, what: Callable[[Encoder], None]) -> None:
        super().__init__()
        self.what = what

    def attach(self, encoder: Encoder) -> None:
        self.what(encoder)


def unfreeze(encoder: Encoder) -> None:
    encoder.requires_grad_(True)
    encoder.extra = nn.Parameter(torch.ones(3))


def replace_token(encoder: Encoder) -> None:
    assert encoder.class_token is not None
    encoder.class_token = nn.Parameter(encoder.class_token.detach().clone())


def fail(encoder: Encoder) -> None:
    raise ValueError("boo")


def adapter(what: Callable[[Encoder], None]) -> AdapterSpec[Nothing]:
    return AdapterSpec("strange", Nothing, lambda config, context: Attaches(what), "for tests", "here")


def begun(folder: Path, audio: Path, what: Callable[[Encoder], None]) -> Path:
    """A run with an adapter, from a checkpoint that is made first."""
    start = run_with(folder / "start", audio, {})
    plugin = SimpleNamespace(asda_adapters=hookimpl(lambda: adapter(what)))
    catalog = load_catalog(*BUILT_IN, plugin, installed=False)
    config = parse(RunConfig, {**TINY, "steps": 2, "adapter": "strange"})
    return pretrain(config, find_audio(audio), folder / "run", catalog, progress=False, init=read_checkpoint(start))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda encoder: None, "the adapter adds no parameters, so there is nothing to train"),
        (replace_token, "replaces or removes encoder parameters: class_token"),
        (fail, r"adapter 'strange' of \(given\) 0 cannot be built: ValueError: boo"),
    ],
)
def test_adapters(what: Callable[[Encoder], None], message: str, audio_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=message):
        begun(tmp_path, audio_folder, what)
    if what is not fail:
        with pytest.raises(AssertionError, match=message):
            check_adapter(adapter(what))


def test_an_adapter_cannot_unfreeze_the_encoder(audio_folder: Path, tmp_path: Path) -> None:
    file = begun(tmp_path, audio_folder, unfreeze)
    before, after = (read_checkpoint(each).tensors for each in (tmp_path / "start", file))
    assert all(torch.equal(after[name], value) for name, value in before.items() if name.startswith("encoder."))


MODULE = """
from dataclasses import dataclass
from torch import nn
from asda_core.contracts import MixerSpec, hookimpl

@dataclass(frozen=True)
class Options:
    factor: float = {factor}

class Mean(nn.Module):
    def __init__(self, dim, factor):
        super().__init__()
        self.linear, self.factor = nn.Linear(dim, dim), factor

    def forward(self, tokens, layout):
        weight = layout.valid.to(tokens).unsqueeze(-1)
        return self.linear(tokens + self.factor * (tokens * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True))

@hookimpl
def asda_mixers():
    return MixerSpec("visiting", Options, lambda o, context: Mean(context.dim, o.factor), "for tests", "here")
"""
Upgrade = Callable[[str, float], None]


@pytest.fixture
def upgrade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Upgrade]:
    """upgrade(version, factor) installs the visitor, or puts another version in its place."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)

    def install(version: str, factor: float) -> None:
        sys.modules.pop("visitor", None)
        for old in [*site.glob("*.dist-info/*"), *site.glob("*.dist-info")]:
            old.unlink() if old.is_file() else old.rmdir()
        (site / "visitor.py").write_text(MODULE.format(factor=factor))
        info = site / f"visitor-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: visitor\nVersion: {version}\n")
        (info / "entry_points.txt").write_text("[asda]\nvisiting = visitor\n")

    sys.dont_write_bytecode = True
    yield install
    sys.dont_write_bytecode = False
    sys.modules.pop("visitor", None)


def test_an_editable_installation_keeps_its_version(
    upgrade: Upgrade, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its code is that of the folder, whose version counts only once it is installed again."""
    upgrade("1.0", 1.0)
    source, info = tmp_path / "my source", tmp_path / "site" / "visitor-1.0.dist-info"
    source.mkdir()
    (source / "pyproject.toml").write_text('[project]\nname = "visitor"\nversion = "1.1"\n')
    origin = {"url": source.as_uri(), "dir_info": {"editable": True}}
    (info / "direct_url.json").write_text(json.dumps(origin))
    assert main(["plugins"]) == 0
    printed = capsys.readouterr().out
    assert f"problem: visitor is installed as 1.0, but {source / 'pyproject.toml'} states 1.1; run `pip" in printed
    for text in (json.dumps({**origin, "dir_info": {}}), json.dumps({**origin, "dir_info": {"editable": False}}), "{"):
        (info / "direct_url.json").write_text(text)
        assert outdated_installs(["visitor", "gone"]) == []
    (info / "direct_url.json").write_text(json.dumps(origin))
    for version in ("v1.0", "01.0", "1.0.0"):  # other spellings of 1.0
        (source / "pyproject.toml").write_text(f'[project]\nname = "visitor"\nversion = "{version}"\n')
        assert outdated_installs(["visitor"]) == []
    (source / "pyproject.toml").write_text('[project]\nname = "visitor"\ndynamic = ["version"]\n')
    assert outdated_installs(["visitor"]) == []


def test_show_builds_mixers_that_read_values(
    upgrade: Upgrade, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the meta device, where modules are built without memory for weights, tensors have none."""
    upgrade("1.0", 1.0)
    module = tmp_path / "site" / "visitor.py"
    drawn = "nn.Linear(dim, dim), float(torch.tensor(factor).exp())"
    module.write_text(f"import torch\n{module.read_text().replace('nn.Linear(dim, dim), factor', drawn)}")
    (tmp_path / "run.yaml").write_text(json.dumps({**TINY, "encoder": {**TINY["encoder"], "mixer": "visiting"}}))  # type: ignore[dict-item]
    assert main(["show", str(tmp_path / "run.yaml")]) == 0
    printed = capsys.readouterr().out
    assert "# mixer visiting in full" in printed
    assert "GFLOPs" in printed


def made_by(file: Path) -> str:
    return read_checkpoint(file).plugins["mixer"]["version"]


def test_another_version_of_a_plugin_is_another_model(
    upgrade: Upgrade, audio_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights stay those of the version that made them, and what an embedding or a score belongs to changes."""
    upgrade("1.0", 1.0)
    encoder = {**TINY["encoder"], "mixer": "visiting"}  # type: ignore[dict-item]
    plain = {**TINY, "encoder": encoder, "steps": 1, "log_every": 1}
    (tmp_path / "run.yaml").write_text(json.dumps(plain))
    pretraining = ["pretrain", str(tmp_path / "run.yaml"), "--data", str(audio_folder), "--device", "cpu"]
    run, out = tmp_path / "run", tmp_path / "out"
    embedding = ["embed", str(audio_folder), "--checkpoint", str(run), "--out", str(out), "--device", "cpu"]
    assert main([*pretraining, "--out", str(run)]) == 0
    assert main(embedding) == 0
    known = weights_identity(str(run / "model.safetensors"))
    assert "visitor 1.0" in known
    assert weights_identity(str(tmp_path / "run.yaml")).endswith("+visitor 1.0")  # random weights are its own too
    upgrade("2.0", 0.5)
    capsys.readouterr()
    assert main([*pretraining, "--out", str(run)]) == 0  # nothing is left to do
    assert "than it was trained with: mixer visiting of visitor: 1.0, now 2.0.\n" in capsys.readouterr().err
    assert main(["convert", str(run), str(tmp_path / "converted.safetensors")]) == 0
    assert [made_by(each) for each in (run, tmp_path / "converted.safetensors")] == ["1.0", "1.0"]
    assert weights_identity(str(run / "model.safetensors")) == known.replace("visitor 1.0", "visitor 2.0")
    assert weights_identity(str(tmp_path / "run.yaml")).endswith("+visitor 2.0")
    tensors, metadata = read_tensors(run / "model.safetensors")
    plugins = json.loads(metadata["plugins"])
    plugins["objective"], plugins["mixer"] = plugins["mixer"], plugins["objective"]
    write_model(tmp_path / "other.safetensors", tensors, {**metadata, "plugins": json.dumps(plugins)})
    assert "visitor" not in weights_identity(str(tmp_path / "other.safetensors"))  # it only trained it
    capsys.readouterr()
    assert main(embedding) == EXIT_ERROR
    assert "holds embeddings with other settings" in capsys.readouterr().err
    assert main([*pretraining, "--out", str(tmp_path / "next"), "--init", str(run)]) == 0
    assert "was made with the mixer 'visiting' of visitor 1.0, and visitor 2.0 is installed" in capsys.readouterr().err
    assert made_by(tmp_path / "next") == "2.0"


def test_cells_of_a_plan_belong_to_the_versions_of_their_plugins(upgrade: Upgrade, tmp_path: Path) -> None:
    plan = tone_plan(tmp_path, axes={"encoder.mixer": ["standard", "visiting"]}, seeds=[0])
    names = []
    for version in ("1.0", "2.0"):
        upgrade(version, 1.0)
        catalog = load_catalog()
        names.append([cell.name for cell in work_on(plan, tmp_path / "out", catalog).plan.cells])
    assert names[0][0] == names[1][0]
    assert names[0][1] != names[1][1]


def test_a_plugin_that_does_not_load_fails_the_check(
    upgrade: Upgrade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one of which an interrupted uninstall left no name."""
    upgrade("1.0", 1.0)
    (tmp_path / "site" / "visitor.py").write_text("import a_package_that_is_not_there")
    monkeypatch.setattr("asda_core.commands.plugins.check_catalog", lambda catalog: ("", []))
    assert main(["plugins", "--check"]) == EXIT_ERROR
    assert "visiting of visitor: ModuleNotFoundError" in capsys.readouterr().err
    (tmp_path / "site" / "visitor-1.0.dist-info" / "METADATA").unlink()
    assert main(["plugins"]) == 0
    assert "problem: visiting of (unknown): ModuleNotFoundError" in capsys.readouterr().out


def test_a_fine_tuning_belongs_to_the_versions_of_its_plugins(
    upgrade: Upgrade, audio_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upgrade("1.0", 1.0)
    small_checkpoint(tmp_path / "start", load_catalog(), small_run("visiting"))
    (tmp_path / "recipe.yaml").write_text(to_yaml(small_recipe(steps=2)))
    tones = write_tones(tmp_path / "tones", clips=6)
    command = [
        "finetune",
        str(tmp_path / "recipe.yaml"),
        "--checkpoint",
        f"a={tmp_path / 'start'}",
        "--data",
        str(tones),
    ]
    command += ["--out", str(tmp_path / "out")]
    assert main(command) == 0
    upgrade("2.0", 0.5)
    capsys.readouterr()
    assert main(command) == 0
    assert "was made with the mixer 'visiting' of visitor 1.0, and visitor 2.0 is installed" in capsys.readouterr().err
    assert sorted(made_by(each) for each in (tmp_path / "out").glob("a-*/model.safetensors")) == ["1.0", "2.0"]


def test_errors_of_another_version_tell_it(
    upgrade: Upgrade, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An option that was renamed, and weights of another shape."""
    upgrade("1.0", 1.0)
    stated = {"name": "visiting", "options": {"factor": 2.0}}
    start = small_checkpoint(tmp_path / "start", load_catalog(), small_run(stated))
    upgrade("2.0", 1.0)
    module = tmp_path / "site" / "visitor.py"
    whole = module.read_text()
    tones = write_tones(tmp_path / "tones", clips=2)
    embed = ["embed", str(tones), "--checkpoint", str(start.file), "--out", str(tmp_path / "out"), "--device", "cpu"]
    (tmp_path / "recipe.yaml").write_text(to_yaml(small_recipe(steps=2)))
    tune = ["finetune", str(tmp_path / "recipe.yaml"), "--checkpoint", str(start.file), "--data", str(tones)]
    changes = {
        "unknown config key 'factor'": whole.replace("factor: float", "weight: float").replace("o.factor", "o.weight"),
        "does not match its config": whole.replace("nn.Linear(dim, dim)", "nn.Sequential(nn.Linear(dim, dim))"),
    }
    for message, text in changes.items():
        module.write_text(text)
        for command in (embed, [*tune, "--out", str(tmp_path / "tuned")]):
            sys.modules.pop("visitor", None)
            assert main(command) == EXIT_ERROR
            told = capsys.readouterr().err
            assert message in told
            assert "made with the mixer 'visiting' of visitor 1.0, and visitor 2.0 is installed." in told


class Drawn(Mean):
    """Holds what it drew in no state."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.drawn = torch.randn(dim)

    def forward(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        return super().forward(tokens, layout) + self.drawn


class WildGradient(Mean):
    """Its output is finite, and the gradient of a square root at 0 is not."""

    def forward(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        return super().forward(tokens, layout) + (self.linear.weight[0] * 0).abs().sqrt()


class Double(Mean):
    def forward(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        return super().forward(tokens, layout).double()


class Lazy(Mean):
    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.linear = nn.LazyLinear(dim)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Drawn, "state_dict is incomplete"),
        (WildGradient, "gradients are not finite: linear.weight"),
        (Double, "torch.float64, not torch.float32 like the tokens"),
        (Lazy, "no shape yet: linear.weight, linear.bias"),
    ],
)
def test_mixers_that_train_badly(kind: type[Mean], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_mixer(mixer(kind))


def test_a_parameter_that_one_layer_does_not_use() -> None:
    def build(config: Nothing, context: MixerContext) -> Mean:
        made = Mean(context.dim)
        if context.layer == 0:
            made.unused = nn.Parameter(torch.zeros(3))
        return made

    with pytest.raises(AssertionError, match="these parameters do not change in training: unused"):
        check_mixer(MixerSpec("strange", Nothing, build, "for tests", "here"))


def test_a_front_end_that_draws_what_it_does_not_save() -> None:
    class Random(Energies):
        def __init__(self) -> None:
            super().__init__("")
            self.drawn = 1 + torch.rand(16, 1)

        def forward(self, audio: Tensor) -> Tensor:
            return super().forward(audio) * self.drawn

    with pytest.raises(AssertionError, match="state_dict is incomplete"):
        check_front_end(FrontEndSpec("strange", Nothing, lambda config, context: Random(), "for tests", "here"))


class Shifted(nn.Module):
    """A mixer around another, with a parameter of its own and something that no state holds."""

    def __init__(self, mixer: nn.Module, dim: int) -> None:
        super().__init__()
        self.mixer, self.shift = mixer, nn.Parameter(torch.zeros(dim))
        self.register_buffer("drawn", torch.randn(dim), persistent=False)

    def forward(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        mixed: Tensor = self.mixer(tokens, layout)
        return mixed + self.shift * self.drawn


def shift(encoder: Encoder) -> None:
    for block in encoder.blocks:
        block.mixer = Shifted(block.mixer, encoder.config.dim)  # type: ignore[arg-type]


def louder_summary(encoder: Encoder) -> None:
    """The class token counts twice, and the patches hear nothing of it."""
    encoder.scale = nn.Parameter(torch.ones(()))
    encoder.register_forward_hook(lambda module, given, made: replace(made, summary=2 * module.scale * made.summary))


@pytest.mark.parametrize(
    ("what", "message"),
    [(shift, "state_dict is incomplete"), (louder_summary, "attaching changes the output")],
)
def test_adapters_that_are_another_model(what: Callable[[Encoder], None], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_adapter(adapter(what))


class OneRow(Mean):
    """Its output would be broadcast."""

    def forward(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        return super().forward(tokens, layout).mean(1, keepdim=True)


class Forgets(Mean):
    def forward(self, tokens: Tensor, layout: TokenLayout) -> Any:
        super().forward(tokens, layout)


class WithMaps(Mean):
    def forward(self, tokens: Tensor, layout: TokenLayout) -> Any:
        return super().forward(tokens, layout), None


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (OneRow, r"the mixer OneRow returned shape \(\d+, 1, 32\) for tokens of"),
        (Forgets, "the mixer Forgets returned NoneType, not a tensor"),
        (WithMaps, "the mixer WithMaps returned tuple, not a tensor"),
        (Double, r"the mixer Double returned torch\.float64 for tokens of torch\.float32"),
    ],
)
def test_mixers_that_return_something_else(kind: type[Mean], message: str, audio_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=message):
        run_with(tmp_path / "run", audio_folder, STRANGE, asda_mixers=lambda: mixer(kind))


def test_a_front_end_does_not_dither_in_training(audio_folder: Path, tmp_path: Path) -> None:
    """What it draws in training mode would be other numbers in every run, and after every resume."""

    class Dithers(Energies):
        def forward(self, audio: Tensor) -> Tensor:
            return super().forward(audio + 0.01 * torch.randn_like(audio) if self.training else audio)

    spec = FrontEndSpec("strange", Nothing, lambda config, context: Dithers(""), "for tests", "here")
    encoder = {**TINY["encoder"], "patch_frames": 8, "patch_bins": 8}  # type: ignore[dict-item]
    changes = {"front_end": "strange", "encoder": encoder}
    files = [run_with(tmp_path / name, audio_folder, changes, asda_front_ends=lambda: spec) for name in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()


class Normed(Mean):
    """Keeps figures of what it hears."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.norm = nn.BatchNorm1d(dim)

    def forward(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        normed: Tensor = self.norm(super().forward(tokens, layout).transpose(1, 2)).transpose(1, 2)
        return normed


def test_batch_norms_beside_an_adapter_and_in_a_model_of_another(tmp_path: Path) -> None:
    """The frozen encoder keeps its figures, and embeddings are those of evaluation whatever the mode of the whole."""
    catalog = load_catalog(*BUILT_IN, SimpleNamespace(asda_mixers=hookimpl(lambda: mixer(Normed))), installed=False)
    start = small_checkpoint(tmp_path / "start", catalog, small_run("strange"))
    recipe = recipe_for(small_recipe(), "low_rank", catalog)
    tuned = build_finetune_model(catalog, recipe, start, ("a", "b"))
    tuned.set_training(True)
    before = {name: buffer.clone() for name, buffer in tuned.encoder.named_buffers()}
    tuned.encoder(torch.randn(4, 128, 32))
    assert all(torch.equal(buffer, before[name]) for name, buffer in tuned.encoder.named_buffers())
    assert tuned.encoder.training
    whole = build_finetune_model(catalog, small_recipe(), start, ("a", "b"))
    whole.set_training(True)
    assert whole.encoder.blocks[0].mixer.norm.training  # type: ignore[union-attr]
    model = load_model(start.file, catalog=catalog)
    audio = torch.randn(3, 16_000)
    wanted = get_scene_embeddings(audio, model)
    nn.Sequential(model).train()
    assert torch.equal(get_scene_embeddings(audio, model), wanted)


def test_a_plugin_that_prints_and_changes_torch(
    upgrade: Upgrade, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upgrade("1.0", 1.0)
    (tmp_path / "site" / "visitor.py").write_text(
        "import torch\nprint('hello')\ntorch.set_default_dtype(torch.float64)\n1/0"
    )
    assert main(["plugins", "--json"]) == 0
    assert torch.get_default_dtype() == torch.float32
    told = capsys.readouterr()
    json.loads(told.out)
    assert "hello" in told.err


def test_adapters_pass_their_contract_beside_a_batch_norm() -> None:
    """Whose figures are of the frozen encoder, also where the adapter learns a difference on its bias."""
    check_mixer(mixer(Normed))
    for offer in load_catalog(*BUILT_IN, installed=False).family_offers("adapter"):
        check_adapter(offer.spec, mixer(Normed))


@pytest.mark.parametrize("name", ["low_rank", "bias_only"])
def test_batch_norms_beside_an_adapter_in_pre_training(name: str, audio_folder: Path, tmp_path: Path) -> None:
    catalog = load_catalog(*BUILT_IN, SimpleNamespace(asda_mixers=hookimpl(lambda: mixer(Normed))), installed=False)
    config = parse(RunConfig, {**TINY, **STRANGE, "steps": 2})
    first = pretrain(config, find_audio(audio_folder), tmp_path / "first", catalog, progress=False)
    adapted = parse(RunConfig, {**TINY, **STRANGE, "steps": 2, "adapter": name})
    start = read_checkpoint(first)
    second = pretrain(adapted, find_audio(audio_folder), tmp_path / "second", catalog, progress=False, init=start)
    after = read_checkpoint(second).tensors
    moved = [key for key, value in start.tensors.items() if "running" in key and not torch.equal(after[key], value)]
    assert any("running" in key for key in start.tensors)
    assert moved == []
