"""Every way of subtracting two maps gives the same result and the same gradients as the formula."""

import itertools

import pytest
import torch
from torch import Tensor

from asda_core.layout import TokenLayout
from asda_core.model import processor as machine
from asda_core.model import subtraction
from asda_core.model.processor import Processor, exact_matmul
from asda_core.model.subtraction import Method, attention_terms, choose_method, difference

WAYS: tuple[Method, ...] = ("fused", "blocks", "kept")
SIZES = ((1, 1), (2, 7), (3, 63), (1, 130))


def subtract_maps(*given: Tensor | TokenLayout | Method) -> Tensor:
    return difference(*attention_terms(*given), given[5])  # type: ignore[arg-type]


def inputs(batch: int, tokens: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return [torch.randn(batch, 3, tokens, 8, generator=generator, dtype=dtype).requires_grad_() for _ in range(5)]


@pytest.mark.parametrize(("size", "way"), list(itertools.product(SIZES, WAYS)))
def test_all_ways_are_the_formula(size: tuple[int, int], way: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subtraction, "BLOCK_ROWS", 100)  # several blocks of queries, and of heads
    given, layout = inputs(*size), TokenLayout.full(size[0], (size[1], 1))
    weight = torch.tensor([0.1, -0.4, 2.0], dtype=torch.float64).reshape(3, 1, 1).requires_grad_()
    wanted = subtract_maps(*given, weight, layout, "formula")
    if way == "blocks":
        with torch.no_grad():
            torch.testing.assert_close(subtract_maps(*given, weight, layout, way), wanted, rtol=1e-10, atol=1e-12)
        return
    found = subtract_maps(*given, weight, layout, way)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    direction = torch.randn(wanted.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for mine, theirs in zip(
        torch.autograd.grad(found, [*given, weight], direction),
        torch.autograd.grad(wanted, [*given, weight], direction),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


def test_gradients_that_are_kept_are_derivatives() -> None:
    given = inputs(1, 5)
    weight = torch.full((3, 1, 1), 0.3, dtype=torch.float64, requires_grad=True)
    layout = TokenLayout.full(1, (5, 1))
    assert torch.autograd.gradcheck(lambda *all_of: subtract_maps(*all_of, layout, "kept"), (*given, weight))


def test_gradients_that_are_kept_have_no_gradients() -> None:
    """They would be wrong; an error says so, as torch's own fused attention does."""
    given = inputs(1, 5)
    weight = torch.full((3, 1, 1), 0.3, dtype=torch.float64)
    mixed = subtract_maps(*given, weight, TokenLayout.full(1, (5, 1)), "kept").sum()
    (gradient,) = torch.autograd.grad(mixed, given[2], create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad|once_differentiable"):
        torch.autograd.grad(gradient.square().sum(), given[2])


def test_bfloat16_stays_near(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [each.detach() for each in inputs(2, 40)]
    weight, layout = torch.full((3, 1, 1), 0.1, dtype=torch.float64), TokenLayout.full(2, (40, 1))
    wanted = subtract_maps(*given, weight, layout, "formula")
    for way in WAYS:
        found = subtract_maps(*(each.bfloat16() for each in given), weight.float(), layout, way)
        assert (found - wanted).abs().max() < 0.03 * wanted.abs().max(), way


@pytest.mark.parametrize(
    ("tokens", "wide", "grad", "dtype", "way"),
    [
        (513, False, False, torch.float32, "fused"),
        (513, True, False, torch.float32, "blocks"),
        (2049, True, False, torch.float32, "fused"),
        (2049, True, False, torch.bfloat16, "blocks"),
        (103, True, True, torch.float32, "kept"),
        (513, True, True, torch.float32, "fused"),
        (513, True, True, torch.bfloat16, "kept"),
        (103, False, True, torch.float32, "fused"),
    ],
)
def test_what_the_machine_takes(
    tokens: int, wide: bool, grad: bool, dtype: torch.dtype, way: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subtraction, "processor", lambda: Processor(wide_vectors=wide, bfloat16=wide))
    query = torch.zeros(1, 1, tokens, 4, dtype=dtype, requires_grad=grad)
    layout = TokenLayout.full(1, (tokens, 1))
    frozen = torch.zeros(1, 1, tokens, 4, dtype=dtype)
    assert choose_method((query, frozen), layout) == choose_method((frozen, query), layout) == way
    padded = TokenLayout(layout.index, layout.grid, torch.zeros(1, tokens, dtype=torch.bool))
    assert choose_method((query,), padded) == "fused"


def test_products_stay_exact_and_the_setting_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "processor", lambda: Processor(wide_vectors=True, bfloat16=False))
    machine._stays_exact.cache_clear()
    before = torch.get_float32_matmul_precision()
    left, right = torch.randn(64, 512), torch.randn(512, 64)
    with exact_matmul():
        exact = left.double() @ right.double()
        assert ((left @ right) - exact).abs().max() < 1e-5 * exact.abs().max()
    assert torch.get_float32_matmul_precision() == before
    with pytest.raises(ZeroDivisionError), exact_matmul():
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == before
    monkeypatch.setattr(machine, "_stays_exact", lambda: False)
    with exact_matmul():
        assert torch.get_float32_matmul_precision() == before
    monkeypatch.setattr(machine, "_stays_exact", lambda: True)
    with exact_matmul("meta"):
        assert torch.get_float32_matmul_precision() == before
