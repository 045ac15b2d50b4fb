"""Attention maps: what a mixer shows is what it does, and one forward pass finds those of every layer."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asda_core.adapting import attach
from asda_core.assemble import build_encoder
from asda_core.catalog import Catalog
from asda_core.config import ClassTokenConfig, EncoderConfig, PluginChoice
from asda_core.config_io import parse
from asda_core.contracts import AdapterContext, MixerContext
from asda_core.errors import ConfigError
from asda_core.inference.attention_maps import attention_maps, mixers_with_maps
from asda_core.layout import TokenLayout
from asda_core.model.attention import AttentionMaps
from asda_core.model.encoder import Encoder

DIM, HEADS = 32, 4
SUBTRACTIVE = ("differential_v1", "differential_v2", "dint", "grouped_differential")
WITH_MAPS = ("standard", "differential", *SUBTRACTIVE)
CONFIG = EncoderConfig(dim=DIM, depth=2, num_heads=HEADS)


def make(catalog: Catalog, name: str, **options: Any) -> Any:
    spec = catalog.find("mixer", name).spec
    torch.manual_seed(3)
    mixer = spec.build(parse(spec.config, options), MixerContext(DIM, HEADS, 1, 2)).eval()
    for parameter in mixer.parameters():  # small weights give even maps, which would hide a mistake
        parameter.data += 0.3 * torch.randn_like(parameter)
    return mixer


def encoder_of(catalog: Catalog, name: str = "differential", config: EncoderConfig = CONFIG, **options: Any) -> Encoder:
    torch.manual_seed(0)
    return build_encoder(catalog, replace(config, mixer=PluginChoice(name, options))).eval()


def layouts() -> list[TokenLayout]:
    full = TokenLayout.full(2, (5, 3))
    padding = torch.zeros(2, 15, dtype=torch.bool)
    padding[0, 9:] = True
    return [full, TokenLayout(full.index, full.grid, padding), full.with_class_token(7, 2)]


def heads_made_by(mixer: Any, tokens: Tensor, layout: TokenLayout) -> Tensor:
    """What the mixer really makes of its values, (B, H, N, width), before its norm and its last map."""
    seen: list[Tensor] = []
    module = mixer.norm if hasattr(mixer, "norm") else mixer.proj
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    mixer(tokens, layout)
    handle.remove()
    made = seen[0]
    return made if made.ndim == 4 else made.unflatten(2, (HEADS, -1)).transpose(1, 2)


def values_of(mixer: Any, tokens: Tensor) -> Tensor:
    if hasattr(mixer, "v"):
        split: Tensor = mixer.v(tokens)
    else:
        split = mixer.qkv(tokens)[..., -DIM:]
    heads = mixer.heads.signal if hasattr(mixer, "heads") else HEADS
    return split.unflatten(2, (heads, -1)).transpose(1, 2)


@pytest.mark.parametrize("name", WITH_MAPS)
def test_the_difference_times_the_values_is_what_the_mixer_does(catalog: Catalog, name: str) -> None:
    mixer = make(catalog, name)
    for layout in layouts():
        tokens = torch.randn(*layout.index.shape, DIM)
        maps = mixer.maps(tokens, layout)
        made, valid = heads_made_by(mixer, tokens, layout), layout.valid[:, None, :, None]
        shown = maps.difference @ values_of(mixer, tokens)
        assert torch.allclose(shown * valid, made * valid, atol=1e-5)
        assert made.std() > 0.05  # and not because all is nearly 0
        for one in maps:
            assert torch.allclose(one.sum(-1), torch.ones(one.shape[:3]), atol=1e-5)
            assert (one >= 0).all()
            if layout.padding is not None:
                assert one.masked_select(layout.padding[:, None, None, :]).count_nonzero() == 0


@pytest.mark.parametrize("name", WITH_MAPS)
def test_the_form(catalog: Catalog, name: str) -> None:
    layout = layouts()[2]
    tokens = torch.randn(2, 17, DIM)
    maps = make(catalog, name).maps(tokens, layout)
    assert isinstance(maps, AttentionMaps)
    if name == "standard":
        assert maps.second is None
        assert maps.weight is None
        assert maps.difference is maps.first
        return
    assert maps.second is not None
    assert maps.second.shape == maps.first.shape
    weight = maps.weight.expand(*maps.first.shape[:3], 1)  # type: ignore[union-attr]
    rows = maps.difference.sum(-1, keepdim=True)
    assert torch.allclose(rows, torch.ones_like(rows) if name == "dint" else 1 - weight, atol=1e-5)


def test_a_noise_head_stands_beside_each_signal_head_that_it_serves(catalog: Catalog) -> None:
    second = make(catalog, "grouped_differential", ratio=2).maps(torch.randn(2, 15, DIM), layouts()[0]).second
    assert second.shape[1] == HEADS
    assert torch.equal(second[:, 0], second[:, 1])
    assert torch.equal(second[:, 2], second[:, 3])
    assert not torch.allclose(second[:, 1], second[:, 2], atol=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm": "pre", "final_norm": True},
        {"class_token": ClassTokenConfig(join_layer=1, position="middle", count=2)},
        {"class_token": ClassTokenConfig(position="none")},
        {"wiring": "paired"},
        {"token_order": "frequency"},
        {"mlp_ratio": 0.0},
    ],
    ids=str,
)
def test_every_layer_of_an_encoder(catalog: Catalog, changes: dict[str, Any]) -> None:
    """The maps of each layer are those of what its mixer got, whatever stands around it."""
    encoder = encoder_of(catalog, config=replace(CONFIG, **changes))
    features = torch.randn(2, 128, 80)
    given: list[tuple[Tensor, TokenLayout]] = []
    mixers: list[Any] = [block.mixer for block in encoder.blocks]  # type: ignore[union-attr]
    handles = [mixer.register_forward_pre_hook(lambda _, args: given.append(args)) for mixer in mixers]
    with torch.no_grad():
        before = encoder(features)
    for handle in handles:
        handle.remove()
    found = attention_maps(encoder, features)
    assert len(found) == 2
    for layer, mixer, (tokens, layout) in zip(found, mixers, given, strict=True):
        assert torch.equal(layer.layout.index, layout.index)
        assert torch.allclose(layer.maps.first, mixer.maps(tokens, layout).first, atol=1e-6)
        assert not layer.maps.first.requires_grad
    assert torch.equal(encoder(features).tokens, before.tokens), "a hook is left"
    assert not any(module._forward_pre_hooks for module in encoder.modules())


def test_a_class_token_that_joins_late(catalog: Catalog) -> None:
    config = replace(CONFIG, class_token=ClassTokenConfig(join_layer=1, position="last"))
    first, second = attention_maps(encoder_of(catalog, config=config), torch.randn(1, 128, 80))
    assert first.layout.class_column is None
    assert first.maps.first.shape[-1] == 40
    assert second.layout.class_column == 40
    assert second.maps.first.shape[-1] == 41


def test_reading_from_the_end(catalog: Catalog) -> None:
    _, second = attention_maps(encoder_of(catalog, config=replace(CONFIG, wiring="paired")), torch.randn(1, 128, 80))
    assert second.layout.index[0].tolist() == [*range(39, -1, -1), -1]


def test_the_mode_stays_and_nothing_is_dropped(catalog: Catalog) -> None:
    encoder = encoder_of(catalog).train()
    encoder.blocks[0].eval()
    for block in encoder.blocks:
        block.drop_path = 0.9  # type: ignore[assignment]
    features = torch.randn(4, 128, 80)
    found = attention_maps(encoder, features)
    assert encoder.training
    assert not encoder.blocks[0].training
    assert encoder.blocks[1].training
    again = attention_maps(encoder.eval(), features)
    assert torch.equal(found[1].maps.first, again[1].maps.first)


def test_threads_collect_the_maps_of_one_encoder(catalog: Catalog) -> None:
    encoder = encoder_of(catalog).train()
    encoder.typed_blocks[1].drop_path = 0.9
    encoder.register_forward_pre_hook(lambda *_: time.sleep(0.01))  # another thread's turn
    batches = [torch.randn(4, 128, frames) for frames in (64, 80, 96)]
    alone = [attention_maps(encoder, features) for features in batches]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(partial(attention_maps, encoder), batches))
    for expected, found in zip(alone, together, strict=True):
        assert torch.equal(expected[1].maps.first, found[1].maps.first)
    assert encoder.training


def test_a_forward_pass_of_another_thread_is_not_recorded(catalog: Catalog) -> None:
    encoder, features = encoder_of(catalog), torch.randn(1, 128, 80)
    expected = attention_maps(encoder, features)

    def run_in_another_thread(*_: object) -> None:
        handle.remove()
        thread = Thread(target=encoder, args=(torch.randn(1, 128, 64),))
        thread.start()
        thread.join()

    handle = encoder.patches.register_forward_pre_hook(run_in_another_thread)
    found = attention_maps(encoder, features)
    assert torch.equal(found[1].maps.first, expected[1].maps.first)


def test_under_autocast_maps_are_exact(catalog: Catalog) -> None:
    encoder, features = encoder_of(catalog), torch.randn(1, 128, 80)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = attention_maps(encoder, features)
    assert inside[1].maps.first.dtype == torch.float32
    assert torch.equal(inside[1].maps.first, attention_maps(encoder, features)[1].maps.first)


def test_one_map_is_its_own_difference(catalog: Catalog) -> None:
    """That of `frequency_time` is 0 outside row, column and class token."""
    found = attention_maps(encoder_of(catalog, "frequency_time"), torch.randn(1, 128, 80))
    assert torch.allclose(found[0].maps.difference.sum(-1), torch.ones(1, HEADS, 41), atol=1e-5)


class Strange(nn.Module):
    """A stranger's mixer, whose maps may have any form."""

    def __init__(self, maps: Any) -> None:
        super().__init__()
        self.shown = maps

    def forward(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        return tokens

    def maps(self, tokens: Tensor, layout: TokenLayout) -> Any:
        return self.shown


def with_mixers(mixers: Sequence[nn.Module]) -> Encoder:
    return Encoder(CONFIG, mixers).eval()


def test_a_strangers_mixer() -> None:
    even = torch.full((1, HEADS, 41, 41), 1 / 41)
    shown = AttentionMaps(even, even, torch.tensor(0.5))
    found = attention_maps(with_mixers([Strange(shown), Strange(shown)]), torch.randn(1, 128, 80))
    assert torch.allclose(found[0].maps.difference, even / 2)
    with pytest.raises(ConfigError, match=r"Strange\.maps must return AttentionMaps, not list"):
        attention_maps(with_mixers([Strange([even]), Strange(shown)]), torch.randn(1, 128, 80))


def test_a_mixer_without_maps(catalog: Catalog) -> None:
    with pytest.raises(ConfigError, match=r"'two_simplicial' \(layer 0, .*has no attention maps.*standard"):
        attention_maps(encoder_of(catalog, "two_simplicial"), torch.randn(1, 128, 80))


def test_which_mixers_have_maps(catalog: Catalog) -> None:
    state = torch.get_rng_state()
    assert mixers_with_maps(catalog) == sorted([*WITH_MAPS, "frequency_time"])
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("name", "options"),
    [("low_rank", {"rank": 2}), ("bottleneck", {"behind_mixer": True}), ("convolution", {}), ("bias_only", {})],
)
def test_adapters_that_leave_the_maps_right(catalog: Catalog, name: str, options: dict[str, Any]) -> None:
    """Before training an adapter changes nothing; afterwards the map is that of the adapted weights."""
    encoder, features = encoder_of(catalog), torch.randn(1, 128, 80)
    before = attention_maps(encoder, features)
    spec = catalog.find("adapter", name).spec
    new = attach(spec.build(parse(spec.config, options), AdapterContext(DIM, 2)), encoder)
    encoder.eval()
    after = attention_maps(encoder, features)
    assert torch.allclose(after[1].maps.first, before[1].maps.first, atol=1e-6)
    for parameter in new:
        parameter.data += torch.randn_like(parameter)
    trained = attention_maps(encoder, features)
    assert not torch.allclose(trained[1].maps.first, before[1].maps.first, atol=1e-3)


def test_an_adapter_that_blends_two_passes(catalog: Catalog) -> None:
    encoder = encoder_of(catalog)
    spec = catalog.find("adapter", "prompt").spec
    attach(spec.build(spec.config(), AdapterContext(DIM, 2)), encoder)
    with pytest.raises(ConfigError, match=r"layer 0: PromptedMixer runs DifferentialAttention 2 times"):
        attention_maps(encoder, torch.randn(1, 128, 80))
    assert not any(module._forward_pre_hooks for module in encoder.modules())
