"""Layout, patches, encoder: where the class token stands and what difference it makes."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from asda_plugins.mixer_standard import StandardConfig
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from asda_core.assemble import build_encoder, build_parts, check_class_token_axis
from asda_core.catalog import Catalog, load_catalog
from asda_core.config import ClassTokenConfig, EncoderConfig, PluginChoice, RunConfig
from asda_core.config_io import parse
from asda_core.contracts import MixerContext, MixerSpec, hookimpl
from asda_core.errors import ConfigError
from asda_core.layout import CLASS_TOKEN, TokenLayout
from asda_core.model.encoder import Encoder
from asda_core.model.patches import sine_cosine_positions


def make(catalog: Catalog, **changes: object) -> Encoder:
    config = parse(EncoderConfig, {"dim": 32, "depth": 3, "num_heads": 2, **changes})
    torch.manual_seed(0)
    return build_encoder(catalog, config).eval()


@pytest.mark.parametrize(
    ("mixer", "ratio", "parameters"), [("differential", 3.5, 92_364_288), ("standard", 4.0, 85_254_144)]
)
def test_published_parameter_counts(catalog: Catalog, mixer: str, ratio: float, parameters: int) -> None:
    with torch.device("meta"):
        encoder = build_encoder(catalog, EncoderConfig(mixer=PluginChoice(mixer), mlp_ratio=ratio))
    assert sum(parameter.numel() for parameter in encoder.parameters()) == parameters


def test_layout_travels_with_tokens() -> None:
    layout = TokenLayout.full(2, (3, 4))
    assert layout.time[0].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert layout.band[0].tolist() == [0, 1, 2, 3] * 3
    kept = layout.select(torch.tensor([0, 0, 1]), torch.tensor([[0, 5], [2, 11], [1, 3]]))
    assert kept.index.tolist() == [[0, 5], [2, 11], [1, 3]]
    joined = kept.with_class_token(1)
    assert joined.index.tolist() == [[0, -1, 5], [2, -1, 11], [1, -1, 3]]
    assert joined.class_column == 1
    assert joined.time[0].tolist() == [0, CLASS_TOKEN, 1]
    assert joined.without_class_token().index.tolist() == kept.index.tolist()
    padded = TokenLayout(layout.index, layout.grid, torch.arange(12).expand(2, -1) > 9).with_class_token(0)
    assert padded.valid.sum().item() == 2 * 11


@pytest.mark.parametrize("order", ["time", "frequency"])
def test_outputs_of_the_mlps_only_if_asked_for(catalog: Catalog, order: str) -> None:
    encoder, features = make(catalog, token_order=order), torch.randn(2, 128, 64)
    whole, less = encoder(features, [1]), encoder(features, [1], layers=False)
    assert len(whole.layers) == 3
    assert less.layers == ()
    assert torch.equal(whole.tokens, less.tokens)
    assert torch.equal(whole.outputs[1], less.outputs[1])


@pytest.mark.parametrize("mixer", ["standard", "differential"])
def test_position_of_the_class_token_means_nothing_to_attention(catalog: Catalog, mixer: str) -> None:
    features = torch.randn(2, 128, 64)
    results = [
        make(catalog, mixer=mixer, class_token={"position": position})(features)
        for position in ("first", "middle", "last")
    ]
    for other in results[1:]:
        assert torch.allclose(results[0].summary, other.summary, atol=1e-5)
        assert torch.allclose(results[0].tokens, other.tokens, atol=1e-5)


def test_joining_layer_means_something(catalog: Catalog) -> None:
    features = torch.randn(2, 128, 64)
    first, later, none = (
        make(catalog, class_token=token)(features) for token in ({}, {"join_layer": 2}, {"position": "none"})
    )
    assert not torch.allclose(first.summary, later.summary, atol=1e-3)
    assert torch.allclose(none.summary, none.tokens.mean(1))
    assert [layer.shape for layer in later.layers] == [(2, 32, 32)] * 3
    assert make(catalog, class_token={"position": "none"}).class_token is None


def test_late_class_token_leaves_the_first_layers_alone(catalog: Catalog) -> None:
    features = torch.randn(1, 128, 64)
    later = make(catalog, class_token={"join_layer": 2})(features)
    none = make(catalog, class_token={"position": "none"})(features)
    assert torch.equal(later.layers[0], none.layers[0])
    assert torch.equal(later.layers[1], none.layers[1])
    assert not torch.equal(later.layers[2], none.layers[2])


def test_pre_norm_keeps_its_residual(catalog: Catalog) -> None:
    """The released pre-norm branch returns twice the MLP's output and loses the residual."""
    encoder = make(catalog, norm="pre")
    tokens, layout = torch.randn(1, 4, 32), TokenLayout.full(1, (4, 1))
    output, layer = encoder.blocks[0](tokens, layout)
    mixed = tokens + encoder.blocks[0].mixer(encoder.blocks[0].norm1(tokens), layout)
    assert torch.allclose(output, mixed + layer)


@pytest.mark.parametrize("shape", [(128, 15), (8, 64)])
def test_too_few_features(catalog: Catalog, shape: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="hold no patch"):
        make(catalog)(torch.zeros(1, *shape))


def test_padding_has_no_influence_on_the_summary(catalog: Catalog) -> None:
    encoder = make(catalog, class_token={"position": "none"})
    tokens, layout = encoder.embed(torch.randn(1, 128, 64))
    padding = torch.zeros(1, 32, dtype=torch.bool)
    padding[:, 24:] = True
    short = encoder.encode(tokens[:, :24], TokenLayout(layout.index[:, :24], layout.grid))
    long = encoder.encode(tokens, TokenLayout(layout.index, layout.grid, padding))
    assert torch.allclose(short.summary, long.summary, atol=1e-5)


def test_positions_of_the_class_token_are_no_ablation(catalog: Catalog, tiny: RunConfig) -> None:
    def config(steps: int = 6, **token: object) -> RunConfig:
        encoder = replace(tiny.encoder, class_token=ClassTokenConfig(**token))  # type: ignore[arg-type]
        return replace(tiny, steps=steps, encoder=encoder)

    check_class_token_axis(catalog, [config(), config(join_layer=1), config(position="none")])
    check_class_token_axis(catalog, [config(), config(9, position="last")])
    with pytest.raises(ConfigError, match="'first' at layer 0 and 'last' at layer 0 are the same model for the mixer"):
        check_class_token_axis(catalog, [config(), config(position="last")])
    with pytest.raises(ConfigError, match="'none' at layer 0 and 'none' at layer 1 are the same model"):
        check_class_token_axis(catalog, [config(position="none"), config(position="none", join_layer=1)])


def test_positions_count_for_a_mixer_that_knows_order(tiny: RunConfig) -> None:
    def build(config: StandardConfig, context: MixerContext) -> nn.Module:
        return nn.Identity()

    spec = MixerSpec("scan", StandardConfig, build, "for tests", "here", knows_order=True)
    plugin = SimpleNamespace(asda_mixers=hookimpl(lambda: [spec]))
    encoder = replace(tiny.encoder, mixer=PluginChoice("scan"))
    configs = [
        replace(tiny, encoder=replace(encoder, class_token=ClassTokenConfig(0, position)))
        for position in ("first", "middle", "last")
    ]
    check_class_token_axis(load_catalog(plugin, installed=False), configs)


def test_weights_depend_on_the_seed_alone(catalog: Catalog, tiny: RunConfig) -> None:
    torch.manual_seed(5)
    first = build_parts(catalog, tiny)
    state = torch.get_rng_state()
    torch.manual_seed(6)
    second = build_parts(catalog, tiny)
    torch.manual_seed(5)
    build_parts(catalog, tiny)
    assert torch.equal(state, torch.get_rng_state())
    for one, other in zip(first.encoder.parameters(), second.encoder.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("mode", [torch.inference_mode, FakeTensorMode, partial(torch.device, "meta")])
def test_a_table_of_positions_is_of_nobodys_mode(mode: Callable[[], AbstractContextManager[object]]) -> None:
    """Whoever asks next may be a training, or come after a graph was traced."""
    with mode():
        sine_cosine_positions((3, 2), 12)
    table = sine_cosine_positions((3, 2), 12)
    assert not table.is_inference()
    assert (type(table), table.device.type) == (torch.Tensor, "cpu")
    table += 1
    assert not torch.equal(table, sine_cosine_positions((3, 2), 12))
