"""What the contract says of plugins that are wrong: the cause, not a consequence."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asda_core.contract.modules import builder
from asda_core.contracts import AdapterSpec, FrontEndSpec, Losses, MixerContext, MixerSpec, ObjectiveSpec
from asda_core.layout import TokenLayout
from asda_core.model.attention import AttentionMaps
from asda_core.model.encoder import Encoder
from asda_core.testing import check_front_end, check_mixer, check_objective


@dataclass(frozen=True)
class Nothing:
    """No options."""


class Mean(nn.Module):
    """A mixer around a function of (mixer, tokens, layout); `mean` holds to the contract."""

    def __init__(self, dim: int, function: Callable[..., Any]) -> None:
        super().__init__()
        self.linear, self.function, self.calls = nn.Linear(dim, dim), function, 0

    def mean(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        weight = layout.valid.to(tokens).unsqueeze(-1)
        mixed: Tensor = self.linear(tokens + (tokens * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True))
        return mixed

    def forward(self, tokens: Tensor, layout: TokenLayout) -> Any:
        return self.function(self, tokens, layout)


def edits_index(mixer: Mean, tokens: Tensor, layout: TokenLayout) -> Tensor:
    mixed = mixer.mean(tokens, layout)
    layout.index.zero_()
    return mixed


def edits_padding(mixer: Mean, tokens: Tensor, layout: TokenLayout) -> Tensor:
    mixed = mixer.mean(tokens, layout)
    if layout.padding is not None:
        layout.padding.zero_()
    return mixed


def clears_tokens(mixer: Mean, tokens: Tensor, layout: TokenLayout) -> Tensor:
    mixed = mixer.mean(tokens, layout)
    tokens.zero_()
    return mixed


def counts(mixer: Mean, tokens: Tensor, layout: TokenLayout) -> Tensor:
    mixer.calls += 1
    return mixer.mean(tokens, layout) * mixer.calls


TOKENS = "changes its input tokens in place"
MIXERS: list[tuple[Callable[..., Any], str]] = [
    (lambda mixer, tokens, layout: mixer.mean(torch.relu_(tokens), layout), TOKENS),
    (lambda mixer, tokens, layout: mixer.mean(tokens.data.add_(1), layout), TOKENS),
    (lambda mixer, tokens, layout: mixer.mean(tokens.masked_fill_(~layout.valid.unsqueeze(2), 0), layout), TOKENS),
    (lambda mixer, tokens, layout: mixer.mean(tokens.relu_() if mixer.training else tokens, layout), TOKENS),
    (clears_tokens, TOKENS),
    (edits_index, r"changes its input layout\.index in place"),
    (edits_padding, r"changes its input layout\.padding in place"),
    (lambda mixer, tokens, layout: None, "returned NoneType, not a tensor"),
    (lambda mixer, tokens, layout: (mixer.mean(tokens, layout), None), "returned tuple, not a tensor"),
    (lambda mixer, tokens, layout: mixer.mean(tokens, layout).detach().numpy(), "returned ndarray, not a tensor"),
    (lambda mixer, tokens, layout: mixer.mean(tokens, layout) + torch.randn(()), "two calls with the same input diff"),
    (counts, "two calls with the same input differ"),
    (
        lambda mixer, tokens, layout: mixer.mean(tokens, layout) * (torch.nan if mixer.training else 1),
        "the output in training mode is not finite",
    ),
]


def mixer_spec(function: Callable[..., Any]) -> MixerSpec[Nothing]:
    return MixerSpec("strange", Nothing, lambda config, context: Mean(context.dim, function), "for tests", "here")


def test_the_mixer_of_these_tests_passes() -> None:
    check_mixer(mixer_spec(Mean.mean))


@pytest.mark.parametrize(("function", "message"), MIXERS)
def test_mixers(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(AssertionError, match=f"^(strange.*: )?{message}"):
        check_mixer(mixer_spec(function))


class Shows(Mean):
    """Its method `maps` is a function of (map of the mean, tokens)."""

    def __init__(self, dim: int, show: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__(dim, Mean.mean)
        self.show = show

    def maps(self, tokens: Tensor, layout: TokenLayout) -> Any:
        valid = layout.valid[:, None, None].to(tokens)
        return self.show((valid / valid.sum(-1, keepdim=True)).expand(-1, 2, tokens.shape[1], -1), tokens)


def unchecked(first: Tensor, second: Tensor | None = None) -> AttentionMaps:
    """Maps of a shape that the checks of types in these tests would not let in."""
    maps = AttentionMaps(torch.ones(1, 1, 1, 1))
    object.__setattr__(maps, "first", first)
    object.__setattr__(maps, "second", second)
    object.__setattr__(maps, "weight", None if second is None else torch.ones(()))
    return maps


MAPS: list[tuple[Callable[[Tensor, Tensor], Any], str]] = [
    (lambda one, tokens: one, "strange.maps must return AttentionMaps, not Tensor"),
    (lambda one, tokens: AttentionMaps(2 * one), "strange.maps: a row of the first map sums to 2 over the tokens that"),
    (
        lambda one, tokens: AttentionMaps(one, 0 * one, torch.ones(())),
        "strange.maps: a row of the second map sums to 0",
    ),
    (lambda one, tokens: AttentionMaps(one * torch.nan), "strange.maps: a row of the first map sums to nan"),
    (
        lambda one, tokens: AttentionMaps(torch.full_like(one, 1 / one.shape[-1])),
        r"strange.maps: a row of the first map sums to 0\.\d+ over the tokens that are not padding, not to 1",
    ),
    (
        lambda one, tokens: unchecked(one[:, 0]),
        r"strange.maps: the first map has shape \(3, 20, 20\), not \(3, heads, 20, 20\)",
    ),
    (
        lambda one, tokens: unchecked(one, one[:, :1]),
        r"strange.maps: the second map has shape \(3, 1, 20, 20\), not \(3, 2, 20, 20\)",
    ),
    (lambda one, tokens: AttentionMaps(one, one), "strange.maps must return a second map and its weight, or neither"),
]


@pytest.mark.parametrize(("show", "message"), MAPS)
def test_maps(show: Callable[[Tensor, Tensor], Any], message: str) -> None:
    spec = MixerSpec("strange", Nothing, lambda config, context: Shows(context.dim, show), "for tests", "here")
    with pytest.raises(AssertionError, match=f"^{message}"):
        check_mixer(spec)


def test_right_maps_pass() -> None:
    def build(config: Nothing, context: MixerContext) -> nn.Module:
        return Shows(context.dim, lambda one, tokens: AttentionMaps(one, one, torch.full((2, 1, 1), 0.5)))

    check_mixer(MixerSpec("strange", Nothing, build, "for tests", "here"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ([], r"a MixerSpec is needed, not \[\]"),
        (
            AdapterSpec("strange", Nothing, lambda config, context: Mean, "for tests", "here"),
            "a MixerSpec is needed, not",
        ),
        (replace(mixer_spec(Mean.mean), name="a/b"), "MixerSpec: the name must be a string of letters"),
    ],
)
def test_specs(spec: object, message: str) -> None:
    with pytest.raises(AssertionError, match=f"^{message}"):
        builder(spec, MixerSpec, {})


def test_a_build_that_returns_nothing() -> None:
    with pytest.raises(AssertionError, match="^strange: build returned None, not a Module"):
        check_mixer(MixerSpec("strange", Nothing, lambda config, context: None, "for tests", "here"))  # type: ignore


class Energies(nn.Module):
    """A front end around a function of (front end, audio); `energies` holds to the contract."""

    sample_rate, num_bins, hop_samples, window_samples = 16_000, 16, 160, 400

    def __init__(self, function: Callable[..., Any], hop_samples: int = 160) -> None:
        super().__init__()
        self.function, self.hop_samples = function, hop_samples

    def energies(self, audio: Tensor) -> Tensor:
        return audio.unfold(1, 400, 160).unflatten(2, (16, -1)).square().mean(3).transpose(1, 2)

    def forward(self, audio: Tensor) -> Any:
        return self.function(self, audio)


FRONT_ENDS: list[tuple[Callable[..., Any], int, str]] = [
    (lambda front_end, audio: front_end.energies(audio.mul_(0.5)), 160, "changes its input audio in place"),
    (lambda front_end, audio: None, 160, "returned NoneType, not a tensor"),
    (lambda front_end, audio: front_end.energies(audio).mT, 160, r"shape \(2, 21, 16\), not \(2, 16, 21\)"),
    (
        lambda front_end, audio: front_end.energies(audio + 1e-5 * torch.randn_like(audio)),
        160,
        "two calls with the same input differ",
    ),
    (Energies.energies, 0, "attribute hop_samples must be a positive int, not 0"),
]


@pytest.mark.parametrize(("function", "hop_samples", "message"), FRONT_ENDS)
def test_front_ends(function: Callable[..., Any], hop_samples: int, message: str) -> None:
    def build(config: Nothing, context: Any) -> nn.Module:
        return Energies(function, hop_samples)

    with pytest.raises(AssertionError, match=f"^strange: {message}"):
        check_front_end(FrontEndSpec("strange", Nothing, build, "for tests", "here"))


class Squares(nn.Module):
    """An objective: tokens are to be 1."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()

    def loss(self, encoder: Encoder, features: Tensor, generator: torch.Generator) -> Losses:
        encoded = encoder(features, layers=False)
        return Losses((encoded.tokens - 1).square().mean() + encoded.summary.square().mean(), {})

    def after_step(self, encoder: Encoder, step: int) -> None:
        """Nothing to do."""


class Halves(Squares):
    def loss(self, encoder: Encoder, features: Tensor, generator: torch.Generator) -> Losses:
        return super().loss(encoder, features.mul_(0.5), generator)


class NotFinite(Squares):
    def loss(self, encoder: Encoder, features: Tensor, generator: torch.Generator) -> Losses:
        losses = super().loss(encoder, features, generator)
        return replace(losses, total=losses.total * torch.nan)


class Anneals(Squares):
    """Its weight falls in a Python number, which no state holds."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        self.keep_weight()

    def keep_weight(self) -> None:
        self.weight: Any = 1.0

    def loss(self, encoder: Encoder, features: Tensor, generator: torch.Generator) -> Losses:
        losses = super().loss(encoder, features, generator)
        return replace(losses, total=losses.total * self.weight)

    def after_step(self, encoder: Encoder, step: int) -> None:
        self.weight *= 0.9


class AnnealsInBuffer(Anneals):
    def keep_weight(self) -> None:
        self.register_buffer("weight", torch.ones(()))


class Averages(Squares):
    """The rate of its average depends on how many steps it has counted; a state holds the average alone."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        self.count = 0
        self.register_buffer("average", torch.zeros(encoder.config.dim))

    def loss(self, encoder: Encoder, features: Tensor, generator: torch.Generator) -> Losses:
        losses = super().loss(encoder, features, generator)
        encoded = encoder(features, layers=False).tokens.mean((0, 1))
        return replace(losses, total=losses.total + 1e-3 * (encoded - self.average).square().mean())

    def after_step(self, encoder: Encoder, step: int) -> None:
        self.count += 1
        self.average.lerp_(torch.ones_like(self.average), 1 / (1 + self.count))


class Holds(Squares):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        self.encoder = encoder


def objective_spec(kind: type[Squares]) -> ObjectiveSpec[Nothing]:
    return ObjectiveSpec("strange", Nothing, lambda config, context: kind(context.encoder), "for tests", "here")


@pytest.mark.parametrize("kind", [Squares, AnnealsInBuffer])
def test_objectives_that_pass(kind: type[Squares]) -> None:
    check_objective(objective_spec(kind))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Halves, "strange: changes its input features in place"),
        (NotFinite, "strange: the total loss is not finite"),
        (Anneals, "state_dict is incomplete"),
        (Averages, "state_dict is incomplete"),
        (Holds, "strange: 21 of its parameters, such as encoder.class_token, are those of the encoder"),
    ],
)
def test_objectives(kind: type[Squares], message: str) -> None:
    with pytest.raises(AssertionError, match=f"^{message}"):
        check_objective(objective_spec(kind))
