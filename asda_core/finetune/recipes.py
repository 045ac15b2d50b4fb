"""Recipe files, and what a mode changes in one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from asda_core.catalog import Catalog
from asda_core.config_io import find_config, parse, parse_value, read_yaml, to_plain, with_change
from asda_core.errors import ConfigError, unknown
from asda_core.finetune.config import MODES, FinetuneConfig

USUAL = FinetuneConfig(epochs=1)
"""The defaults, with a length that stands for the one that every recipe must give."""
LAST_BLOCKS = "last_blocks"
ANY_ADAPTER = "adapter"
"""Key of `by_mode` for whatever adapter there is; one by its own name goes over it."""


def load_recipe(file: str | Path) -> FinetuneConfig:
    """Read a recipe from YAML: a path, or the name of one that comes with the package, as in "finetune/asda_esc50".

    Raises:
        ConfigError: with the file's name before each message.
    """
    try:
        return parse(FinetuneConfig, read_yaml(find_config(file)))
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def changed_recipe(recipe: FinetuneConfig, changes: Sequence[str]) -> FinetuneConfig:
    """The recipe with `key=value` changes; values are read as YAML. `steps` takes the place of `epochs`, and back.

    Raises:
        ConfigError: a change has no `=`, or the key or value is wrong.
    """
    given = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise ConfigError(f"--set {change!r} must look like key=value.")
        given[key] = parse_value(value)
    return with_changes(recipe, given)


def with_changes(recipe: FinetuneConfig, changes: Mapping[str, Any]) -> FinetuneConfig:
    """The recipe with other values of dotted keys."""
    plain = to_plain(recipe)
    for key, value in changes.items():
        other = {"steps": "epochs", "epochs": "steps"}.get(key)
        if other is not None and other not in changes and value:
            plain[other] = 0
        plain = with_change(plain, key, value, USUAL)
    return parse(FinetuneConfig, plain)


def recipe_for(recipe: FinetuneConfig, mode: str, catalog: Catalog) -> FinetuneConfig:
    """The recipe of a mode.

    Args:
        recipe: of a file.
        mode: "full", "linear", "attentive", "last_blocks=K", or the name of an adapter.
        catalog: that has the adapters.

    Raises:
        ConfigError: no such mode.
    """
    name, _, number = mode.partition("=")
    adapters = [offer.spec.name for offer in catalog.family("adapter")]
    changes: dict[str, Any] = {"mode": name, "blocks": 0, "adapter": None}
    if name == LAST_BLOCKS:
        if not number.isdigit():
            raise ConfigError(f"mode {mode!r}: say how many blocks, as in last_blocks=2.")
        changes["blocks"] = int(number)
    elif name in adapters and not number:
        given = recipe.adapter if recipe.adapter is not None and recipe.adapter.name == name else None
        changes |= {"mode": ANY_ADAPTER, "adapter": name if given is None else to_plain(given)}
    elif name not in MODES or name == ANY_ADAPTER or number:
        raise ConfigError(unknown("mode", mode, [*(m for m in MODES if m != ANY_ADAPTER), *adapters]))
    if name == "attentive":
        changes["pooling"] = "attentive"
    if changes["mode"] == ANY_ADAPTER:
        changes |= recipe.by_mode.get(ANY_ADAPTER, {})
    changes |= recipe.by_mode.get(name, {})
    return with_changes(replace(recipe, by_mode={}), changes)


def mode_of(recipe: FinetuneConfig) -> str:
    """The name of a recipe's own mode, as `recipe_for` takes it."""
    if recipe.adapter is not None:
        return recipe.adapter.name
    return f"{LAST_BLOCKS}={recipe.blocks}" if recipe.blocks else recipe.mode


def check_by_mode(recipe: FinetuneConfig, catalog: Catalog) -> None:
    """Apply every entry of `by_mode` once, so that a mistake in one shows now.

    Raises:
        ConfigError: naming the mode.
    """
    for mode in recipe.by_mode:
        try:
            if mode == ANY_ADAPTER:
                with_changes(replace(recipe, by_mode={}), recipe.by_mode[mode])
            else:
                recipe_for(recipe, f"{mode}=1" if mode == LAST_BLOCKS else mode, catalog)
        except ConfigError as error:
            raise ConfigError(f"by_mode.{mode}: {error}") from None
