"""Contract of every objective, every adapter, and combinations of plugins, on a small encoder."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from asda_core.adapting import attach, set_train_mode
from asda_core.config import EncoderConfig
from asda_core.config_io import parse
from asda_core.contract.mixers import DIM, HEADS, LAYERS
from asda_core.contract.modules import TOLERANCE, check_all_parameters_move, check_round_trip, seeded
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
    return Encoder(config, [mixer.build(mixer.config(), context) for context in contexts])


@seeded
def check_objective(spec: ObjectiveSpec[Any], mixer: MixerSpec[Any] | None = None, **options: Any) -> None:
    """Check that one seed gives one loss; parts are finite; gradients reach the encoder and no frozen part; the loss on
    one batch falls."""
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
    assert callable(getattr(objective, "after_step", None)), f"{spec.name}: the method after_step is missing"
    assert first.total.requires_grad, f"{spec.name}: the total loss does not require a gradient"
    assert torch.equal(first.total, again.total), f"{spec.name}: the same seed gives different losses"
    for name, value in first.parts.items():
        assert math.isfinite(value), f"{spec.name}: {name} is not finite"
    first.total.backward()
    without_gradient = [name for name, parameter in encoder.named_parameters() if parameter.grad is None]
    assert not without_gradient, f"{spec.name}: no gradient reaches {', '.join(without_gradient)}"
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
    """Check that attaching does not change the output; all new parameters train, and only they; the base stays
    bit-identical; state round trip."""
    encoder, other = small_encoder(mixer).eval(), small_encoder(mixer).eval()
    features = torch.randn(2, 128, 64)
    before = encoder(features)
    buffers = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    base = {name: parameter.detach().clone() for name, parameter in encoder.named_parameters()}
    old = {id(parameter): name for name, parameter in encoder.named_parameters()}
    try:
        new, _ = (
            attach(spec.build(parse(spec.config, options), AdapterContext(DIM, LAYERS)), base_encoder)
            for base_encoder in (encoder, other)
        )
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
