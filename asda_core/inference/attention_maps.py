"""The attention maps of every layer of an encoder, from one forward pass."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from asda_core.catalog import Catalog, installed_catalog
from asda_core.contracts import MixerContext, ShowsMaps
from asda_core.devices import building
from asda_core.errors import AsdaError, ConfigError
from asda_core.layout import TokenLayout
from asda_core.model.attention import AttentionMaps
from asda_core.model.encoder import Encoder

TRIAL_DIM, TRIAL_HEADS = 64, 4
"""Width and heads of mixers that are built only to find out whether they show maps."""

ROW_SUM_TOLERANCE = 1e-3
"""Tolerance for the sum of a row of an attention map, which is 1: above float32 rounding over thousands of tokens."""

_COLLECTING = threading.RLock()
"""Held while maps are collected: the mode of an encoder is the same for all threads."""


@dataclass(frozen=True)
class LayerMaps:
    """Attention maps of one layer.

    Attributes:
        maps: of all clips and heads.
        layout: of the mixer's input tokens: with class tokens once they have joined, reversed where the wiring reads
            from the end.
    """

    maps: AttentionMaps
    layout: TokenLayout


@dataclass
class LayerRecord:
    """Record of the hooks of one layer: layouts passed to its mixer, and maps of the mixer inside that shows them.

    Forward passes of other threads are not recorded.
    """

    thread: int = field(default_factory=threading.get_ident)
    layouts: list[TokenLayout] = field(default_factory=list)
    layer_maps: list[LayerMaps] = field(default_factory=list)


def attention_maps(encoder: Encoder, features: Float[Tensor, "batch bins frames"]) -> list[LayerMaps]:
    """Run the encoder once and return the attention maps of every mixer.

    Nothing is dropped or masked, autocast is off, and no gradient is kept. The maps of a layer take
    `batch * heads * tokens^2` numbers each. Several threads may collect maps of one encoder; they take turns.

    Args:
        encoder: with mixers that show maps; on the device of the features, with weights in float32. Its mode is left
            as it was.
        features: from the front end that it was trained with.

    Returns:
        one entry per layer, in the order of the layers.

    Raises:
        ConfigError: a mixer shows no maps, or an adapter mixes tokens in a way that no single map describes.
    """
    mixers = [mixer_with_maps(encoder, number) for number in range(len(encoder.blocks))]
    records = [LayerRecord() for _ in mixers]
    with _COLLECTING, contextlib.ExitStack() as stack:
        for number, mixer in enumerate(mixers):
            _watch(stack, encoder.typed_blocks[number].mixer, mixer, records[number])
        stack.enter_context(_evaluating(encoder))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(features.device.type, enabled=False))
        encoder(features.float())
    return [_only(encoder, number, mixers[number], record) for number, record in enumerate(records)]


def mixer_with_maps(encoder: Encoder, layer: int) -> ShowsMaps:
    """Return the module of a layer that shows maps: its mixer, or the only such mixer inside an adapter's wrapper.

    Raises:
        ConfigError: there is none, in which case the message names the mixers that show maps, or there are several.
    """
    outer = encoder.typed_blocks[layer].mixer
    candidates = [module for module in outer.modules() if isinstance(module, ShowsMaps)]
    if candidates and (candidates[0] is outer or len(candidates) == 1):
        return candidates[0]
    if candidates:
        raise ConfigError(
            f"layer {layer}: {type(outer).__name__} contains {len(candidates)} mixers with attention maps, and has "
            "no method `maps` that combines them."
        )
    raise ConfigError(
        f"the mixer {encoder.config.mixer.name!r} (layer {layer}, {type(outer).__name__}) has no attention "
        f"maps. Mixers with maps: {', '.join(mixers_with_maps(installed_catalog())) or 'none'}."
    )


def mixers_with_maps(catalog: Catalog) -> list[str]:
    """Return the names of the mixers of a catalog that show maps, among those that can be built here."""
    names = []
    with building():
        for offer in catalog.family_offers("mixer"):
            with contextlib.suppress(AsdaError, ImportError, RuntimeError):
                mixer: Any = offer.spec.build(offer.spec.config(), MixerContext(TRIAL_DIM, TRIAL_HEADS, 0, 1))
                if isinstance(mixer, ShowsMaps):
                    names.append(offer.spec.name)
    return sorted(names)


def check_maps(maps: object, layout: TokenLayout, name: str) -> None:
    """Check that what the method `maps` of a mixer returned can be shown.

    Args:
        maps: what it returned.
        layout: of the tokens that it was given.
        name: of the mixer, for messages.

    Raises:
        ConfigError: it is no `AttentionMaps`, a shape is wrong, or a row does not sum to 1 over the tokens that are not
            padding; rows of padding may hold anything.
    """
    if not isinstance(maps, AttentionMaps):
        raise ConfigError(f"{name}.maps must return AttentionMaps, not {type(maps).__name__}.")
    if (maps.second is None) != (maps.weight is None):
        raise ConfigError(f"{name}.maps must return a second map and its weight, or neither.")
    (batch, tokens), valid = layout.index.shape, layout.valid[:, None]
    heads = maps.first.shape[1] if maps.first.ndim == 4 else "heads"
    for which, one in zip(("first", "second"), maps, strict=False):
        if tuple(one.shape) != (batch, heads, tokens, tokens):
            shape = f"({batch}, {heads}, {tokens}, {tokens})"
            raise ConfigError(f"{name}.maps: the {which} map has shape {tuple(one.shape)}, not {shape}.")
        sums = (one @ valid.to(one).unsqueeze(3)).squeeze(3)
        error = (sums - 1).abs().masked_fill(~valid, 0)
        if not error.max() <= ROW_SUM_TOLERANCE:
            raise ConfigError(
                f"{name}.maps: a row of the {which} map sums to {sums.flatten()[error.argmax()]:.3g} over the tokens "
                "that are not padding, not to 1."
            )


def _watch(stack: contextlib.ExitStack, outer: nn.Module, mixer: ShowsMaps, record: LayerRecord) -> None:
    """Register hooks that record the layout passed to `outer`, and the maps of `mixer` inside it for its input.

    PyTorch calls them without `kwargs` in another thread while they are being registered or removed.
    """

    def record_layout(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        if threading.get_ident() == record.thread:
            record.layouts.append(_arguments(args, kwargs or {})[1])

    def record_maps(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        if threading.get_ident() != record.thread:
            return
        tokens, layout = _arguments(args, kwargs or {})
        maps: Any = mixer.maps(tokens, layout)
        check_maps(maps, layout, type(mixer).__name__)
        record.layer_maps.append(LayerMaps(maps, layout))

    for module, hook in ((outer, record_layout), (cast(nn.Module, mixer), record_maps)):
        stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)


def _arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, TokenLayout]:
    """Return tokens and layout from positional or keyword arguments of a mixer."""
    values = [*args, *kwargs.values()]
    layout = next(value for value in values if isinstance(value, TokenLayout))
    return next(value for value in values if isinstance(value, Tensor)), layout


def _only(encoder: Encoder, layer: int, mixer: ShowsMaps, record: LayerRecord) -> LayerMaps:
    """Return the maps of a layer if its mixer was called once, on exactly the tokens of its block."""
    if len(record.layer_maps) == len(record.layouts) == 1 and record.layer_maps[0].layout is record.layouts[0]:
        return record.layer_maps[0]
    outer = type(encoder.typed_blocks[layer].mixer).__name__
    raise ConfigError(
        f"layer {layer}: {outer} runs {type(mixer).__name__} {len(record.layer_maps)} times or on tokens of its own, "
        "as the adapter 'prompt' does, and combines the outputs: no single map describes the attention of the layer. "
        "Use the checkpoint before adaptation, or one with another adapter."
    )


@contextlib.contextmanager
def _evaluating(encoder: Encoder) -> Iterator[None]:
    """Set evaluation mode, and restore the mode of every module on exit."""
    training = [module for module in encoder.modules() if module.training]
    encoder.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
