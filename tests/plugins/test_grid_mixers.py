"""Mixers that look along rows and columns, each against a plain restatement that holds every pair."""

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from asda_core.catalog import Catalog, load_catalog
from asda_core.config_io import parse
from asda_core.contracts import MixerContext
from asda_core.layout import TokenLayout
from asda_core.model.lines import line_table
from tests.conftest import BUILT_IN

DIM, HEADS = 16, 2
GRID = (5, 4)
LAYOUTS = (
    "full", "masked", "one", "row", "column", "padded", "first", "middle", "last", "two", "shuffled", "nothing",
    "repeated", "class alone",
)  # fmt: skip


def layout_called(name: str) -> TokenLayout:
    torch.manual_seed(1)
    full = TokenLayout.full(3, GRID)
    kept = torch.stack([torch.randperm(20)[:9].sort().values for _ in range(3)])
    masked = full.select(torch.arange(3), kept)
    padding = torch.zeros(3, 9, dtype=torch.bool)
    padding[0, -4:] = padding[1, 2] = True
    padded = TokenLayout(masked.index, GRID, padding)
    everything = torch.ones(3, 9, dtype=torch.bool)
    behind = torch.zeros(3, 20, dtype=torch.bool)
    behind[:, -5:] = True
    repeated = torch.where(behind, 0, full.index)  # padding that says it sits where another token does
    return {
        "repeated": TokenLayout(repeated, GRID, behind),
        "class alone": TokenLayout(full.index[:, :0], GRID).with_class_token(0, 2),
        "full": full,
        "masked": masked,
        "one": TokenLayout.full(2, (1, 1)),
        "row": TokenLayout.full(2, (7, 1)),
        "column": TokenLayout.full(2, (1, 6)),
        "padded": padded,
        "first": masked.with_class_token(0),
        "middle": full.with_class_token(10),
        "last": padded.with_class_token(9),
        "two": masked.with_class_token(4, 2),
        "shuffled": TokenLayout(full.index[:, torch.randperm(20)], GRID),
        "nothing": TokenLayout(masked.index, GRID, everything),
    }[name]


def make(catalog: Catalog, name: str) -> Any:
    spec = catalog.find("mixer", name).spec
    torch.manual_seed(2)
    return spec.build(parse(spec.config, {}), MixerContext(DIM, HEADS, 0, 1)).eval()


MIXERS = [offer.spec.name for offer in load_catalog(*BUILT_IN, installed=False).family_offers("mixer")]


@pytest.mark.parametrize("name", MIXERS)
def test_a_batch_of_no_clips(name: str, catalog: Catalog) -> None:
    spec = catalog.find("mixer", name).spec
    mixer = spec.build(parse(spec.config, {}), MixerContext(DIM, 4, 0, 1))
    tokens, layout = torch.zeros(0, 20, DIM), TokenLayout.full(0, GRID)
    with torch.no_grad():
        assert mixer(tokens, layout).shape == tokens.shape
    assert mixer(tokens.requires_grad_(), layout).shape == tokens.shape


@pytest.mark.parametrize("by_formula", [True, False])
@pytest.mark.parametrize("name", LAYOUTS)
def test_frequency_time_equals_the_masked_map(catalog: Catalog, name: str, by_formula: bool) -> None:
    layout = layout_called(name)
    mixer = make(catalog, "frequency_time").double()
    mixer.by_formula = by_formula
    tokens = torch.randn(*layout.index.shape, DIM, dtype=torch.float64, requires_grad=True)
    mixed = mixer(tokens, layout)
    assert mixed.isfinite().all()
    if name == "nothing":
        return  # all is padding: nothing but finite numbers is promised
    value = mixer.qkv(tokens)[..., -DIM:].unflatten(2, (HEADS, -1)).transpose(1, 2)
    dense = mixer.proj((mixer.maps(tokens, layout).first @ value).transpose(1, 2).flatten(2))
    valid = layout.valid
    assert torch.allclose(mixed[valid], dense[valid], atol=1e-12)
    weight = torch.randn_like(mixed) * valid[..., None]
    parameters = [tokens, *mixer.parameters()]
    for given, wanted in zip(
        torch.autograd.grad((mixed * weight).sum(), parameters, retain_graph=True),
        torch.autograd.grad((dense * weight).sum(), parameters),
        strict=True,
    ):
        assert torch.allclose(given, wanted, atol=1e-10)


def test_who_attends_whom(catalog: Catalog) -> None:
    """The map itself, cell by cell: own band or own time step, class tokens always; 0 elsewhere, rows sum to 1."""
    layout = TokenLayout.full(1, GRID).with_class_token(0)
    softmax = make(catalog, "frequency_time").maps(torch.randn(1, 21, DIM), layout).first
    places = [None, *((index // 4, index % 4) for index in range(20))]
    for row, one in enumerate(places):
        for column, other in enumerate(places):
            near = one is None or other is None or one[0] == other[0] or one[1] == other[1]
            assert bool((softmax[0, :, row, column] > 0).all()) == near
    assert torch.allclose(softmax.sum(-1), torch.ones(1, HEADS, 21))


def test_frequency_time_takes_over_standard_weights(catalog: Catalog) -> None:
    make(catalog, "frequency_time").load_state_dict(make(catalog, "standard").state_dict())


WHOLE = ("full", "row", "column", "one", "middle", "first of a long grid", "two of a long grid")


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_frequency_time_by_the_kernel(
    catalog: Catalog, name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without gradients the lines of a whole grid go through the fused kernel, with one large score as well."""
    module = importlib.import_module("asda_plugins.mixer_frequency_time")
    monkeypatch.setattr(module, "PAIRS_WORTH_KERNEL", 0)
    long = TokenLayout.full(2, (40, 4))
    layouts = {"first of a long grid": long.with_class_token(0), "two of a long grid": long.with_class_token(7, 2)}
    layout = layouts.get(name) or layout_called(name)
    mixer = make(catalog, "frequency_time").to(dtype)
    tokens = torch.randn(*layout.index.shape, DIM, generator=torch.Generator().manual_seed(3)).to(dtype)
    tokens[0, -1] *= 60  # a token that attends itself alone
    with torch.no_grad():
        mixer.qkv.weight[DIM : 2 * DIM] = mixer.qkv.weight[:DIM]
    called: list[torch.Size] = []
    kernel = module._by_kernel
    monkeypatch.setattr(module, "_by_kernel", lambda *given: called.append(given[0].shape) or kernel(*given))
    with torch.no_grad():
        mixed = mixer(tokens, layout)
        assert len(called) == 2
        exact = mixer.double()
        value = exact.qkv(tokens.double())[..., -DIM:].unflatten(2, (HEADS, -1)).transpose(1, 2)
        dense = exact.proj((exact.maps(tokens.double(), layout).first @ value).transpose(1, 2).flatten(2))
    error = (mixed.double() - dense).abs().amax(dim=2) / dense.abs().amax(dim=2)
    assert float(error.max()) < {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    mixer(tokens.double().requires_grad_(), layout).sum().backward()  # with gradients: not by the kernel
    assert len(called) == 2


def test_cost_grows_with_the_lines(catalog: Catalog) -> None:
    """Operations of the attention alone: 4 D per pair, N (T + M) pairs against N^2."""
    mixer = make(catalog, "frequency_time")
    mixer.by_formula = True  # what the fused kernel of a CPU does is not counted
    for times, bands in ((100, 12), (200, 12), (300, 12)):
        layout = TokenLayout.full(1, (times, bands))
        number = times * bands
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            mixer(torch.randn(1, number, DIM), layout)
        linear = 2 * 4 * DIM * DIM * number
        assert counter.get_total_flops() - linear == 4 * DIM * number * (times + bands)


def simplicial(mixer: Any, tokens: Tensor, layout: TokenLayout) -> Tensor:
    """The formula, pair by pair, for one clip and head at a time."""
    query, key, key2, value, value2 = mixer.maps_in(tokens).unflatten(2, (5, HEADS, -1)).permute(2, 0, 3, 1, 4)
    key2, value2 = mixer.key_norm(key2), mixer.value_norm(value2)
    out = torch.zeros_like(query)
    width = query.shape[-1]
    for clip in range(len(tokens)):
        valid, cls = layout.valid[clip], layout.is_class[clip]
        for token in range(tokens.shape[1]):
            column = (layout.time[clip] == layout.time[clip, token]) & ~cls | cls
            row = (layout.band[clip] == layout.band[clip, token]) & ~cls | cls
            if cls[token]:
                column, row = torch.ones_like(cls), cls
            first, second = (column & valid).nonzero()[:, 0], (row & valid).nonzero()[:, 0]
            for head in range(HEADS):
                q = query[clip, head, token] / width**0.5
                scores = torch.einsum("c,jc,kc->jk", q, key[clip, head, first], key2[clip, head, second])
                weights = scores.flatten().softmax(0).view_as(scores)
                heard = torch.einsum("jk,jc,kc->c", weights, value[clip, head, first], value2[clip, head, second])
                out[clip, head, token] = heard
    result: Tensor = mixer.proj(out.transpose(1, 2).flatten(2))
    return result


@pytest.mark.parametrize("name", LAYOUTS)
def test_two_simplicial_equals_the_formula(catalog: Catalog, name: str) -> None:
    layout = layout_called(name)
    mixer = make(catalog, "two_simplicial").double()
    tokens = torch.randn(*layout.index.shape, DIM, dtype=torch.float64)
    with torch.no_grad():
        mixed = mixer(tokens, layout)
        assert mixed.isfinite().all()
        if name != "nothing":
            valid = layout.valid
            assert torch.allclose(mixed[valid], simplicial(mixer, tokens, layout)[valid], atol=1e-12)


@pytest.mark.parametrize("axis", ["bands", "times"])
@pytest.mark.parametrize("name", ["full", "masked", "one", "row", "column", "padded", "shuffled"])
def test_lines(name: str, axis: Any) -> None:
    """Spread and collect are inverse; tokens of a line stand together, valid ones where `valid` says so."""
    layout = layout_called(name)
    lines = line_table(layout, axis)
    values = torch.randn(len(layout.index), 3, layout.index.shape[1], 2)
    assert torch.equal(lines.from_table(lines.to_table(values)), values)
    number = layout.band if axis == "bands" else layout.time
    table = lines.to_table(number[:, None].float())[:, 0]
    assert table.shape[1:] == lines.shape
    assert lines.shape[0] == layout.grid[1 if axis == "bands" else 0]
    for line in range(lines.shape[0]):
        there = lines.valid[:, line]
        assert (table[:, line][there] == line).all()
        assert torch.equal(there.sum(1), ((number == line) & layout.valid).sum(1))
    if name == "masked":
        fullest = max(int((number == line).sum(1).max()) for line in range(lines.shape[0]))
        assert lines.shape[1] == fullest
