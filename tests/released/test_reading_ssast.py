"""Files of SSAST and SSAMBA that are wrong, incomplete or strange: a clear error, and nothing misread."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from asda_core.catalog import Catalog
from asda_core.checkpoint import load_encoder
from asda_core.errors import CheckpointError
from asda_core.official.reading import read_model
from tests.released.test_ssm import load

State = dict[str, Any]


def state_of(name: str) -> State:
    return {f"module.{key}": value for key, value in load(name).below("w/").items()}


def write(folder: Path, state: State, **beside: Any) -> Path:
    torch.save(state, folder / "model.pth")
    (folder / "config.json").write_text(json.dumps(beside))
    return folder / "model.pth"


def without(key: str) -> Callable[[State], State]:
    return lambda state: {name: value for name, value in state.items() if name != key}


def changed(key: str, value: Any) -> Callable[[State], State]:
    return lambda state: {**state, key: value(state[key]) if callable(value) else value}


QKV = "module.v.blocks.0.attn.qkv.weight"


@pytest.mark.parametrize(("change", "message"), [
    (without(QKV), "missing v.blocks.0.attn.qkv.weight"),
    (changed("module.v.blocks.0.attn.extra", torch.ones(3)), "unexpected v.blocks.0.attn.extra"),
    (changed(QKV, lambda t: t[:-1]), r"v.blocks.0.attn.qkv.weight has shape \(95, 32\), not \(96, 32\)"),
    (changed(QKV, lambda t: t.int()), "v.blocks.0.attn.qkv.weight has type torch.int32"),
    (changed(QKV, lambda t: t / 0), "NaN or infinite values in encoder.blocks.0.mixer.qkv.weight"),
    (without("module.p_input_fdim"), "lacks 'p_input_fdim'"),
    (without("module.v.pos_embed"), "lacks 'v.pos_embed'"),
    (changed("module.p_input_fdim", torch.tensor(0)), "positions do not fit a grid"),
    (changed("module.p_input_fdim", torch.tensor(64)), "positions do not match"),
    (changed("module.p_input_tdim", torch.tensor(1024)), "positions do not match 1024 frames"),
    (changed("module.v.pos_embed", lambda t: t[:, :-1]), "positions do not fit a grid"),
    (changed("module.v.patch_embed.proj.weight", lambda t: t[:, :, :0]), "are invalid|cannot be read as a model"),
    (changed(QKV, lambda t: t.to_sparse()), "its tensors or its config are invalid"),
    (changed("v.norm.weight", torch.ones(32)), "contains tensors twice"),
])  # fmt: skip
def test_wrong_tensors(change: Callable[[State], State], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_model(write(tmp_path, change(state_of("ssast_patch")), num_heads=4))


@pytest.mark.parametrize(("beside", "message"), [
    ({}, "no config.json beside it states num_heads, and its width 32 is not a multiple of 64"),
    ({"num_heads": 5}, "not a multiple"),
    ({"num_haeds": 4}, "Did you mean 'num_heads'"),
    ({"num_heads": 4, "stride_bins": 0}, "stride_bins must be positive"),
    ({"num_heads": 4, "wiring": "foo"}, "wiring"),
    ({"num_heads": 4, "pooling": "foo"}, "pooling"),
    ({"num_heads": "4x"}, "num_heads"),
])  # fmt: skip
def test_wrong_statements(beside: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_model(write(tmp_path, state_of("ssast_patch"), **beside))


def test_a_fine_tuned_model_must_say_its_strides(tmp_path: Path) -> None:
    arrays = load("ssast_patch")
    state = {f"module.{key}": value for key, value in arrays.below("w/").items() if key.startswith("v.")}
    state |= {f"module.{key}": value for key, value in arrays.below("ft1/w/").items()}
    state["module.v.pos_embed"] = arrays["ft1/pos_embed"]
    with pytest.raises(
        CheckpointError,
        match=r'is fine-tuned, and its patch stride cannot be inferred .* \{"stride_frames": 10, "stride_bins": 10\}',
    ):
        read_model(write(tmp_path, state, num_heads=4))
    read = read_model(write(tmp_path, state, num_heads=4, stride_frames=10, stride_bins=10))
    assert read.config.encoder.positions.grid == (12, 12)
    assert read.config.encoder.positions.through_bands is None
    assert read.classifier is not None
    assert read.classifier.pooling == "mean"
    with pytest.raises(CheckpointError, match="holds no teacher"):
        read_model(tmp_path / "model.pth", "teacher")


@pytest.mark.parametrize("variant", [
    lambda state: {name.removeprefix("module."): value for name, value in state.items()},
    lambda state: {name: value.double() if value.is_floating_point() else value for name, value in state.items()},
    lambda state: {name: value for name, value in state.items() if ".head" not in name},
])  # fmt: skip
def test_harmless_variants(variant: Callable[[State], State], catalog: Catalog, tmp_path: Path) -> None:
    """Without the prefix, in another precision, without what nothing uses: the same encoder."""
    features = torch.randn(1, 128, 96)
    outputs: list[Tensor] = []
    for state in (state_of("ssamba_tiny"), variant(state_of("ssamba_tiny"))):
        _, encoder = load_encoder(read_model(write(tmp_path, state)), catalog)
        with torch.no_grad():
            outputs.append(encoder(features).tokens)
    assert torch.equal(*outputs)


def test_the_wiring_can_be_told(catalog: Catalog, tmp_path: Path) -> None:
    """No tensor shows it: the released wiring is taken and named, another can be stated."""
    features = torch.randn(1, 128, 96)
    outputs = []
    for beside in ({}, {"wiring": "sequential"}):
        read = read_model(write(tmp_path, state_of("ssamba_tiny"), **beside))
        assert f"Wiring: {beside.get('wiring', 'released')}" in read.report
        _, encoder = load_encoder(read, catalog)
        with torch.no_grad():
            outputs.append(encoder(features).tokens)
    assert not torch.allclose(*outputs, atol=0.1)
