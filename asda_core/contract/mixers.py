"""Contract of every mixer."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from asda_core.contract.modules import (
    TOLERANCE,
    builder,
    check_all_parameters_move,
    check_no_lazy_parameters,
    check_state,
    check_tensor,
    seeded,
    unchanged_inputs,
)
from asda_core.contracts import MixerContext, MixerSpec, ShowsMaps
from asda_core.errors import ConfigError
from asda_core.inference.attention_maps import check_maps
from asda_core.layout import TokenLayout

DIM, HEADS, LAYERS = 32, 4, 2
GRID = (5, 4)


@seeded
def check_mixer(spec: MixerSpec[Any], **options: Any) -> None:
    """Check shape and dtype; finite output; that inputs are left as they are, and two calls are equal; independence of
    clips and of padding; that tokens influence each other; masked grids and a class token anywhere; invariance to token
    order (if `knows_order` is False); state round trip; that every parameter of every layer moves; attention maps, if
    it shows any, whose rows sum to 1."""
    layers = [MixerContext(DIM, HEADS, layer, LAYERS) for layer in range(LAYERS)]
    build = builder(spec, MixerSpec, options)
    mixer, other, *of_layers = (build(each) for each in (layers[1], layers[1], *layers))
    check_no_lazy_parameters(mixer)
    mixer.eval()
    for layout in _layouts():
        tokens = torch.randn(*layout.index.shape, DIM)
        where = f"{spec.name} on {tuple(layout.index.shape)} tokens of {layout.grid}"
        mixed = _mixed(mixer, tokens, layout, where)
        check_tensor(where, mixed, tokens.shape)
        assert mixed.dtype == tokens.dtype, f"{where}: {mixed.dtype}, not {tokens.dtype} like the tokens"
        assert mixed.isfinite().all(), f"{where}: output is not finite"
        _check_independence(mixer, tokens, layout, mixed, where)
        _check_maps(mixer, tokens, layout, spec.name)
    _check_padding(mixer, spec.name)
    if not spec.knows_order:
        _check_order_is_free(mixer, spec.name)
    layout = _layouts()[0]
    tokens = torch.randn(*layout.index.shape, DIM)
    check_state(mixer, other.eval(), tokens, layout)
    weight = torch.randn_like(tokens)
    where = f"{spec.name} in training mode"
    for each in of_layers:
        check_all_parameters_move(each.train(), lambda each=each: (_mixed(each, tokens, layout, where) * weight).sum())


def _mixed(mixer: nn.Module, tokens: Tensor, layout: TokenLayout, where: str) -> Tensor:
    """Call the mixer and check that it leaves its inputs as they are: a block adds these tokens to what it returns."""
    with unchanged_inputs(where, tokens=tokens, **{"layout.index": layout.index, "layout.padding": layout.padding}):
        mixed: Tensor = mixer(tokens, layout)
    return mixed


def _layouts() -> list[TokenLayout]:
    """A full grid, a masked one, one token; a class token first, in the middle and last; two class tokens."""
    full = _full(3)
    kept = torch.stack([torch.randperm(GRID[0] * GRID[1])[:7].sort().values for _ in range(3)])
    masked = full.select(torch.arange(3), kept)
    one = [masked.with_class_token(column) for column in (0, 3, 7)]
    return [full, masked, TokenLayout.full(2, (1, 1)), *one, masked.with_class_token(3, 2)]


def _full(batch: int) -> TokenLayout:
    """All patches, with an index of its own for each clip: one that is expanded cannot be edited."""
    full = TokenLayout.full(batch, GRID)
    return replace(full, index=full.index.clone())


def _check_independence(mixer: nn.Module, tokens: Tensor, layout: TokenLayout, mixed: Tensor, where: str) -> None:
    with torch.no_grad():
        again = mixer(tokens, layout)
        assert torch.allclose(again, mixed, atol=TOLERANCE), f"{where}: two calls with the same input differ"
        alone = mixer(tokens[:1], replace(layout, index=layout.index[:1]))
        assert torch.allclose(alone, mixed[:1], atol=TOLERANCE), f"{where}: a clip alone differs from it in a batch"
        influence = 0.0
        for place in (0, tokens.shape[1] - 1):  # a scan may run in one direction only
            changed = tokens.clone()
            changed[0, place] += torch.randn(DIM)
            change = (mixer(changed, layout) - mixed).abs()
            assert change[1:].max() <= TOLERANCE, f"{where}: clips influence each other"
            change[0, place] = 0
            influence += float(change[0].max())
        assert influence > 0 or tokens.shape[1] == 1, f"{where}: tokens do not influence each other"


def _check_padding(mixer: nn.Module, name: str) -> None:
    full = _full(2)
    padding = torch.zeros(2, full.index.shape[1], dtype=torch.bool)
    padding[0, -6:] = True
    padding[1, 2:4] = True
    layout = TokenLayout(full.index, full.grid, padding)
    tokens = torch.randn(2, full.index.shape[1], DIM)
    changed = torch.where(padding[..., None], torch.randn_like(tokens), tokens)
    with torch.no_grad():
        difference = (_mixed(mixer, tokens, layout, name) - mixer(changed, layout))[~padding].abs().max()
    assert difference <= TOLERANCE, f"{name}: padding influences valid tokens (by {difference:.1e})"
    _check_maps(mixer, tokens, layout, name)


@torch.no_grad()
def _check_maps(mixer: nn.Module, tokens: Tensor, layout: TokenLayout, name: str) -> None:
    """Check the attention maps of a mixer that shows them."""
    if isinstance(mixer, ShowsMaps):
        try:
            check_maps(mixer.maps(tokens, layout), layout, name)
        except ConfigError as error:
            raise AssertionError(error) from None


def _check_order_is_free(mixer: nn.Module, name: str) -> None:
    layout = TokenLayout.full(2, GRID).with_class_token(0)
    tokens = torch.randn(*layout.index.shape, DIM)
    order = torch.randperm(tokens.shape[1])
    with torch.no_grad():
        expected = mixer(tokens, layout)[:, order]
        column = order.tolist().index(0)
        permuted = mixer(tokens[:, order], replace(layout, index=layout.index[:, order], class_column=column))
    assert torch.allclose(expected, permuted, atol=TOLERANCE), (
        f"{name}: the order of tokens matters; set knows_order=True"
    )
