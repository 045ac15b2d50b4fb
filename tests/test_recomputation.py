"""What is made again for the gradient: the same numbers to the last bit, with less kept."""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import gelu
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._python_dispatch import TorchDispatchMode

from asda_core.assemble import build_encoder
from asda_core.catalog import Catalog
from asda_core.config import EncoderConfig, PluginChoice
from asda_core.layout import TokenLayout
from asda_core.model import recomputation
from asda_core.model.block import Block, Mlp
from asda_core.model.norms import RmsNorm
from asda_core.pretrain.decoder import ConvolutionalDecoder, DecoderConfig

Step = Callable[..., Any]


class WhatIsMade(TorchDispatchMode):
    """Notes the memory of everything that an operation makes, without holding it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        given = {each.untyped_storage()._cdata for each in args if isinstance(each, Tensor)}
        for each in made if isinstance(made, tuple | list) else (made,):
            if isinstance(each, Tensor) and (storage := each.untyped_storage())._cdata not in given:
                self.seen[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return made

    def alive(self) -> int:
        return sum(size for storage, size in self.seen.values() if not storage.expired())


def kept_bytes(run: Callable[[], Any]) -> int:
    """Of all that was made on the way and is still there, for the gradient or as the output."""
    with WhatIsMade() as made:
        held = run()
    return made.alive() if held is not None else 0


@contextmanager
def nothing_made_again(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Autograd keeps what it wants."""
    with monkeypatch.context() as patch:
        patch.setattr(recomputation, "MIN_VALUES", math.inf)
        yield


def gradients(module: nn.Module, run: Callable[[Tensor], Tensor], given: Tensor, half: bool) -> list[Tensor]:
    """Output, and gradients of the input and of all weights that have one."""
    module.zero_grad()
    leaf = given.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        output = run(leaf * 1)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    (output.float() * weights).sum().backward()
    assert leaf.grad is not None
    return [output.detach(), leaf.grad, *(each.grad for each in module.parameters() if each.grad is not None)]


def encoder_config(**settings: Any) -> EncoderConfig:
    return EncoderConfig(dim=24, depth=1, num_heads=4, **settings)


BLOCKS: dict[str, dict[str, Any]] = {
    "post-norm": {},
    "pre-norm": {"norm": "pre"},
    "rms": {"norm": "pre", "norm_type": "rms"},
    "residual lost": {"norm": "pre", "pre_norm_residual": False},
    "without MLP": {"mlp_ratio": 0.0},
}
MIXERS = ("differential", "differential_v1", "differential_v2", "dint", "grouped_differential", "standard")


def blocks(catalog: Catalog, config: EncoderConfig) -> Block:
    torch.manual_seed(0)
    made = build_encoder(catalog, config).blocks[0]
    assert isinstance(made, Block)
    for weights in made.parameters():
        nn.init.normal_(weights, std=0.3)
    return made


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("case", [*BLOCKS, *MIXERS])
def test_blocks_to_the_last_bit(
    case: str, half: bool, frozen: bool, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = BLOCKS.get(case, {"mixer": PluginChoice(case)})
    made = blocks(catalog, encoder_config(**settings)).requires_grad_(not frozen)
    given, layout = torch.randn(2, 6, 24), TokenLayout.full(2, (3, 2))

    def run(tokens: Tensor) -> Tensor:
        return torch.cat(made(tokens, layout))

    found, less = gradients(made, run, given, half), kept_bytes(lambda: made(given.clone().requires_grad_(), layout))
    with nothing_made_again(monkeypatch):
        wanted, more = (
            gradients(made, run, given, half),
            kept_bytes(lambda: made(given.clone().requires_grad_(), layout)),
        )
    assert len(found) == len(wanted) == (2 if frozen else 2 + len(list(made.parameters())))
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    assert less < more or case == "without MLP" or (frozen and case == "standard")


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("wanted_only", [False, True])
def test_the_decoder_to_the_last_bit(wanted_only: bool, half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    made, given = ConvolutionalDecoder(DecoderConfig(24, 3, groups=4), 24), torch.randn(2, 12, 24)
    columns = torch.tensor([[0, 3, 11], [5, 4, 2]]) if wanted_only else None

    def run(patches: Tensor) -> Tensor:
        predicted: Tensor = made(patches, (4, 3), columns)
        return predicted

    found, less = gradients(made, run, given, half), kept_bytes(lambda: run(given))
    with nothing_made_again(monkeypatch):
        wanted, more = gradients(made, run, given, half), kept_bytes(lambda: run(given))
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours, theirs)
    assert less < more


def test_what_is_kept() -> None:
    tokens, linear = torch.randn(64, 32).requires_grad_() * 1, nn.Linear(32, 8)
    norm = nn.LayerNorm(32)
    one, output, of_norm = tokens.numel() * 4, 64 * 8 * 4, 2 * 64 * 4  # of a norm: its mean and root
    for step, calls, kept in (
        (lambda wide: linear(gelu(wide)), (linear,), one),
        (lambda new: linear(norm(new)), (linear, norm), one + of_norm),
        (lambda wide: linear(norm(gelu(wide)) * 2), (linear, norm), 2 * one + of_norm),
    ):
        assert kept_bytes(lambda step=step: step(tokens)) == kept + output
        assert (
            kept_bytes(lambda step=step, calls=calls: recomputation.with_recomputation(step, tokens, modules=calls))
            == output
        )


def test_no_product_is_done_twice() -> None:
    mlp, tokens = Mlp(8, 16), torch.randn(1, 4, 8, requires_grad=True)
    output = mlp.norm_and_forward(nn.LayerNorm(8), tokens)[1]
    seen: list[str] = []

    class Told(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    with Told():
        output.sum().backward()
    assert sum("gelu.default" in name or "native_layer_norm.default" in name for name in seen) == 2
    assert sum("mm.default" in name for name in seen) == 4, "two linear maps, each to its input and to its weights"
    assert not any("addmm" in name for name in seen)


def test_gradients_of_both_orders() -> None:
    torch.manual_seed(0)
    mlp, norm = Mlp(4, 3).double(), RmsNorm(4, eps=1e-6).double()
    tokens = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)

    def through(tokens: Tensor, *_: Tensor) -> Tensor:
        return torch.cat(mlp.norm_and_forward(norm, tokens), dim=-1)

    given = (tokens, *mlp.parameters(), *norm.parameters())
    assert torch.autograd.gradcheck(through, given)
    assert torch.autograd.gradgradcheck(through, given)


def test_what_somebody_put_into_the_mlp_is_asked_and_once() -> None:
    mlp, tokens, layout = Mlp(8, 16), torch.randn(1, 4, 8, requires_grad=True), TokenLayout.full(1, (4, 1))
    seen: list[nn.Module] = []
    for watched in (mlp.contract, mlp.activation):
        with watched.register_forward_hook(lambda module, *_: seen.append(module)):
            mlp(tokens, layout).sum().backward()
        assert seen == [watched]
        seen.clear()
    before = mlp(tokens, layout)
    mlp.activation = nn.ReLU()
    assert not torch.equal(mlp(tokens, layout), before)
    inner = mlp.contract
    mlp.contract = nn.Sequential(inner, nn.Tanh())
    assert float(mlp(tokens, layout).detach().abs().max()) <= 1


@pytest.mark.parametrize("name", ["norm1", "norm2", "mlp", "mlp.expand", "mlp.contract", "mixer.norm", "mixer.proj"])
def test_what_somebody_put_into_a_block_is_asked_and_once(name: str, catalog: Catalog) -> None:
    made, layout = blocks(catalog, encoder_config()), TokenLayout.full(2, (3, 2))
    made.mixer = blocks(catalog, encoder_config(mixer=PluginChoice("differential"))).mixer
    inner, calls = made.get_submodule(name), []

    class Noisy(nn.Module):
        """As an adapter: of random numbers, and called by whoever called what it stands for."""

        def forward(self, *given: Any) -> Tensor:
            calls.append(name)
            through: Tensor = inner(*given)
            return nn.functional.dropout(through, 0.5)

    made.set_submodule(name, Noisy())
    given = torch.randn(2, 6, 24, requires_grad=True)
    sum(each.sum() for each in made(given, layout)).backward()
    assert calls == [name]


@pytest.mark.parametrize("name", ["norm1", "mlp", "mlp.expand", "mlp.activation", "mlp.contract", "mixer.norm"])
def test_whoever_watches_or_changes_a_part_of_a_block_is_asked_and_once(name: str, catalog: Catalog) -> None:
    made, layout = blocks(catalog, encoder_config()), TokenLayout.full(2, (3, 2))
    part, given = made.get_submodule(name), torch.randn(2, 6, 24)
    seen: list[str] = []

    def run() -> list[str]:
        seen.clear()
        sum(each.sum() for each in made(given.clone().requires_grad_(), layout)).backward()
        return seen

    def note(kind: str) -> Callable[..., None]:
        return lambda *_: seen.append(kind)

    with part.register_forward_hook(note("forward")), part.register_forward_pre_hook(note("before")):
        assert run() == ["before", "forward"]
    with part.register_full_backward_hook(note("backward")):
        assert run() == ["backward"]
    with part.register_full_backward_pre_hook(note("before backward")):
        assert run() == ["before backward"]
    plainly = part.forward
    part.forward = lambda *given: [seen.append("changed"), plainly(*given)][1]  # type: ignore[method-assign]
    assert run() == ["changed"]


def test_weights_of_others(catalog: Catalog) -> None:
    """`functional_call` takes its weights away again before the gradient comes."""
    made, given, layout = blocks(catalog, encoder_config()), torch.randn(2, 6, 24), TokenLayout.full(2, (3, 2))
    found = []
    others = {name: torch.randn_like(each).mul(0.3) for name, each in made.named_parameters()}
    theirs = deepcopy(made)
    theirs.load_state_dict(others)
    for run, weights in (
        (theirs, dict(theirs.named_parameters())),
        (partial(torch.func.functional_call, made), {name: each.requires_grad_() for name, each in others.items()}),
    ):
        given_to = ((given, layout),) if run is theirs else (others, (given, layout))
        output = run(*given_to[0]) if run is theirs else run(*given_to)
        sum(each.square().sum() for each in output).backward()
        found.append({name: each.grad for name, each in weights.items()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in others)
    assert all(each.grad is None for each in made.parameters())


@pytest.mark.parametrize("name", ["norm1", "mlp.expand", "mlp.contract", "mixer.norm", "mixer.proj"])
def test_weights_that_change_before_the_gradient_comes(name: str, catalog: Catalog) -> None:
    made, layout = blocks(catalog, encoder_config()), TokenLayout.full(2, (3, 2))
    output = made(torch.randn(2, 6, 24), layout)[0]
    with torch.no_grad():
        made.get_submodule(name).get_parameter("weight").mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_where_there_is_nothing_to_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("made again for nothing")

    monkeypatch.setattr(recomputation, "checkpoint", never)
    tokens, step = torch.randn(3), torch.square
    recomputation.with_recomputation(step, tokens)
    tokens.requires_grad_()
    with torch.no_grad():
        recomputation.with_recomputation(step, tokens)
    with torch.inference_mode():
        recomputation.with_recomputation(step, tokens)
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        recomputation.with_recomputation(step, tokens)
    with monkeypatch.context() as patch:
        patch.setattr(recomputation, "MIN_VALUES", 4)
        recomputation.with_recomputation(step, tokens)
    with register_module_forward_hook(lambda *_: None):  # as whoever counts operations does
        recomputation.with_recomputation(step, tokens, modules=(nn.Identity(),))
    with pytest.raises(AssertionError):
        recomputation.with_recomputation(step, tokens, modules=(nn.Identity(),))


IN_PARTS = """
import os
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from asda_core.assemble import build_encoder
from asda_core.catalog import installed_catalog
from asda_core.config import EncoderConfig
from asda_core.layout import TokenLayout
from asda_core.model import recomputation

recomputation.MIN_VALUES = float(sys.argv[1])
again, plainly = [], recomputation.checkpoint
recomputation.checkpoint = lambda *given, **settings: (again.append(1), plainly(*given, **settings))[1]

class Step(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = build_encoder(installed_catalog(), EncoderConfig(dim=24, depth=2, num_heads=4))

    def forward(self, tokens):
        return self.encoder.encode(tokens, TokenLayout.full(2, (3, 2))).tokens

dist.init_process_group("gloo")
step = Step()
for block in step.encoder.blocks:
    fully_shard(block)
fully_shard(step)
optimizer = torch.optim.SGD(step.parameters(), lr=0.1)
for update in range(3):
    torch.manual_seed(10 * update + dist.get_rank())
    optimizer.zero_grad()
    step(torch.randn(2, 6, 24)).square().sum().backward()
    optimizer.step()
total = sum(float(each.full_tensor().double().sum()) for each in step.parameters())
if dist.get_rank() == 0:
    print(len(again) > 0, repr(total))
dist.destroy_process_group()
sys.stdout.flush()
os._exit(0)  # threads of gloo may abort a process that ends otherwise
"""


@pytest.mark.slow
def test_weights_of_which_each_process_has_a_part(tmp_path: Path) -> None:
    """FSDP2 puts other tensors in their place between the passes; weights after three updates are the same."""
    (tmp_path / "parts.py").write_text(IN_PARTS)
    found = []
    for least in ("0", "inf"):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command += [str(tmp_path / "parts.py"), least]
        run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert run.returncode == 0, run.stderr
        found.append(run.stdout.split())
    assert [each[0] for each in found] == ["True", "False"]
    assert found[0][1] == found[1][1]
