"""The differential family: identities that tie each mixer to plain attention and to its formula."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asda_core.catalog import Catalog
from asda_core.config_io import parse
from asda_core.contracts import MixerContext
from asda_core.errors import ConfigError
from asda_core.layout import TokenLayout, mean_over_valid
from asda_core.model.attention import (
    Heads,
    Lambda,
    SubtractiveAttention,
    attend,
    lambda_by_depth,
    softmax_map,
)
from asda_core.testing import check_mixer, seeded

DIM, HEADS = 32, 4
FAMILY = ("differential_v1", "differential_v2", "dint", "grouped_differential")


def make(catalog: Catalog, name: str, layer: int = 0, **options: Any) -> Any:
    spec = catalog.find("mixer", name).spec
    torch.manual_seed(3)
    return spec.build(parse(spec.config, options), MixerContext(DIM, HEADS, layer, 4)).eval()


def tokens_and_layouts() -> list[tuple[Tensor, TokenLayout]]:
    torch.manual_seed(4)
    found: list[tuple[Tensor, TokenLayout]] = []
    for number in (1, 7, 63):
        full = TokenLayout.full(2, (number, 1))
        padding = torch.zeros(2, number, dtype=torch.bool)
        padding[0, number // 2 + 1 :] = True
        layouts = (full, TokenLayout(full.index, full.grid, padding), full.with_class_token(number // 2, 2))
        found += [(torch.randn(*layout.index.shape, DIM), layout) for layout in layouts]
    return found


def plain(query: Tensor, key: Tensor, value: Tensor, layout: TokenLayout) -> Tensor:
    return softmax_map(query, key, layout) @ value


def joined(mixer: Any, heads: Tensor) -> Tensor:
    result: Tensor = mixer.proj(heads.transpose(1, 2).flatten(2))
    return result


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("mode", ["vectors", "scalars", "fixed", "token"])
def test_fused_equals_formula(catalog: Catalog, name: str, mode: str) -> None:
    start = {} if mode == "token" else {"lambda_init": 0.3}
    mixer = make(catalog, name, lambda_mode=mode, **start)
    for tokens, layout in tokens_and_layouts():
        mixer.by_formula = False
        fused = mixer(tokens, layout)
        mixer.by_formula = True
        formula = mixer(tokens, layout)
        valid = layout.valid
        assert torch.allclose(fused[valid], formula[valid], atol=1e-5)
        # the formula again, from the maps alone
        first, second = mixer.maps(tokens, layout)
        weight = mixer.weight(tokens)
        difference = first - weight * second
        if name == "dint":
            keep = layout.valid.float()[:, None, :, None]
            difference = difference + weight * (first * keep).sum(2, keepdim=True) / keep.sum(2, keepdim=True)
        value = mixer.qkv(tokens)[..., -DIM:].unflatten(2, (mixer.heads.signal, -1)).transpose(1, 2)
        heads = difference @ value
        if mixer.heads.signal and isinstance(mixer.norm, nn.RMSNorm):
            rms = (heads.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            heads = heads / rms * (1 - start.get("lambda_init", 0.0))
        assert torch.allclose(joined(mixer, heads)[valid], fused[valid], atol=1e-5)


@pytest.mark.parametrize("name", ["differential_v1", "dint", "grouped_differential"])
def test_lambda_zero_without_norm_is_plain_attention_on_the_first_branch(catalog: Catalog, name: str) -> None:
    mixer = make(catalog, name, lambda_mode="fixed", lambda_init=0.0, head_norm=False)
    for tokens, layout in tokens_and_layouts():
        query, _, key, _, value = mixer._split(tokens)
        assert torch.allclose(mixer(tokens, layout), joined(mixer, plain(query, key, value, layout)), atol=1e-5)


def test_v2_with_closed_gates_is_the_even_heads(catalog: Catalog) -> None:
    mixer = make(catalog, "differential_v2")
    for tokens, layout in tokens_and_layouts():
        ones = tokens.clone()
        ones[..., 0] = 1.0
        with torch.no_grad():
            mixer.weight.gate.weight.zero_()
            mixer.weight.gate.weight[:, 0] = -torch.inf  # logits of -inf: sigmoid 0
        query, _, key, _, value = mixer._split(ones)
        assert torch.allclose(mixer(ones, layout), joined(mixer, plain(query, key, value, layout)), atol=1e-5)


@pytest.mark.parametrize("mode", ["vectors", "token"])
def test_rows_of_dint_sum_to_one(catalog: Catalog, mode: str) -> None:
    mixer = make(catalog, "dint", lambda_mode=mode, head_norm=False)
    for tokens, layout in tokens_and_layouts():
        first, second = mixer.maps(tokens, layout)
        keep = layout.valid.float()[:, None, :, None]
        mean = (first * keep).sum(2, keepdim=True) / keep.sum(2, keepdim=True)
        weight = mixer.weight(tokens)
        rows = (first - weight * second + weight * mean).sum(dim=-1)
        assert torch.allclose(rows, torch.ones_like(rows), atol=1e-5)
        # and so the mixer gives constant values back
        with torch.no_grad():
            mixer.qkv.weight[-DIM:] = 0
            mixer.qkv.bias = nn.Parameter(torch.zeros(len(mixer.qkv.weight)))
            mixer.qkv.bias[-DIM:] = torch.arange(float(DIM))
        constant = mixer.proj(torch.arange(float(DIM)).expand(*tokens.shape))
        assert torch.allclose(mixer(tokens, layout)[layout.valid], constant[layout.valid], atol=1e-4)


def test_rows_of_the_others(catalog: Catalog) -> None:
    """1 - lambda, as published: what the map of V1 keeps."""
    mixer = make(catalog, "differential_v1", lambda_mode="fixed", lambda_init=0.3)
    tokens, layout = tokens_and_layouts()[3]
    first, second = mixer.maps(tokens, layout)
    rows = (first - 0.3 * second).sum(-1)
    assert torch.allclose(rows, torch.full_like(rows, 0.7), atol=1e-5)


def test_lambda_by_depth() -> None:
    assert lambda_by_depth(0) == pytest.approx(0.2)
    assert lambda_by_depth(11) == pytest.approx(0.8 - 0.6 * 0.036883, abs=1e-4)


def test_lambda_starts(catalog: Catalog) -> None:
    """Vectors and scalars begin near or at their start; a token's gate at one half."""
    tokens = torch.zeros(2, 3, DIM)
    scalars = make(catalog, "differential_v1", 5, lambda_mode="scalars").weight(tokens)
    assert scalars.item() == pytest.approx(lambda_by_depth(5))
    assert abs(make(catalog, "differential_v1", 5).weight(tokens).item() - lambda_by_depth(5)) < 0.2
    gate = make(catalog, "differential_v2").weight(tokens)
    assert gate.shape == (2, HEADS, 3, 1)
    assert torch.allclose(gate, torch.full_like(gate, 0.5))


def test_parameters(catalog: Catalog) -> None:
    """V1 and DINT: those of standard attention, four vectors and a norm; V2: one D x D and a gate more."""
    square = DIM * DIM
    count = {name: sum(p.numel() for p in make(catalog, name).parameters()) for name in FAMILY}
    width = DIM // HEADS
    assert count["differential_v1"] == count["dint"] == 4 * square + DIM + 4 * width + 2 * width
    assert count["differential_v2"] == 5 * square + DIM + HEADS * DIM
    assert count["grouped_differential"] == 4 * square + 2 * square // 4 + DIM + 4 * width + width


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize(
    "options",
    [
        {"lambda_mode": "fixed", "lambda_init": 0.2},
        {"lambda_mode": "scalars"},
        {"lambda_mode": "token"},
        {"qkv_bias": True},
    ],
)
def test_contract_of_the_options(catalog: Catalog, name: str, options: dict[str, Any]) -> None:
    check_mixer(catalog.find("mixer", name).spec, **options)


def test_starts_that_do_not_fit(catalog: Catalog) -> None:
    for name, options, message in (
        ("differential_v1", {"lambda_init": 1.0}, "zeroes normalised heads"),
        ("dint", {"lambda_init": float("nan")}, "must be a finite number"),
        ("differential_v2", {"lambda_init": 0.5}, "has no effect with lambda_mode 'token'"),
        ("grouped_differential", {"lambda_mode": "token", "lambda_init": 0.5}, "has no effect"),
        ("differential", {"lambda_init": float("inf")}, "must be a finite number"),
    ):
        with pytest.raises(ConfigError, match=message):
            make(catalog, name, **options)
    assert make(catalog, "differential_v2", 3, lambda_mode="fixed").weight.start == lambda_by_depth(3)


def test_all_padding_stays_finite(catalog: Catalog) -> None:
    layout = TokenLayout.full(2, (5, 1))
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[0] = True
    mixer = make(catalog, "dint")
    values = torch.randn(2, 3, 5, 4)
    mean = mean_over_valid(values, TokenLayout(layout.index, layout.grid, padding))
    assert mean.isfinite().all()
    assert torch.allclose(mean[1], values[1].mean(1))
    assert mixer.add_mean


def test_heads_that_do_not_fit(catalog: Catalog) -> None:
    for name, heads, message in (
        ("differential_v1", 3, "pairs its heads: encoder.num_heads must be even, not 3"),
        ("dint", 3, "pairs its heads"),
        ("grouped_differential", 6, "ratio 4 does not divide encoder.num_heads 6"),
    ):
        spec = catalog.find("mixer", name).spec
        with pytest.raises(ConfigError, match=message):
            spec.build(spec.config(), MixerContext(48, heads, 0, 1))
    with pytest.raises(ConfigError, match="4 signal heads cannot be divided evenly among 3 noise heads"):
        SubtractiveAttention(12, Heads(4, 3, 3, 3), Lambda("fixed", 0.1, 3, 4, 12), norm=False)


@seeded
def test_wider_values() -> None:
    """Values twice as wide as queries go through the fused kernel unchanged."""
    layout = TokenLayout.full(2, (9, 1))
    query, key, value = torch.randn(2, 3, 9, 4), torch.randn(2, 3, 9, 4), torch.randn(2, 3, 9, 8)
    assert torch.allclose(attend(query, key, value, layout), plain(query, key, value, layout), atol=1e-6)
