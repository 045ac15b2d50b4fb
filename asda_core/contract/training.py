"""Contract of every objective, every adapter, and combinations of plugins, on a small encoder."""

from typing import Any

import torch
from torch import Tensor, nn

from asda_core.adapting import attach, set_train_mode
from asda_core.config import EncoderConfig
from asda_core.contract.mixers import DIM, HEADS, LAYERS
from asda_core.contract.modules import (
    TOLERANCE,
    builder,
    check_all_parameters_move,
    check_round_trip,
    seeded,
    unchanged_inputs,
)
from asda_core.contracts import AdapterContext, AdapterSpec, MixerContext, MixerSpec, ObjectiveContext, ObjectiveSpec
from asda_core.errors import PluginError
from asda_core.layout import TokenLayout
from asda_core.model.encoder import Encoder
from asda_core.pretrain.step import check_losses

LEARNING_STEPS, LEARNING_RATE = 25, 3e-3
"""Updates on one batch after which the loss must be lower, and their rate: chosen here, with a margin for every
objective of this package."""


def small_encoder(mixer: MixerSpec[Any] | None = None) -> Encoder:
    """Build an encoder of two layers for checks; without a mixer, each token gets the mean added."""
    config = EncoderConfig(dim=DIM, depth=LAYERS, num_heads=HEADS)
    if mixer is None:
        return Encoder(config, [_Mean() for _ in range(LAYERS)])
    contexts = [MixerContext(DIM, HEADS, layer, LAYERS) for layer in range(LAYERS)]
    return Encoder(config, [*map(builder(mixer, MixerSpec, {}), contexts)])


@seeded
def check_objective(spec: ObjectiveSpec[Any], mixer: MixerSpec[Any] | None = None, **options: Any) -> None:
    """Check that one seed gives one loss; loss and parts are finite; features are left as they are; gradients reach the
    encoder and no frozen part; the loss on one batch falls; a run resumed from the state goes on with the same losses;
    no parameter of the encoder is held."""
    encoder, other_encoder = small_encoder(mixer), small_encoder(mixer)
    build = builder(spec, ObjectiveSpec, options)
    objective, other = build(ObjectiveContext(encoder)), build(ObjectiveContext(other_encoder))
    features = torch.randn(2, 128, 64)

    def losses(instance: Any = objective, trained: Encoder = encoder) -> Any:
        return instance.loss(trained, features, torch.Generator().manual_seed(1))

    with unchanged_inputs(spec.name, features=features):
        first = losses()
    _check_first_losses(spec.name, objective, first)
    assert torch.equal(first.total, losses().total), f"{spec.name}: the same seed gives different losses"
    _check_gradients(spec.name, objective, encoder, first.total)
    trained = [*encoder.parameters(), *(p for p in objective.parameters() if p.requires_grad)]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)
    for step in range(LEARNING_STEPS):
        optimizer.zero_grad()
        losses().total.backward()
        optimizer.step()
        objective.after_step(encoder, step + 1)
    assert losses().total < first.total, f"{spec.name}: the loss on one batch does not fall"
    other_encoder.load_state_dict(encoder.state_dict())

    @torch.enable_grad()
    def next_losses(instance: Any) -> Tensor:
        of_instance = encoder if instance is objective else other_encoder
        before = losses(instance, of_instance).total
        instance.after_step(of_instance, LEARNING_STEPS + 1)
        return torch.stack([before, losses(instance, of_instance).total]).detach()

    check_round_trip(objective, other, next_losses)


def _check_first_losses(name: str, objective: Any, losses: Any) -> None:
    """Check what the first call returned."""
    try:
        check_losses(losses)
    except PluginError as error:
        raise AssertionError(f"{name}: {error}") from None
    assert callable(getattr(objective, "after_step", None)), f"{name}: the method after_step is missing"
    assert losses.total.requires_grad, f"{name}: the total loss does not require a gradient"
    for part, value in {"the total loss": losses.total, **losses.parts}.items():
        assert torch.as_tensor(value).isfinite(), f"{name}: {part} is not finite"


def _check_gradients(name: str, objective: nn.Module, encoder: Encoder, total: Any) -> None:
    """Check that gradients reach all of the encoder and nothing frozen, and that the two share no parameter."""
    of_encoder = {id(parameter) for parameter in encoder.parameters()}
    shared = [part for part, parameter in objective.named_parameters() if id(parameter) in of_encoder]
    assert not shared, (
        f"{name}: {len(shared)} of its parameters, such as {shared[0]}, are those of the encoder, and would be saved "
        "twice; use the encoder that loss and after_step are given, or keep a copy"
    )
    total.backward()
    without_gradient = [part for part, parameter in encoder.named_parameters() if parameter.grad is None]
    assert not without_gradient, f"{name}: no gradient reaches {', '.join(without_gradient)}"
    frozen = [parameter for parameter in objective.parameters() if not parameter.requires_grad]
    assert all(parameter.grad is None for parameter in frozen), f"{name}: gradients reach a frozen part"


@seeded
def check_adapter(spec: AdapterSpec[Any], mixer: MixerSpec[Any] | None = None, **options: Any) -> None:
    """Check that attaching does not change the output; all new parameters train, and only they; the base stays
    bit-identical; state round trip."""
    encoder, other = small_encoder(mixer).eval(), small_encoder(mixer).eval()
    features = torch.randn(2, 128, 64)
    before = encoder(features)
    buffers = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    base = {name: parameter.detach().clone() for name, parameter in encoder.named_parameters()}
    old = {id(parameter): name for name, parameter in encoder.named_parameters()}
    build = builder(spec, AdapterSpec, options)
    try:
        new, _ = (attach(build(AdapterContext(DIM, LAYERS)), base_encoder) for base_encoder in (encoder, other))
    except PluginError as error:
        raise AssertionError(f"{spec.name}: {error}") from None
    after = encoder(features)
    for was, now in ((before.tokens, after.tokens), (before.summary, after.summary)):
        assert torch.allclose(now, was, atol=TOLERANCE), f"{spec.name}: attaching changes the output"
    assert {id(p) for p in encoder.parameters() if p.requires_grad} == {id(p) for p in new}, (
        f"{spec.name}: the trainable parameters are not exactly the new ones"
    )
    weight = torch.randn_like(before.tokens)
    set_train_mode(encoder)
    check_all_parameters_move(encoder, lambda: (encoder(features).tokens * weight).sum())
    for parameter in encoder.parameters():
        if id(parameter) in old:
            assert torch.equal(parameter, base[old[id(parameter)]]), (
                f"{spec.name}: the base parameter {old[id(parameter)]} has changed"
            )
    for name, buffer in encoder.named_buffers():
        if name in buffers:
            assert torch.equal(buffer, buffers[name]), f"{spec.name}: the buffer {name} has changed"
    check_round_trip(encoder.eval(), other.eval(), lambda module: module(features).tokens)


@seeded
def check_combination(
    mixer: MixerSpec[Any], adapter: AdapterSpec[Any] | None, objective: ObjectiveSpec[Any], **options: Any
) -> None:
    """Check two updates of a small encoder: finite losses; with an adapter only it, all of it, and the objective learn.

    Args:
        mixer, adapter, objective: plugins to combine; without an adapter the whole encoder learns.
        options: of the objective.
    """
    where = " + ".join(spec.name for spec in (mixer, adapter, objective) if spec is not None)
    encoder = small_encoder(mixer)
    base = {id(parameter): parameter.detach().clone() for parameter in encoder.parameters()}
    learns = list(encoder.parameters())
    if adapter is not None:
        learns = attach(builder(adapter, AdapterSpec, {})(AdapterContext(DIM, LAYERS)), encoder)
    product = builder(objective, ObjectiveSpec, options)(ObjectiveContext(encoder))
    optimizer = torch.optim.SGD([*learns, *(p for p in product.parameters() if p.requires_grad)], lr=1e-3)
    features = torch.randn(2, 128, 64)
    for step in range(2):
        losses = product.loss(encoder, features, torch.Generator().manual_seed(step))
        assert losses.total.isfinite(), f"{where}: the loss is not finite"
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        product.after_step(encoder, step + 1)
    without_gradient = [name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    assert not without_gradient, f"{where}: no gradient reaches {', '.join(without_gradient)}"
    if adapter is not None:
        changed = [p for p in encoder.parameters() if id(p) in base and not torch.equal(p, base[id(p)])]
        assert not changed, f"{where}: the base has changed"


class _Mean(nn.Module):
    """The simplest mixer: adds the mean of all valid tokens to every token."""

    def forward(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        weight = layout.valid.to(tokens).unsqueeze(-1)
        return tokens + (tokens * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
