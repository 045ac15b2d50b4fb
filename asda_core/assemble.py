"""Build models from a config and the plugin catalog; the only module that combines the three."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn

from asda_core.adapting import attach
from asda_core.catalog import Catalog, Offer, PluginOrigins, error_place
from asda_core.config import ClassTokenConfig, Compat, EncoderConfig, PluginChoice, RunConfig
from asda_core.config_io import parse, to_plain
from asda_core.contracts import (
    Adapter,
    AdapterContext,
    FrontEnd,
    FrontEndContext,
    MixerContext,
    MixerSpec,
    ObjectiveContext,
)
from asda_core.devices import building
from asda_core.errors import AsdaError, ConfigError, PluginError
from asda_core.model.encoder import Encoder
from asda_core.system.memory import report_out_of_memory
from asda_core.system.paths import is_third_party

SAMPLE_RATE = 16_000
"""Sample rate in Hz of every released model of the family."""

LoadWeights = Callable[[Any, Encoder], None]
"""Loads weights into a front end and an encoder."""
ProductT = TypeVar("ProductT")


@dataclass(frozen=True)
class Parts:
    """The modules of a run: `front_end` is a `FrontEnd`, `objective` an `Objective`, all are `nn.Module`."""

    front_end: Any
    encoder: Encoder
    objective: Any

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Names in a checkpoint file, and parameters, of encoder and objective; the front end has none to train."""
        return [*self.encoder.named_parameters("encoder"), *self.objective.named_parameters("objective")]


def build(
    catalog: Catalog, family: str, choice: PluginChoice, context: Any, path: str, compat: Compat = "default"
) -> Any:
    """Build the plugin that a config names.

    Args:
        catalog: the available plugins.
        family: "mixer", "front end", "objective" or "adapter".
        choice: name and options, as in the config.
        context: what the host passes to the plugin.
        path: its dotted path in the config, for messages.
        compat: "released" sets the plugin's released options that the choice does not state.

    Raises:
        PluginError: no such plugin; a package it needs is missing, it fails, or it returns the wrong type.
        ConfigError: its options are wrong.
    """
    offer, options = catalog.find(family, choice.name), resolved_options(catalog, family, choice, path, compat)
    with _attributed(offer), report_out_of_memory(f"{family} {choice.name!r} of these sizes"):
        product = offer.spec.build(options, context)
        expected = Adapter if family == "adapter" else nn.Module
        if not isinstance(product, expected):
            raise TypeError(f"its build returned {product!r}, expected {expected.__name__}")
    return product


@contextmanager
def _attributed(offer: Offer) -> Iterator[None]:
    """State in errors from the block which plugin failed, its distribution, and where."""
    try:
        yield
    except AsdaError:
        raise
    except (Exception, SystemExit) as error:  # third-party code may raise anything
        make: Any = offer.spec.build
        place = error_place(error, str(getattr(make, "__module__", "")), getattr(make, "__code__", None))
        details = f"{type(error).__name__}: {error}{place}"
        raise PluginError(
            f"{offer.family} {offer.spec.name!r} of {offer.distribution} {offer.version} cannot be built: "
            f"{error if isinstance(error, ImportError) else details}"
        ) from error


def resolved_options(catalog: Catalog, family: str, choice: PluginChoice, path: str, compat: Compat = "default") -> Any:
    """Return all options of a plugin as its own dataclass; arguments and errors as in `build`."""
    offer = catalog.find(family, choice.name)
    released = offer.spec.released if compat == "released" else {}
    with _attributed(offer):
        return parse(offer.spec.config, {**released, **choice.options}, f"{path}.options")


def chosen_plugins(config: RunConfig) -> list[tuple[str, str, PluginChoice]]:
    """Family, dotted path in the config and choice of every plugin of a run; no adapter if it has none."""
    chosen = [
        ("front end", "front_end", config.front_end),
        ("mixer", "encoder.mixer", config.encoder.mixer),
        ("objective", "objective", config.objective),
    ]
    return chosen if config.adapter is None else [*chosen, ("adapter", "adapter", config.adapter)]


def with_all_options(catalog: Catalog, config: RunConfig) -> RunConfig:
    """The config with all options of its plugins stated, also those that `compat` sets; skips missing plugins."""

    def full(family: str, choice: PluginChoice, path: str) -> PluginChoice:
        return PluginChoice(choice.name, to_plain(resolved_options(catalog, family, choice, path, config.compat)))

    return _with_choices(catalog, config, full)


def without_speed_options(catalog: Catalog, config: RunConfig) -> RunConfig:
    """The config without the plugin options that change only the speed, not the result."""

    def reduced(family: str, choice: PluginChoice, path: str) -> PluginChoice:
        speed_only = catalog.find(family, choice.name).spec.without_influence
        return PluginChoice(choice.name, {key: value for key, value in choice.options.items() if key not in speed_only})

    return _with_choices(catalog, config, reduced)


def _with_choices(
    catalog: Catalog, config: RunConfig, change: Callable[[str, PluginChoice, str], PluginChoice]
) -> RunConfig:
    """Apply `change`, called with family, choice and path, to every plugin of a config that is available."""
    changed: dict[str, Any] = {
        path: change(family, choice, path) if (family, choice.name) in catalog.offers else choice
        for family, path, choice in chosen_plugins(config)
    }
    return replace(config, encoder=replace(config.encoder, mixer=changed.pop("encoder.mixer")), **changed)


def build_front_end(catalog: Catalog, choice: PluginChoice, compat: Compat = "default") -> Any:
    """The front end that a config names: a module that is a `FrontEnd`."""
    return build(catalog, "front end", choice, FrontEndContext(SAMPLE_RATE), "front_end", compat)


def build_encoder(catalog: Catalog, config: EncoderConfig, compat: Compat = "default") -> Encoder:
    """The encoder with one mixer per layer. Weights are drawn from torch's global generator."""
    contexts = [MixerContext(config.dim, config.num_heads, layer, config.depth) for layer in range(config.depth)]
    mixers = [build(catalog, "mixer", config.mixer, context, "encoder.mixer", compat) for context in contexts]
    return Encoder(config, mixers)


def adapt(catalog: Catalog, config: RunConfig, encoder: Encoder) -> None:
    """Freeze the encoder and attach the adapter of a run in place; nothing happens if the run has none."""
    if config.adapter is not None:
        context = AdapterContext(config.encoder.dim, config.encoder.depth)
        adapter = build(catalog, "adapter", config.adapter, context, "adapter", config.compat)
        with _attributed(catalog.find("adapter", config.adapter.name)):
            attach(adapter, encoder)


def build_model(
    catalog: Catalog, config: RunConfig, load: LoadWeights | None = None, with_adapter: bool = False
) -> tuple[Any, Encoder]:
    """Front end and encoder of a run; arguments as in `build_parts`, weights from torch's global generator."""
    front_end = build_front_end(catalog, config.front_end, config.compat)
    encoder = build_encoder(catalog, config.encoder, config.compat)
    if load is not None and not with_adapter:
        load(front_end, encoder)
    adapt(catalog, config, encoder)
    if load is not None and with_adapter:
        load(front_end, encoder)
    return front_end, encoder


def build_parts(
    catalog: Catalog, config: RunConfig, load: LoadWeights | None = None, with_adapter: bool = False
) -> Parts:
    """Build all modules of a run, in float32, with weights that depend on `config.seed` alone.

    torch's global generator is left as it was.

    Args:
        catalog: the available plugins.
        config: the run.
        load: called with front end and encoder, to load weights, before the objective is built, which may copy them.
        with_adapter: whether these include the weights of the adapter, so that it is attached before, not after.
    """
    with building(config.seed), report_out_of_memory("a model of these sizes"):
        front_end, encoder = build_model(catalog, config, load, with_adapter)
        context = ObjectiveContext(encoder)
        objective = build(catalog, "objective", config.objective, context, "objective", config.compat)
    return Parts(front_end, encoder, objective)


def build_weightless(catalog: Catalog, config: RunConfig) -> Parts:
    """Build the modules of a run without memory for weights, see `weightless`, and check that they can be built."""
    build_front_end(catalog, config.front_end, config.compat)  # small: holds tables only
    return weightless(lambda: build_parts(catalog, config))


def weightless(make: Callable[[], ProductT]) -> ProductT:
    """Call `make` on the meta device, where tensors have a shape and no values.

    If a plugin's constructor reads values, `make` is called again, with weights.
    """
    try:
        with torch.device("meta"):
            return make()
    except (NotImplementedError, RuntimeError, TypeError, ValueError, PluginError) as error:
        if isinstance(error, AsdaError) and error.__cause__ is None:  # not raised by a plugin
            raise
        return make()


def check_clip(front_end: FrontEnd, encoder: Encoder, seconds: float) -> None:
    """Check that a clip of `data.clip_seconds` holds a patch.

    Raises:
        ConfigError: it does not.
    """
    sizes = encoder.config
    try:
        with torch.inference_mode(), report_out_of_memory("a clip of this length"):
            num_bins, num_frames = front_end(torch.zeros(1, round(seconds * front_end.sample_rate))).shape[1:]
    except ConfigError as error:  # less than one window
        raise ConfigError(f"data.clip_seconds {seconds:g}: {error}") from None
    if not all(sizes.grid(num_bins, num_frames)):
        raise ConfigError(
            f"clips of {num_frames} frames and {num_bins} bins (data.clip_seconds {seconds:g}, front_end) hold no "
            f"patch of {sizes.patch_frames} frames and {sizes.patch_bins} bins (encoder.patch_frames, patch_bins)."
        )


def plugin_origins(catalog: Catalog, config: RunConfig, with_objective: bool = True) -> PluginOrigins:
    """Family -> name, distribution and version of every plugin in a run.

    If `with_objective` is False, as when nothing trains any more, an objective without its plugin is omitted.

    Raises:
        PluginError: a plugin is not installed, or broken.
    """
    return {
        family: catalog.find(family, choice.name).origin
        for family, _, choice in chosen_plugins(config)
        if with_objective or family != "objective" or (family, choice.name) in catalog.offers
    }


def third_party_plugins(catalog: Catalog, config: RunConfig, with_objective: bool = True) -> list[str]:
    """Distribution and version, as in "their-package 1.0", of third-party plugins, except those passed directly."""
    origins = plugin_origins(catalog, config, with_objective).values()
    foreign = [origin for origin in origins if is_third_party(origin["distribution"])]
    return sorted({f"{origin['distribution']} {origin['version']}" for origin in foreign})


def check_class_token_axis(catalog: Catalog, configs: Sequence[RunConfig]) -> None:
    """Check that no two of the configs to compare are the same model.

    The class token has no positional embedding, so attention gives the same result wherever it stands; without a
    class token, the layer at which it would join has no effect.

    Raises:
        ConfigError: two configs differ only in the class token, and not in a way that affects the mixer.
    """
    tokens: dict[str, ClassTokenConfig] = {}
    for config in configs:
        token = config.encoder.class_token
        mixer = catalog.find("mixer", config.encoder.mixer.name).spec
        reduced = token
        if token.position == "none":
            reduced = ClassTokenConfig(position="none")
        elif not (isinstance(mixer, MixerSpec) and mixer.knows_order):
            reduced = replace(token, position="first")
        earlier = tokens.setdefault(repr(replace(config, encoder=replace(config.encoder, class_token=reduced))), token)
        if earlier != token:
            raise ConfigError(
                f"encoder.class_token {_token_text(earlier)} and {_token_text(token)} are the same model for the mixer "
                f"{config.encoder.mixer.name!r}: it ignores the order of tokens, the class token has no positional "
                "embedding, and without a class token join_layer has no effect. Compare join_layer or 'none', or use "
                "a mixer that scans."
            )


def _token_text(token: ClassTokenConfig) -> str:
    return f"{token.position!r} at layer {token.join_layer}"
