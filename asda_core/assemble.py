"""The one place where config, catalog and model meet."""

from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from asda_core.catalog import Catalog
from asda_core.config import EncoderConfig, PluginChoice, RunConfig
from asda_core.config_io import parse
from asda_core.contracts import AdapterContext, FrontEndContext, MixerContext, MixerSpec, ObjectiveContext
from asda_core.errors import ConfigError
from asda_core.model.encoder import Encoder

SAMPLE_RATE = 16_000
"""Rate in Hz at which every released model of the family listens."""

ProductT = TypeVar("ProductT")


@dataclass(frozen=True)
class Parts:
    """The modules of a run: `front_end` is a `FrontEnd`, `objective` an `Objective`, all are `nn.Module`."""

    front_end: Any
    encoder: Encoder
    objective: Any


def build(catalog: Catalog, family: str, choice: PluginChoice, context: Any, path: str) -> Any:
    """Build what a config names.

    Args:
        catalog: what is offered.
        family: "mixer", "front end", "objective" or "adapter".
        choice: name and options, as in the config.
        context: what the host tells the plugin.
        path: where in the config it stands, for messages.

    Raises:
        PluginError: no such plugin.
        ConfigError: its options are wrong.
    """
    spec = catalog.find(family, choice.name).spec
    return spec.build(parse(spec.config, choice.options, f"{path}.options"), context)


def build_front_end(catalog: Catalog, choice: PluginChoice) -> Any:
    """The front end that a config names: a module that is a `FrontEnd`."""
    return build(catalog, "front end", choice, FrontEndContext(SAMPLE_RATE), "front_end")


def build_encoder(catalog: Catalog, config: EncoderConfig) -> Encoder:
    """The encoder with one mixer per layer. Weights are drawn from torch's global generator."""
    contexts = [MixerContext(config.dim, config.num_heads, layer, config.depth) for layer in range(config.depth)]
    return Encoder(config, [build(catalog, "mixer", config.mixer, context, "encoder.mixer") for context in contexts])


def build_adapter(catalog: Catalog, choice: PluginChoice, encoder: Encoder) -> Any:
    """The adapter that a config names, not yet attached."""
    context = AdapterContext(encoder.config.dim, encoder.config.depth)
    return build(catalog, "adapter", choice, context, "adapter")


def build_parts(catalog: Catalog, config: RunConfig) -> Parts:
    """Everything that a run needs, with weights that depend on `config.seed` alone.

    torch's global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        front_end = build_front_end(catalog, config.front_end)
        encoder = build_encoder(catalog, config.encoder)
        context = ObjectiveContext(encoder, config.steps)
        objective = build(catalog, "objective", config.objective, context, "objective")
    return Parts(front_end, encoder, objective)


def plugin_origins(catalog: Catalog, config: RunConfig) -> dict[str, dict[str, str]]:
    """Family -> name, distribution and version of every plugin in a run."""
    chosen = {"front end": config.front_end, "mixer": config.encoder.mixer, "objective": config.objective}
    return {family: catalog.find(family, choice.name).origin for family, choice in chosen.items()}


def check_class_token_axis(catalog: Catalog, configs: list[RunConfig]) -> None:
    """Refuse to compare positions of the class token for a mixer that cannot tell them apart.

    The class token carries no position, so attention gives the same numbers wherever it stands.

    Raises:
        ConfigError: two configs differ in `class_token.position` among first, middle, last, and only in that.
    """
    seen: dict[str, str] = {}
    for config in configs:
        token = config.encoder.class_token
        mixer = catalog.find("mixer", config.encoder.mixer.name).spec
        if token.position == "none" or (isinstance(mixer, MixerSpec) and mixer.knows_order):
            continue
        rest = repr((config.encoder, config.objective, config.front_end, config.seed)).replace(
            f"position={token.position!r}", "position=*"
        )
        position = seen.setdefault(rest, token.position)
        if position != token.position:
            raise ConfigError(
                f"encoder.class_token.position {position!r} and {token.position!r} are the same model for the mixer "
                f"{config.encoder.mixer.name!r}: it does not know the order of tokens and the class token has no "
                "position. Compare join_layer or 'none' instead, or a mixer that scans."
            )
