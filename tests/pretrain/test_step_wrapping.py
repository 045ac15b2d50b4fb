"""How a step is computed: the same numbers with recomputation and compilation, near ones in bfloat16."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from asda_core.assemble import build_parts
from asda_core.audio_files.sources import find_audio
from asda_core.catalog import Catalog
from asda_core.config import RunConfig
from asda_core.config_io import signature, to_yaml
from asda_core.contracts import Losses
from asda_core.errors import ConfigError
from asda_core.pretrain.loop import pretrain
from asda_core.pretrain.processes import SINGLE_PROCESS
from asda_core.pretrain.step import Step
from asda_core.pretrain.step_wrapping import prepare
from asda_core.settings.compute import ComputeConfig
from tests.pretrain.test_loop import losses

CPU = torch.device("cpu")
WHOLE = """
import torch
from asda_core.assemble import build_encoder
from asda_core.catalog import load_catalog
from asda_core.config import EncoderConfig, PluginChoice

features = torch.randn(2, 128, 96)
for mixer in ("standard", "differential", "differential_v1", "differential_v2", "dint", "grouped_differential"):
    encoder = build_encoder(load_catalog(), EncoderConfig(dim=64, depth=2, num_heads=8, mixer=PluginChoice(mixer)))
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    given, wanted = compiled(features).tokens, encoder(features).tokens
    torch.testing.assert_close(given, wanted)
    weights = list(encoder.parameters())
    gradients = [torch.autograd.grad(each.square().sum(), weights) for each in (given, wanted)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    for frames in (128, 160):  # also where the compiler traces any length
        torch.testing.assert_close(compiled(features.repeat(1, 1, 2)[..., :frames]).tokens,
                                   encoder(features.repeat(1, 1, 2)[..., :frames]).tokens)
    torch._dynamo.reset()
    print(mixer)
"""


def one_pass(catalog: Catalog, config: RunConfig) -> tuple[Tensor, dict[str, Tensor], int]:
    """Loss, gradients by name, and bytes that are kept for the backward pass beside the parameters."""
    parts = build_parts(catalog, config)
    step = prepare(Step(parts.encoder, parts.objective, config.compute.precision), config.compute, SINGLE_PROCESS, CPU)
    own = {parameter.data_ptr() for parameter in step.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    features = torch.randn(4, 128, 64, generator=torch.Generator().manual_seed(3))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, _ = step(features, 5)
        held = sum(kept.values())
        loss.backward()
    gradients = {name: p.grad for name, p in step.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, held


def computed(config: RunConfig, **keys: Any) -> RunConfig:
    return replace(config, compute=ComputeConfig(**keys))


def test_recomputed_blocks_give_the_same_numbers_in_less_memory(catalog: Catalog, tiny: RunConfig) -> None:
    deep = replace(tiny, encoder=replace(tiny.encoder, depth=6))
    loss, gradients, kept = one_pass(catalog, deep)
    again, others, kept_less = one_pass(catalog, computed(deep, recompute=True))
    assert torch.equal(loss, again)
    assert gradients.keys() == others.keys()
    assert all(torch.equal(gradients[name], others[name]) for name in gradients)
    assert kept_less < kept / 2


def test_dropout_repeats_no_draw_of_the_objective(catalog: Catalog, tiny: RunConfig) -> None:
    """And is drawn alike again for the same pass, and leaves torch's own generator as it was."""

    class Draws(torch.nn.Module):
        def loss(self, encoder: torch.nn.Module, features: Tensor, generator: torch.Generator) -> Losses:
            masks, dropped = torch.rand(100, generator=generator), torch.rand(100)
            return Losses(next(encoder.parameters()).sum(), {"same": (masks == dropped).sum(), "first": dropped[0]})

    step, features = Step(build_parts(catalog, tiny).encoder, Draws()), torch.zeros(1, 128, 64)
    before = torch.get_rng_state()
    found = [step(features, seed)[1] for seed in (5, 5, 6)]
    assert torch.equal(torch.get_rng_state(), before)
    assert [int(each["same"]) for each in found] == [0, 0, 0]
    assert found[0]["first"] == found[1]["first"] != found[2]["first"]


def test_bfloat16_is_near_and_keeps_its_weights(
    catalog: Catalog, tiny: RunConfig, audio_folder: Path, tmp_path: Path
) -> None:
    loss, gradients, _ = one_pass(catalog, tiny)
    near, others, _ = one_pass(catalog, computed(tiny, precision="bfloat16"))
    assert near.dtype == torch.float32
    assert near == pytest.approx(float(loss), rel=0.02)
    assert near != loss
    assert all(gradient.dtype == torch.float32 for gradient in others.values())
    assert others.keys() == gradients.keys()
    files = find_audio(audio_folder)
    pretrain(computed(tiny, precision="bfloat16"), files, tmp_path / "half", catalog, progress=False)
    pretrain(tiny, files, tmp_path / "full", catalog, progress=False)
    for line, wanted in zip(losses(tmp_path / "half"), losses(tmp_path / "full"), strict=True):
        assert line["loss"] == pytest.approx(wanted["loss"], rel=0.05)


def test_what_goes_into_the_signature(tiny: RunConfig) -> None:
    assert signature(computed(tiny, recompute=True, compile=True, sharding="full")) == signature(tiny)
    assert signature(computed(tiny, precision="bfloat16")) != signature(tiny)


def test_without_a_compiler(catalog: Catalog, tiny: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("No working C++ compiler found\nand more")

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(
        ConfigError, match=r"compute.compile: true needs a compiler for cpu .*No working C\+\+ compiler"
    ):
        one_pass(catalog, computed(tiny, compile=True))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no compiler")
def test_compiled_blocks_give_the_same_numbers(
    catalog: Catalog, tiny: RunConfig, audio_folder: Path, tmp_path: Path
) -> None:
    """Without a warning, and in a process of its own: the shape checks of the tests cannot be compiled."""
    config, run = tmp_path / "compiled.yaml", tmp_path / "compiled"
    config.write_text(to_yaml(replace(computed(tiny, compile=True, recompute=True), steps=3)))
    command = ["-m", "asda_core.cli", "pretrain", str(config), "--data", str(audio_folder), "--out", str(run)]
    ran = subprocess.run([sys.executable, *command, "--device", "cpu"], stderr=subprocess.PIPE, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "UserWarning" not in ran.stderr
    pretrain(replace(tiny, steps=3), find_audio(audio_folder), tmp_path / "plain", catalog, progress=False)
    for line, wanted in zip(losses(run), losses(tmp_path / "plain"), strict=True):
        assert line["loss"] == pytest.approx(wanted["loss"], rel=1e-5)


@pytest.mark.slow
def test_an_encoder_compiles_as_one_graph() -> None:
    """In a process of its own: the shape checks of the tests cannot be compiled."""
    ran = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", WHOLE], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.split()) == 6
