"""What is made again for the gradient: the same numbers to the last bit, with less kept."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm

from asda_core.layout import TokenLayout
from asda_core.model.block import Mlp
from asda_core.model.remade import gelu_of_norm, linear_of_gelu

EPS = 1e-6


def kept_bytes(run: Callable[[], Tensor]) -> int:
    """Of all that autograd keeps."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held = run()
    assert held.requires_grad
    return sum(kept.values())


def by_torch(bent: Tensor, linear: nn.Linear) -> Tensor:
    made: Tensor = linear(gelu(bent))
    return made


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("shape", [(7, 24), (3, 5, 24)])
def test_linear_of_gelu(shape: tuple[int, ...], half: bool, frozen: bool, bias: bool) -> None:
    torch.manual_seed(0)
    linear, found = nn.Linear(24, 9, bias=bias), []
    linear.requires_grad_(not frozen)
    given, weights = torch.randn(shape), torch.randn(*shape[:-1], 9)
    for way in (by_torch, linear_of_gelu):
        linear.zero_grad()
        bent = given.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            output = way(bent * 1.0, linear)
        (output.float() * weights).sum().backward()
        found.append([output, bent.grad, *(parameter.grad for parameter in linear.parameters())])
    for ours, theirs in zip(*found[::-1], strict=True):
        assert (ours is None) == (theirs is None) == (ours is None and frozen)
        if ours is not None:
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("half", [True, False])
def test_gelu_of_norm(half: bool) -> None:
    torch.manual_seed(0)
    found, given, weights = [], torch.randn(3, 4, 2, 24), torch.randn(3, 4, 2, 24)
    for way in (lambda new: gelu(layer_norm(new, new.shape[-1:], eps=EPS)), lambda new: gelu_of_norm(new, EPS)):
        new = given.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            output = way(new.bfloat16() if half else new * 1.0)
        (output.float() * weights).sum().backward()
        found.append([output, new.grad])
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_gradients_of_both_orders() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(4, 3).double()
    bent = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)

    def through(bent: Tensor, *_: Tensor) -> Tensor:
        return linear_of_gelu(bent, linear)

    for way in (through, lambda new, *_: gelu_of_norm(new, EPS)):
        assert torch.autograd.gradcheck(way, (bent, *linear.parameters()))
        assert torch.autograd.gradgradcheck(way, (bent, *linear.parameters()))


def test_less_is_kept() -> None:
    tokens = torch.randn(64, 32, requires_grad=True)
    linear = nn.Linear(32, 8)
    own = 32 * 8 * 4  # the weight
    assert kept_bytes(lambda: linear(gelu(tokens * 1))) == 2 * tokens.numel() * 4 + own
    assert kept_bytes(lambda: linear_of_gelu(tokens * 1, linear)) == tokens.numel() * 4 + own
    norm_takes = 2 * 64 * 4  # mean and root
    plainly = kept_bytes(lambda: gelu(layer_norm(tokens * 1, (32,), eps=EPS)))
    assert plainly == 2 * tokens.numel() * 4 + norm_takes
    assert kept_bytes(lambda: gelu_of_norm(tokens * 1, EPS)) == tokens.numel() * 4


def test_what_somebody_put_into_the_mlp_is_asked() -> None:
    mlp, tokens, layout = Mlp(8, 16), torch.randn(1, 4, 8, requires_grad=True), TokenLayout.full(1, (4, 1))
    seen: list[nn.Module] = []
    with mlp.contract.register_forward_hook(lambda module, *_: seen.append(module)):
        mlp(tokens, layout)
    assert seen == [mlp.contract]
    before = mlp(tokens, layout)
    mlp.activation = nn.ReLU()
    assert not torch.equal(mlp(tokens, layout), before)
    inner = mlp.contract
    mlp.contract = nn.Sequential(inner, nn.Tanh())
    assert float(mlp(tokens, layout).detach().abs().max()) <= 1
