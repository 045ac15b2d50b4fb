"""What a plugin author imports: `Spec`, the contexts, and the protocol of each family.

    from asda_core.contracts import MixerContext, MixerSpec, hookimpl

Plugins are values: a hook returns specs, and nothing registers itself.
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
    """Description of one mixer, front end, objective or adapter that a plugin offers.

    Attributes:
        name: its name in YAML.
        config: a frozen dataclass; its fields are the YAML keys under `options`, its defaults the published values.
        build: maps options and context to the product. Heavy imports belong inside it.
        summary: one line for `asda plugins` and the README.
        source: paper and equation.
        released: options and values that reproduce deviations of the system's released code from its paper or from
            sensible behaviour; `compat: released` sets them unless a config does.
        without_influence: options that change only the speed, not the result.
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
    """Context of a mixer: width, number of heads, index of its layer (from 0) and number of layers."""

    dim: int
    num_heads: int
    layer: int
    num_layers: int


@dataclass(frozen=True)
class FrontEndContext:
    """Context of a front end: the usual sample rate in Hz; audio is passed at the front end's own `sample_rate`."""

    sample_rate: int


@dataclass(frozen=True)
class ObjectiveContext:
    """Context of an objective: the encoder that it trains (to copy, or to read widths from)."""

    encoder: Encoder


@dataclass(frozen=True)
class AdapterContext:
    """Context of an adapter: width and depth of the encoder that it will be attached to."""

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
    """Optional protocol of a mixer that exposes its attention maps for inspection (`asda-hear look`)."""

    def maps(self, tokens: Float[Tensor, "batch tokens dim"], layout: TokenLayout) -> AttentionMaps:
        """The maps for these tokens; `maps.difference @ values` is how the mixer combines its values."""


@runtime_checkable
class FrontEnd(Protocol):
    """Audio -> features. An `nn.Module`.

    Frame f depends only on samples `f * hop_samples` to `f * hop_samples + window_samples`, so that long audio can be
    cut anywhere; a signal of S samples gives `1 + (S - window_samples) // hop_samples` frames.

    It stays in evaluation mode during training too: the features of a clip are deterministic.

    An optional attribute `filling` is the value with which the released code of the front end pads short clips; it is
    used only for `data.padding: features`.
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
    """A small number of new parameters added to a frozen encoder."""

    def attach(self, encoder: Encoder) -> None:
        """Wrap submodules in place; the output must not change until something is trained."""


@dataclass(frozen=True)
class MixerSpec(Spec[ConfigT, MixerContext, nn.Module]):
    """A mixer.

    Attributes:
        knows_order: whether the order of the tokens matters to it beyond their layout, as for a scan.
        uses_heads: whether the number of heads matters to it.
        takes_over: mixers whose weights can initialise it, matched by tensor name.
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
