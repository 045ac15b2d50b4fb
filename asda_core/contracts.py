"""What a plugin author imports: `Spec`, the contexts, and what each family must be able to do.

    from asda_core.contracts import MixerContext, MixerSpec, hookimpl

A plugin is a value, not an event: a hook returns specs, and nothing registers itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import pluggy
import torch
from jaxtyping import Float
from torch import Tensor, nn

from asda_core.layout import TokenLayout
from asda_core.model.attention import AttentionMaps
from asda_core.model.encoder import Encoder

PROJECT = "asda"
"""Name of the pluggy project, of the entry-point group and the prefix of every hook."""

hookimpl = pluggy.HookimplMarker(PROJECT)

ConfigT = TypeVar("ConfigT")
ContextT = TypeVar("ContextT")
ProductT = TypeVar("ProductT")


@dataclass(frozen=True)
class Spec(Generic[ConfigT, ContextT, ProductT]):
    """One thing that a plugin offers.

    Attributes:
        name: what YAML says.
        config: a frozen dataclass; its fields are the YAML keys under `options`, its defaults the published values.
        build: options and what the host knows -> the product. Heavy imports belong in here.
        summary: one line for `asda plugins` and the README.
        source: paper and equation.
        released: options, with their values, that reproduce what the released code of the system does and its paper
            or reason does not; `compat: released` sets them where a config does not.
        without_influence: options that change how fast a result comes, and not the result.
    """

    name: str
    config: type[ConfigT]
    build: Callable[[ConfigT, ContextT], ProductT]
    summary: str
    source: str
    released: Mapping[str, Any] = field(default_factory=dict)
    without_influence: tuple[str, ...] = ()


@dataclass(frozen=True)
class MixerContext:
    """What a mixer is told: widths, and which of how many layers it stands in (from 0)."""

    dim: int
    num_heads: int
    layer: int
    num_layers: int


@dataclass(frozen=True)
class FrontEndContext:
    """What a front end is told: the usual rate of audio in Hz; audio comes at the rate of its own `sample_rate`."""

    sample_rate: int


@dataclass(frozen=True)
class ObjectiveContext:
    """What an objective is told: the encoder that it trains (to copy, or to read widths from)."""

    encoder: Encoder


@dataclass(frozen=True)
class AdapterContext:
    """What an adapter is told: width and depth of the encoder that it will be attached to."""

    dim: int
    num_layers: int


@dataclass(frozen=True)
class Losses:
    """What an objective returns: the scalar to minimise, and scalars to log (unweighted terms, statistics)."""

    total: Tensor
    parts: Mapping[str, Tensor | float]


class Mixer(Protocol):
    """A token mixer: moves information between tokens. An `nn.Module`."""

    def __call__(
        self, tokens: Float[Tensor, "batch tokens dim"], layout: TokenLayout
    ) -> Float[Tensor, "batch tokens dim"]:
        """Mix. Padding must influence no valid token; clips must not influence each other."""


@runtime_checkable
class ShowsMaps(Protocol):
    """What a mixer may offer besides: its attention maps, for those who look at them (`asda-hear look`)."""

    def maps(self, tokens: Float[Tensor, "batch tokens dim"], layout: TokenLayout) -> AttentionMaps:
        """The maps for these tokens; `maps.difference @ values` is what the mixer makes of its values."""


class FrontEnd(Protocol):
    """Audio -> features. An `nn.Module`.

    Frame f sees samples `f * hop_samples` to `f * hop_samples + window_samples` and nothing else, so that long audio
    can be cut anywhere; a signal of S samples gives `1 + (S - window_samples) // hop_samples` frames.

    It stays in evaluation mode, in training too: what it makes of a clip does not depend on chance.

    An attribute `filling` may say what the released code of the front end puts behind the end of short clips; only
    `data.padding: features` asks for it.
    """

    sample_rate: int
    num_bins: int
    hop_samples: int
    window_samples: int

    def __call__(self, audio: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch bins frames"]:
        """Normalised features; silence must be finite."""


class Objective(Protocol):
    """Everything that only training needs: heads, decoder, mask token, teacher. An `nn.Module`."""

    def loss(
        self, encoder: Encoder, features: Float[Tensor, "batch bins frames"], generator: torch.Generator
    ) -> Losses:
        """The losses on a batch; all randomness comes from `generator` (on the CPU)."""

    def after_step(self, encoder: Encoder, step: int) -> None:
        """Called after every update; `step` counts the updates done, from 1."""


@runtime_checkable
class Adapter(Protocol):
    """Few new parameters beside a frozen encoder."""

    def attach(self, encoder: Encoder) -> None:
        """Wrap submodules in place; the output must not change until something is trained."""


@dataclass(frozen=True)
class MixerSpec(Spec[ConfigT, MixerContext, nn.Module]):
    """A mixer.

    Attributes:
        knows_order: whether the order of the tokens matters to it beyond their layout, as to a scan.
        uses_heads: whether the number of heads matters to it.
        takes_over: mixers whose weights it can begin with, name by name.
    """

    knows_order: bool = False
    uses_heads: bool = True
    takes_over: tuple[str, ...] = ()


@dataclass(frozen=True)
class FrontEndSpec(Spec[ConfigT, FrontEndContext, nn.Module]):
    """A front end."""


@dataclass(frozen=True)
class ObjectiveSpec(Spec[ConfigT, ObjectiveContext, nn.Module]):
    """An objective."""


@dataclass(frozen=True)
class AdapterSpec(Spec[ConfigT, AdapterContext, Adapter]):
    """An adapter."""
