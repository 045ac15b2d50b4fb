"""The public contract suite: what every plugin of a family must do, for its author's tests and for ours.

    from asda_core.testing import check_mixer
    def test_my_mixer():
        check_mixer(my_module.asda_mixers()[0])

Each function raises AssertionError with the clause that is broken, and returns None.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from asda_core.adapting import attach
from asda_core.assemble import SAMPLE_RATE
from asda_core.config import EncoderConfig
from asda_core.config_io import parse
from asda_core.contracts import (
    AdapterContext,
    AdapterSpec,
    FrontEndContext,
    FrontEndSpec,
    MixerContext,
    MixerSpec,
    ObjectiveContext,
    ObjectiveSpec,
)
from asda_core.errors import PluginError
from asda_core.layout import TokenLayout
from asda_core.model.encoder import Encoder
from asda_core.pretrain.step import check_losses

CheckT = TypeVar("CheckT", bound=Callable[..., None])

DIM, HEADS, LAYERS = 32, 4, 2
GRID = (5, 4)
TOLERANCE = 1e-5
"""Of float32 sums in another order."""
TRAINING_STEPS = 3
LEARNING_STEPS = 25
LEARNING_RATE = 3e-3


def seeded(check: CheckT) -> CheckT:
    """Let a check draw the same numbers every time, and leave the caller's generator as it was."""

    @functools.wraps(check)
    def run(*arguments: Any, **options: Any) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            check(*arguments, **options)

    return cast(CheckT, run)


@seeded
def check_mixer(spec: MixerSpec[Any], **options: Any) -> None:
    """Shape; finite; clips alone; padding without influence; tokens that hear of each other; masked grids and a class
    token anywhere; order of tokens (if `knows_order` is False); state round trip; every parameter moves."""
    mixer = spec.build(parse(spec.config, options), MixerContext(DIM, HEADS, 1, LAYERS)).eval()
    for layout in _layouts():
        tokens = torch.randn(*layout.index.shape, DIM)
        mixed = mixer(tokens, layout)
        where = f"{spec.name} on {tuple(layout.index.shape)} tokens of {layout.grid}"
        assert mixed.shape == tokens.shape, f"{where}: shape {tuple(mixed.shape)}, not {tuple(tokens.shape)}"
        assert mixed.isfinite().all(), f"{where}: not finite"
        _check_independence(mixer, tokens, layout, where)
    _check_padding(mixer, spec.name)
    if not spec.knows_order:
        _check_order_is_free(mixer, spec.name)
    layout = _layouts()[0]
    tokens = torch.randn(*layout.index.shape, DIM)
    other = spec.build(parse(spec.config, options), MixerContext(DIM, HEADS, 1, LAYERS)).eval()
    check_state(mixer, other, tokens, layout)
    weight = torch.randn_like(tokens)
    mixer.train()
    check_all_parameters_move(mixer, lambda: (mixer(tokens, layout) * weight).sum())


def _layouts() -> list[TokenLayout]:
    """A full grid, a masked one, one token, and a class token first, in the middle and last, and two of them."""
    full = TokenLayout.full(3, GRID)
    kept = torch.stack([torch.randperm(GRID[0] * GRID[1])[:7].sort().values for _ in range(3)])
    masked = full.select(torch.arange(3), kept)
    one = [masked.with_class_token(column) for column in (0, 3, 7)]
    return [full, masked, TokenLayout.full(2, (1, 1)), *one, masked.with_class_token(3, 2)]


def _check_independence(mixer: nn.Module, tokens: Tensor, layout: TokenLayout, where: str) -> None:
    with torch.no_grad():
        mixed = mixer(tokens, layout)
        alone = mixer(tokens[:1], replace(layout, index=layout.index[:1]))
        assert torch.allclose(alone, mixed[:1], atol=TOLERANCE), f"{where}: a clip alone differs from it in a batch"
        heard = 0.0
        for place in (0, tokens.shape[1] - 1):  # a scan may read one way only
            changed = tokens.clone()
            changed[0, place] += torch.randn(DIM)
            moved = (mixer(changed, layout) - mixed).abs()
            assert moved[1:].max() <= TOLERANCE, f"{where}: clips influence each other"
            moved[0, place] = 0
            heard += float(moved[0].max())
        assert heard > 0 or tokens.shape[1] == 1, f"{where}: a token hears nothing of the others"


def _check_padding(mixer: nn.Module, name: str) -> None:
    full = TokenLayout.full(2, GRID)
    padding = torch.zeros(2, full.index.shape[1], dtype=torch.bool)
    padding[0, -6:] = True
    padding[1, 2:4] = True
    layout = TokenLayout(full.index, full.grid, padding)
    tokens = torch.randn(2, full.index.shape[1], DIM)
    changed = torch.where(padding[..., None], torch.randn_like(tokens), tokens)
    with torch.no_grad():
        difference = (mixer(tokens, layout) - mixer(changed, layout))[~padding].abs().max()
    assert difference <= TOLERANCE, f"{name}: padding influences valid tokens (by {difference:.1e})"


def _check_order_is_free(mixer: nn.Module, name: str) -> None:
    layout = TokenLayout.full(2, GRID).with_class_token(0)
    tokens = torch.randn(*layout.index.shape, DIM)
    order = torch.randperm(tokens.shape[1])
    with torch.no_grad():
        there = mixer(tokens, layout)[:, order]
        column = order.tolist().index(0)
        here = mixer(tokens[:, order], replace(layout, index=layout.index[:, order], class_column=column))
    assert torch.allclose(there, here, atol=TOLERANCE), f"{name}: the order of tokens matters; set knows_order=True"


def check_state(module: nn.Module, other: nn.Module, *arguments: Any) -> None:
    """A second module of the same make gives the same numbers after taking over the state, which is of tensors."""
    state = module.state_dict()
    strange = [name for name, value in state.items() if not isinstance(value, Tensor)]
    assert not strange, f"a checkpoint holds tensors alone, and {', '.join(strange)} is none"
    whole = [name for name, parameter in module.named_parameters() if not parameter.is_floating_point()]
    assert not whole, f"parameters must be floating point; make {', '.join(whole)} a buffer"
    other.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(module(*arguments), other(*arguments)), "state_dict does not hold all that matters"


def check_all_parameters_move(module: nn.Module, loss: Any) -> None:
    """Every parameter that wants a gradient has moved after three steps."""
    parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizer = torch.optim.SGD(parameters.values(), lr=1e-2)
    for _ in range(TRAINING_STEPS):
        optimizer.zero_grad()
        value = loss()
        if value.requires_grad:
            value.backward()
        optimizer.step()
    still = [name for name, parameter in parameters.items() if torch.equal(parameter, before[name])]
    assert not still, f"these parameters never move: {', '.join(still)}"


@seeded
def check_front_end(spec: FrontEndSpec[Any], **options: Any) -> None:
    """Attributes; shape; float32; silence finite; a delay of one hop is one frame; a frame hears its window alone, and
    a clip itself alone; nothing to train, since no gradient goes through a front end."""
    front_end: Any = spec.build(parse(spec.config, options), FrontEndContext(SAMPLE_RATE))
    for name in ("sample_rate", "num_bins", "hop_samples", "window_samples"):
        assert isinstance(getattr(front_end, name, None), int), f"{spec.name}: attribute {name} must be an int"
    hop, window = front_end.hop_samples, front_end.window_samples
    audio = 0.1 * torch.randn(2, window + 20 * hop + hop // 2)
    features = front_end(audio)
    assert features.shape == (2, front_end.num_bins, 21), f"{spec.name}: shape {tuple(features.shape)}"
    assert features.dtype == torch.float32, f"{spec.name}: {features.dtype}, not torch.float32"
    learned = [name for name, parameter in front_end.named_parameters() if parameter.requires_grad]
    assert not learned, f"{spec.name}: {', '.join(learned)} would never train; make it a buffer"
    assert front_end(torch.zeros(1, window)).isfinite().all(), f"{spec.name}: silence is not finite"
    delayed = front_end(torch.nn.functional.pad(audio, (hop, 0)))
    assert torch.allclose(delayed[:, :, 1:], features, atol=1e-4), f"{spec.name}: a delay of a hop is not one frame"
    for clip in range(len(audio)):
        alone = front_end(audio[clip : clip + 1])
        assert torch.allclose(alone, features[clip : clip + 1], atol=1e-4), f"{spec.name}: a clip alone differs"
    for frame in (3, 12):
        changed = 3 * torch.randn_like(audio)  # louder all around, so that what hears of it shows
        changed[:, frame * hop : frame * hop + window] = audio[:, frame * hop : frame * hop + window]
        moved = (front_end(changed) - features)[:, :, frame].abs().max()
        assert moved <= 1e-3, f"{spec.name}: frame {frame} hears what is outside of its window (by {moved:.1e})"


def small_encoder(mixer: MixerSpec[Any] | None = None) -> Encoder:
    """An encoder of two layers for checks; without a mixer given, tokens are averaged."""
    config = EncoderConfig(dim=DIM, depth=LAYERS, num_heads=HEADS)
    if mixer is None:
        return Encoder(config, [_Mean() for _ in range(LAYERS)])
    context = [MixerContext(DIM, HEADS, layer, LAYERS) for layer in range(LAYERS)]
    return Encoder(config, [mixer.build(mixer.config(), one) for one in context])


@seeded
def check_objective(spec: ObjectiveSpec[Any], mixer: MixerSpec[Any] | None = None, **options: Any) -> None:
    """Same seed, same loss; finite parts; gradients reach the encoder and none a frozen part; learns one batch."""
    encoder = small_encoder(mixer)
    objective: Any = spec.build(parse(spec.config, options), ObjectiveContext(encoder))
    features = torch.randn(2, 128, 64)

    def losses() -> Any:
        return objective.loss(encoder, features, torch.Generator().manual_seed(1))

    first, again = losses(), losses()
    try:
        check_losses(first)
    except PluginError as error:
        raise AssertionError(f"{spec.name}: {error}") from None
    assert callable(getattr(objective, "after_step", None)), f"{spec.name}: it has no after_step"
    assert first.total.requires_grad, f"{spec.name}: the total has no gradient"
    assert torch.equal(first.total, again.total), f"{spec.name}: the same seed gives another loss"
    for name, value in first.parts.items():
        assert math.isfinite(value), f"{spec.name}: {name} is not finite"
    first.total.backward()
    deaf = [name for name, parameter in encoder.named_parameters() if parameter.grad is None]
    assert not deaf, f"{spec.name}: no gradient reaches {', '.join(deaf)}"
    frozen = [p for p in objective.parameters() if not p.requires_grad]
    assert all(p.grad is None for p in frozen), f"{spec.name}: gradients reach a frozen part"
    trained = [*encoder.parameters(), *(p for p in objective.parameters() if p.requires_grad)]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)
    for step in range(LEARNING_STEPS):
        optimizer.zero_grad()
        losses().total.backward()
        optimizer.step()
        objective.after_step(encoder, step + 1)
    assert losses().total < first.total, f"{spec.name}: the loss on one batch does not fall"


@seeded
def check_adapter(spec: AdapterSpec[Any], mixer: MixerSpec[Any] | None = None, **options: Any) -> None:
    """Output unchanged when attached; only new parameters train, all of them do; the base stays bit-identical."""
    encoder = small_encoder(mixer)
    features = torch.randn(2, 128, 64)
    before = encoder(features)
    base = {name: parameter.detach().clone() for name, parameter in encoder.named_parameters()}
    old = {id(parameter): name for name, parameter in encoder.named_parameters()}
    try:
        new = attach(spec.build(parse(spec.config, options), AdapterContext(DIM, LAYERS)), encoder)
    except PluginError as error:
        raise AssertionError(f"{spec.name}: {error}") from None
    after = encoder(features)
    assert torch.allclose(after.tokens, before.tokens, atol=TOLERANCE), f"{spec.name}: attaching changes the output"
    assert {id(p) for p in encoder.parameters() if p.requires_grad} == {id(p) for p in new}, (
        f"{spec.name}: the base trains"
    )
    weight = torch.randn_like(before.tokens)
    check_all_parameters_move(encoder, lambda: (encoder(features).tokens * weight).sum())
    for parameter in encoder.parameters():
        if id(parameter) in old:
            assert torch.equal(parameter, base[old[id(parameter)]]), f"{spec.name}: {old[id(parameter)]} has changed"


@seeded
def check_combination(
    mixer: MixerSpec[Any], adapter: AdapterSpec[Any] | None, objective: ObjectiveSpec[Any], **options: Any
) -> None:
    """Two updates of a small encoder: finite losses; with an adapter only it and the objective learn, and all of it.

    Args:
        mixer, adapter, objective: what is combined; without an adapter the whole encoder learns.
        options: of the objective.
    """
    where = " + ".join(spec.name for spec in (mixer, adapter, objective) if spec is not None)
    encoder = small_encoder(mixer)
    base = {id(parameter): parameter.detach().clone() for parameter in encoder.parameters()}
    learns = list(encoder.parameters())
    if adapter is not None:
        learns = attach(adapter.build(adapter.config(), AdapterContext(DIM, LAYERS)), encoder)
    product: Any = objective.build(parse(objective.config, options), ObjectiveContext(encoder))
    optimizer = torch.optim.SGD([*learns, *(p for p in product.parameters() if p.requires_grad)], lr=1e-3)
    features = torch.randn(2, 128, 64)
    for step in range(2):
        losses = product.loss(encoder, features, torch.Generator().manual_seed(step))
        assert losses.total.isfinite(), f"{where}: the loss is not finite"
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        product.after_step(encoder, step + 1)
    deaf = [name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    assert not deaf, f"{where}: no gradient reaches {', '.join(deaf)}"
    if adapter is not None:
        changed = [p for p in encoder.parameters() if id(p) in base and not torch.equal(p, base[id(p)])]
        assert not changed, f"{where}: the base has changed"


class _Mean(nn.Module):
    """The simplest mixer: every token hears the mean of all valid ones."""

    def forward(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        weight = layout.valid.to(tokens).unsqueeze(-1)
        return tokens + (tokens * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
