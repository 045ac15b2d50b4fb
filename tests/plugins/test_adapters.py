"""The adapters: contract, published parameter counts, plain restatements, places on the grid, state and merging."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import asda_plugins.adapter_bias_only as bias_only
import asda_plugins.adapter_bottleneck as bottleneck
import asda_plugins.adapter_convolution as convolution
import asda_plugins.adapter_low_rank as low_rank
import asda_plugins.adapter_prompt as prompt
import asda_plugins.mixer_differential as mixer_differential
import asda_plugins.mixer_standard as mixer_standard
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from asda_core.adapting import attach
from asda_core.config import ClassTokenConfig, EncoderConfig
from asda_core.config_io import parse
from asda_core.contracts import AdapterContext, MixerContext
from asda_core.errors import ConfigError
from asda_core.layout import TokenLayout
from asda_core.model.encoder import Encoder, EncoderOutput
from asda_core.testing import check_adapter, check_all_parameters_move, small_encoder

MODULES = (bottleneck, convolution, low_rank, prompt, bias_only)
ADAPTERS: dict[str, Any] = {spec.name: spec for module in MODULES for spec in module.asda_adapters()}
MIXERS = {spec.name: spec for module in (mixer_standard, mixer_differential) for spec in module.asda_mixers()}
VARIANTS = [
    ("bottleneck", {"behind_mixer": True}),
    ("bottleneck", {"beside_mlp": False, "behind_mixer": True, "ratio": 0.5}),
    ("convolution", {"width": 5, "dropout": 0.0}),
    ("convolution", {"beside_mixer": False}),
    ("convolution", {"beside_mlp": False}),
    ("low_rank", {"where": "mlp", "rank": 3}),
    ("low_rank", {"where": "both", "alpha": 1}),
    ("prompt", {"count": 1}),
]
WITHOUT_MLP: dict[str, dict[str, Any]] = {name: {} for name in ADAPTERS} | {
    "bottleneck": {"beside_mlp": False, "behind_mixer": True}
}
EVERYWHERE: dict[str, dict[str, Any]] = {name: {} for name in ADAPTERS} | {
    "bottleneck": {"behind_mixer": True},
    "low_rank": {"where": "both"},
}
SHAPES: dict[str, dict[str, Any]] = {
    "as published": {},
    "pre-norm": {"norm": "pre", "final_norm": True},
    "no class token": {"class_token": ClassTokenConfig(position="none")},
    "class token in the middle": {"class_token": ClassTokenConfig(position="middle")},
    "two class tokens, late": {"class_token": ClassTokenConfig(join_layer=1, position="last", count=2)},
    "pairs": {"wiring": "paired", "class_token": ClassTokenConfig(position="middle")},
    "bands first": {"token_order": "frequency"},
    "rms": {"norm_type": "rms"},
}
GRID = (4, 8)
DIM = 32
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def make(mixer: str = "standard", **options: Any) -> Encoder:
    config = EncoderConfig(**{"dim": DIM, "depth": 2, "num_heads": 4} | options)
    spec = MIXERS[mixer]
    contexts = [MixerContext(config.dim, config.num_heads, layer, config.depth) for layer in range(config.depth)]
    return Encoder(config, [spec.build(spec.config(), context) for context in contexts]).eval()


def adapt(name: str, encoder: Encoder, **options: Any) -> list[nn.Parameter]:
    spec = ADAPTERS[name]
    context = AdapterContext(encoder.config.dim, encoder.config.depth)
    return attach(spec.build(parse(spec.config, options), context), encoder)


@torch.no_grad()
def disturb(parameters: list[nn.Parameter], size: float = 0.3) -> None:
    """As if trained."""
    for parameter in parameters:
        parameter += size * torch.randn_like(parameter)


def layouts() -> dict[str, TokenLayout]:
    full = TokenLayout.full(2, GRID)
    kept = torch.tensor([[0, 1, 5, 8, 9, 16, 20, 27, 29], [1, 2, 3, 4, 11, 12, 13, 19, 31]])
    padding = torch.zeros_like(full.index, dtype=torch.bool)
    padding[0, -6:] = True
    padding[1, 2:4] = True
    padded = replace(full, padding=padding)
    select = torch.arange(2)
    return {"full": full, "masked": full.select(select, kept), "padded": padded, "both": padded.select(select, kept)}


def equal(one: EncoderOutput, other: EncoderOutput, where: Tensor | None = None) -> bool:
    """Whether all outputs are equal to rounding (at the valid tokens, if told which)."""
    mask = torch.ones_like(one.layout.index, dtype=torch.bool) if where is None else where
    pairs = [(one.tokens, other.tokens), *zip(one.layers, other.layers, strict=True)]
    same = all(torch.allclose(a[mask], b[mask], atol=TOLERANCE) for a, b in pairs)
    return same and torch.allclose(one.summary, other.summary, atol=TOLERANCE)


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in ADAPTERS), *VARIANTS])
def test_contract(name: str, options: dict[str, Any], mixer: str) -> None:
    check_adapter(ADAPTERS[name], MIXERS[mixer], **options)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("bottleneck", {}, 3_550_464),
        ("bottleneck", {"behind_mixer": True}, 7_100_928),
        ("convolution", {}, 24 * 136_064),
        ("convolution", {"width": 32}, 24 * 59_200),
        ("convolution", {"beside_mlp": False}, 12 * 136_064),
        ("low_rank", {}, 12 * 8 * (768 + 3 * 768 + 768 + 768)),
        ("low_rank", {"where": "mlp", "rank": 4}, 12 * 4 * 2 * (768 + 4 * 768)),
        ("prompt", {}, 12 * (10 + 1) * 768),
        ("bias_only", {}, 768 * (1 + 1 + 12 * (3 + 1 + 1 + 4 + 1 + 1))),
    ],
)
def test_parameters_at_vit_b(name: str, options: dict[str, Any], expected: int) -> None:
    """The published counts of AAT and AI-CL, and those that the equations of the others give."""
    with torch.device("meta"):
        encoder = make(dim=768, depth=12, num_heads=12, mlp_ratio=4.0)
    assert sum(parameter.numel() for parameter in adapt(name, encoder, **options)) == expected


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ADAPTERS)
def test_attaching_changes_nothing_training_does_and_padding_has_no_say(name: str, shape: str) -> None:
    encoder = make(**SHAPES[shape])
    cases = {key: (torch.randn(*layout.index.shape, DIM), layout) for key, layout in layouts().items()}
    before = {key: encoder.encode(*case) for key, case in cases.items()}
    new = adapt(name, encoder, **EVERYWHERE[name])
    assert all(equal(before[key], encoder.encode(*case)) for key, case in cases.items())
    disturb(new)
    for key, (tokens, layout) in cases.items():
        after = encoder.encode(tokens, layout)
        assert not equal(before[key], after, layout.valid), f"{key}: the adapter does nothing"
        if layout.padding is not None:
            assert layout.padding.any()
            changed = torch.where(layout.padding[..., None], torch.randn_like(tokens), tokens)
            assert equal(after, encoder.encode(changed, layout), layout.valid), f"{key}: padding matters"


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("shape", [{"norm": "pre", "final_norm": True}, {"norm": "pre", "mlp_ratio": 0.0}])
def test_all_of_it_learns_in_other_blocks(name: str, shape: dict[str, Any]) -> None:
    encoder = make(**shape)
    new = adapt(name, encoder, **WITHOUT_MLP[name])
    features = torch.randn(2, 128, 64)
    weight = torch.randn(2, 32, DIM)
    base = [p.detach().clone() for p in encoder.parameters() if not p.requires_grad]
    check_all_parameters_move(encoder, lambda: (encoder(features).tokens * weight).sum())
    kept = [p for p in encoder.parameters() if not p.requires_grad]
    assert all(torch.equal(one, other) for one, other in zip(base, kept, strict=True))
    assert len(new) + len(kept) == len(list(encoder.parameters()))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bottleneck", {}, "beside_mlp: false and behind_mixer: true"),
        ("bottleneck", {"behind_mixer": True}, "beside_mlp: false and behind_mixer: true"),
        ("convolution", {"beside_mixer": False}, "beside_mixer: true"),
        ("low_rank", {"where": "mlp"}, "no linear layer.*`both`"),
    ],
)
def test_without_mlp_what_stands_beside_it_is_an_error(name: str, options: dict[str, Any], message: str) -> None:
    encoder = make(mlp_ratio=0.0)
    keys = set(encoder.state_dict())
    with pytest.raises(ConfigError, match=message):
        adapt(name, encoder, **options)
    assert set(encoder.state_dict()) == keys, "half of it was attached"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bottleneck", {"ratio": 0.0}, "ratio"),
        ("bottleneck", {"ratio": 1e30}, "ratio must lie in"),
        ("bottleneck", {"ratio": 0.01}, "no hidden unit"),
        ("bottleneck", {"beside_mlp": False}, "nothing to attach"),
        ("convolution", {"width": 0}, "width"),
        ("convolution", {"dropout": 1.0}, "dropout"),
        ("convolution", {"beside_mlp": False, "beside_mixer": False}, "nothing to attach"),
        ("low_rank", {"rank": 0}, "rank"),
        ("low_rank", {"alpha": -1.0}, "alpha"),
        ("low_rank", {"where": "head"}, "where"),
        ("prompt", {"count": 0}, "count"),
    ],
)
def test_options_that_make_no_sense(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        adapt(name, make(), **options)


@pytest.mark.parametrize("name", ADAPTERS)
def test_not_twice(name: str) -> None:
    encoder = make()
    adapt(name, encoder)
    with pytest.raises(ConfigError, match=f"{name} is already attached"):
        adapt(name, encoder)


def test_nothing_to_adapt() -> None:
    with pytest.raises(ConfigError, match="no linear layer"):
        adapt("low_rank", small_encoder())
    with pytest.raises(ConfigError, match="no linear layer wider than rank: 32"):
        adapt("low_rank", make(), rank=DIM)


@pytest.mark.parametrize("name", ADAPTERS)
def test_state_goes_round(name: str) -> None:
    encoder, other = make(), make()
    disturb(adapt(name, encoder))
    adapt(name, other)
    features = torch.randn(2, 128, 64)
    assert not equal(encoder(features), other(features))
    other.load_state_dict(encoder.state_dict(), strict=True)
    assert torch.equal(encoder(features).tokens, other(features).tokens)


@pytest.mark.parametrize("name", ADAPTERS)
def test_copies_are_equal_and_independent(name: str) -> None:
    encoder = make()
    disturb(adapt(name, encoder))
    features = torch.randn(2, 128, 64)
    before = encoder(features)
    twin = copy.deepcopy(encoder)
    assert torch.equal(twin(features).tokens, before.tokens)
    disturb([parameter for parameter in twin.parameters() if parameter.requires_grad])
    assert not equal(twin(features), before)
    assert torch.equal(encoder(features).tokens, before.tokens)


@pytest.mark.parametrize("name", ADAPTERS)
def test_new_parameters_are_of_the_type_of_the_encoder(name: str) -> None:
    encoder = make().double()
    assert {parameter.dtype for parameter in adapt(name, encoder)} == {torch.float64}


@pytest.mark.parametrize(
    ("first", "second"), [("bottleneck", "low_rank"), ("prompt", "convolution"), ("low_rank", "bias_only")]
)
def test_adapters_stack(first: str, second: str) -> None:
    encoder = make()
    features = torch.randn(2, 128, 64)
    before = encoder(features)
    adapt(first, encoder)
    adapt(second, encoder)
    assert equal(before, encoder(features))


def test_bottleneck_by_its_equations() -> None:
    encoder = make()
    disturb(adapt("bottleneck", encoder, behind_mixer=True))
    layout = TokenLayout.full(2, GRID)
    tokens = torch.randn(2, 32, DIM)
    for wrapped, skip in ((encoder.blocks[1].mlp, False), (encoder.blocks[1].mixer, True)):
        inner = wrapped.inner(tokens, layout)
        read = inner if skip else tokens
        hidden = read @ wrapped.adapter.down.weight.T + wrapped.adapter.down.bias
        assert hidden.shape[-1] == DIM // 4
        gelu = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        expected = inner + gelu @ wrapped.adapter.up.weight.T + wrapped.adapter.up.bias
        assert torch.allclose(wrapped(tokens, layout), expected, atol=TOLERANCE)


def grid_convolution(dropout: float = 0.1) -> Any:
    module = convolution.GridConvolution(convolution.ConvolutionConfig(width=6, dropout=dropout), DIM).eval()
    disturb(list(module.parameters()))
    return module


def restated(module: Any, tokens: Tensor, layout: TokenLayout) -> Tensor:
    """Token by token and neighbour by neighbour."""

    def bend(values: Tensor) -> Tensor:
        return values / (1 + torch.exp(-1.702 * values))

    kernel, bias = module.convolution.weight, module.convolution.bias
    hidden = bend(module.down(tokens))
    result = torch.empty_like(tokens)
    for clip in range(len(tokens)):
        place = {
            (int(layout.time[clip, n]), int(layout.band[clip, n])): hidden[clip, n]
            for n in range(tokens.shape[1])
            if layout.valid[clip, n] and layout.index[clip, n] >= 0
        }
        for n in range(tokens.shape[1]):
            time, band = int(layout.time[clip, n]), int(layout.band[clip, n])
            if layout.index[clip, n] < 0:
                near = {(1, 1): hidden[clip, n]}
            else:
                near = {(i, j): place.get((time + i - 1, band + j - 1)) for i in range(3) for j in range(3)}
            total = bias + sum(kernel[:, :, i, j] @ one for (i, j), one in near.items() if one is not None)
            result[clip, n] = module.up(bend(total))
    return result


@torch.no_grad()
@pytest.mark.parametrize("key", ["full", "masked", "padded", "both"])
@pytest.mark.parametrize("column", [None, 0, 5])
def test_convolution_by_its_equation(key: str, column: int | None) -> None:
    module = grid_convolution()
    layout = layouts()[key]
    if column is not None:
        layout = layout.with_class_token(column, 2)
    tokens = torch.randn(*layout.index.shape, DIM)
    difference = module(tokens, layout) - restated(module, tokens, layout)
    assert difference[layout.valid].abs().max() < TOLERANCE


@torch.no_grad()
def test_convolution_is_that_of_torch_on_a_full_grid() -> None:
    module = grid_convolution()
    layout = TokenLayout.full(2, GRID).with_class_token(0)
    tokens = torch.randn(2, 33, DIM)
    hidden = convolution.quick_gelu(module.down(tokens))
    maps = hidden[:, 1:].reshape(2, *GRID, 6).permute(0, 3, 1, 2)
    patches = module.convolution(maps).permute(0, 2, 3, 1).reshape(2, 32, 6)
    single = module.convolution(hidden[:, :1].transpose(1, 2)[..., None]).squeeze(-1).transpose(1, 2)
    expected = module.up(convolution.quick_gelu(torch.cat([single, patches], dim=1)))
    assert torch.allclose(module(tokens, layout), expected, atol=TOLERANCE)


@torch.no_grad()
def test_convolution_goes_by_the_layout_and_not_by_the_order() -> None:
    module = grid_convolution()
    layout = layouts()["masked"]
    tokens = torch.randn(*layout.index.shape, DIM)
    order = torch.randperm(tokens.shape[1])
    shuffled = replace(layout, index=layout.index[:, order])
    assert torch.allclose(module(tokens[:, order], shuffled), module(tokens, layout)[:, order], atol=TOLERANCE)


@torch.no_grad()
def test_padding_that_shares_a_place_with_a_token_does_not_cover_it() -> None:
    module = grid_convolution()
    layout = TokenLayout.full(2, GRID)
    tokens = torch.randn(2, 33, DIM)
    padding = torch.zeros(2, 33, dtype=torch.bool)
    padding[:, 32] = True
    joined = TokenLayout(torch.cat([layout.index, layout.index[:, 9:10]], dim=1), GRID, padding)
    expected = module(tokens[:, :32], layout)
    assert torch.allclose(module(tokens, joined)[:, :32], expected, atol=TOLERANCE)


@torch.no_grad()
def test_convolution_drops_only_in_training() -> None:
    module = grid_convolution(0.5)
    layout = TokenLayout.full(2, GRID)
    tokens = torch.randn(2, 32, DIM)
    assert torch.equal(module(tokens, layout), module(tokens, layout))
    module.train()
    assert not torch.equal(module(tokens, layout), module(tokens, layout))


def test_convolution_stands_beside_both_and_reads_what_they_read() -> None:
    encoder = make()
    disturb(adapt("convolution", encoder))
    layout = TokenLayout.full(2, GRID)
    tokens = torch.randn(2, 32, DIM)
    for wrapped in (encoder.blocks[0].mixer, encoder.blocks[0].mlp):
        expected = wrapped.inner(tokens, layout) + wrapped.adapter(tokens, layout)
        assert torch.equal(wrapped(tokens, layout), expected)
    assert encoder.blocks[0].mixer.adapter is not encoder.blocks[0].mlp.adapter


def test_convolution_without_mlp_stands_beside_the_mixer_alone() -> None:
    encoder = make(mlp_ratio=0.0)
    assert len(adapt("convolution", encoder)) == 2 * 6
    assert all(block.mlp is None for block in encoder.blocks)


@pytest.mark.parametrize("mixer", MIXERS)
def test_low_rank_by_its_equation_and_merged(mixer: str) -> None:
    encoder, plain = make(mixer), make(mixer)
    layers = {name: layer for name, layer in encoder.named_modules() if isinstance(layer, nn.Linear)}
    weights = {name: layer.weight for name, layer in layers.items()}
    values = {name: weight.detach().clone() for name, weight in weights.items()}
    disturb(adapt("low_rank", encoder, rank=4, alpha=6.0))
    adapted = {name: layer for name, layer in layers.items() if is_parametrized(layer, "weight")}
    assert set(adapted) == {name for name in layers if ".mixer." in name}
    for name, layer in adapted.items():
        parts = layer.parametrizations.weight
        assert parts.original is weights[name]
        assert torch.equal(parts.original, values[name])
        expected = values[name] + 1.5 * parts[0].up @ parts[0].down
        assert torch.allclose(layer.weight, expected, atol=TOLERANCE)
        assert torch.linalg.matrix_rank(layer.weight - values[name], rtol=1e-3) == 4
    features = torch.randn(2, 128, 64)
    before = encoder(features)
    for layer in adapted.values():
        remove_parametrizations(layer, "weight", leave_parametrized=True)
    assert torch.equal(encoder(features).tokens, before.tokens)
    plain.load_state_dict(encoder.state_dict(), strict=True)
    assert torch.equal(plain(features).tokens, before.tokens)


def test_low_rank_acts_where_a_mixer_reads_the_weight_itself() -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(DIM, DIM)

        def forward(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
            return tokens.mean(dim=1, keepdim=True) + tokens @ self.linear.weight.T

    encoder = Encoder(EncoderConfig(dim=DIM, depth=2, num_heads=4), [Reading(), Reading()])
    features = torch.randn(2, 128, 64)
    before = encoder(features)
    new = adapt("low_rank", encoder)
    assert torch.equal(encoder(features).tokens, before.tokens)
    disturb(new)
    assert not equal(encoder(features), before)


class Witness(nn.Module):
    """A mixer that gives back what it sees, and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, TokenLayout]] = []

    def forward(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        self.seen.append((tokens, layout))
        return tokens


@torch.no_grad()
@pytest.mark.parametrize(("class_column", "column"), [(None, 0), (0, 0), (4, 4)])
def test_prompts_join_beside_the_class_token_and_overwrite_nothing(class_column: int | None, column: int) -> None:
    witness = Witness()
    mixer = prompt.PromptedMixer(witness, torch.randn(1, 3, DIM))
    disturb([mixer.gate])
    layout = layouts()["both"]
    if class_column is not None:
        layout = layout.with_class_token(class_column)
    tokens = torch.randn(*layout.index.shape, DIM)
    assert torch.equal(mixer(tokens, layout), tokens), "the prompts stand where tokens stood"
    (plain, plain_layout), (joined, joined_layout) = witness.seen
    assert torch.equal(plain, tokens)
    assert plain_layout is layout
    places = slice(column, column + 3)
    assert torch.equal(joined[:, places], mixer.prompts.expand(2, -1, -1))
    assert torch.equal(torch.cat([joined[:, :column], joined[:, column + 3 :]], dim=1), tokens)
    assert joined_layout.is_class[:, places].all()
    assert joined_layout.valid[:, places].all()
    assert joined_layout.class_column == column
    assert joined_layout.class_count == 3 + (class_column is not None)
    assert torch.equal(joined_layout.without_class_token().index, layout.without_class_token().index)


@torch.no_grad()
def test_a_gate_of_one_is_the_mixer_with_prompts() -> None:
    encoder = make()
    inner = encoder.blocks[0].mixer
    adapt("prompt", encoder, count=4)
    mixer = encoder.blocks[0].mixer
    mixer.gate.fill_(1)
    tokens = torch.randn(2, 32, DIM)
    joined = torch.cat([mixer.prompts.expand(2, -1, -1), tokens], dim=1)
    expected = inner(joined, TokenLayout.full(2, (4, 9)))[:, 4:]  # attention does not look at the grid
    assert torch.allclose(mixer(tokens, TokenLayout.full(2, GRID)), expected, atol=TOLERANCE)


def test_a_step_opens_the_gate() -> None:
    encoder = make()
    new = adapt("prompt", encoder)
    features = torch.randn(2, 128, 64)
    before = encoder(features)
    (before.tokens * torch.randn_like(before.tokens)).sum().backward()
    torch.optim.SGD(new, lr=1.0).step()
    assert not equal(before, encoder(features))


@pytest.mark.parametrize("mixer", MIXERS)
def test_bias_only_shifts_every_bias(mixer: str) -> None:
    encoder, shifted = make(mixer), make(mixer)
    shifted.load_state_dict(encoder.state_dict())
    biases = {name: bias for name, bias in encoder.named_parameters() if name.endswith(".bias")}
    modules = dict(encoder.named_modules())
    new = adapt("bias_only", encoder)
    assert sorted(parameter.shape for parameter in new) == sorted(bias.shape for bias in biases.values())
    disturb(new)
    for name, bias in biases.items():
        parts: Any = modules[name.removesuffix(".bias")].parametrizations
        assert parts.bias.original is bias
        with torch.no_grad():
            shifted.get_parameter(name).add_(parts.bias[0].difference)
    features = torch.randn(2, 128, 64)
    assert torch.equal(encoder(features).tokens, shifted(features).tokens)


def test_bias_only_merges() -> None:
    encoder, plain = make(), make()
    disturb(adapt("bias_only", encoder))
    features = torch.randn(2, 128, 64)
    before = encoder(features)
    for module in [module for module in encoder.modules() if is_parametrized(module, "bias")]:
        remove_parametrizations(module, "bias")
    plain.load_state_dict(encoder.state_dict(), strict=True)
    assert torch.equal(plain(features).tokens, before.tokens)


@pytest.mark.parametrize(
    ("module", "bound"),
    [
        (lambda: low_rank.LowRank(torch.empty(2000, 100), 50, 1.0), 0.1),
        (lambda: bottleneck.Bottleneck(100, 50), 0.1),
        (lambda: convolution.GridConvolution(convolution.ConvolutionConfig(50), 100), math.sqrt(6 / 150)),
    ],
    ids=["low_rank", "bottleneck", "convolution"],
)
def test_the_first_matrix_is_uniform_and_the_second_zero(module: Callable[[], Any], bound: float) -> None:
    built = module()
    up, down = (getattr(part, "weight", part).detach() for part in (built.up, built.down))
    assert not up.any()
    assert 0.95 * bound < down.abs().max() <= bound
    assert math.isclose(down.std(), bound / math.sqrt(3), rel_tol=0.05)
