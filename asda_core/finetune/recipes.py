"""Recipe files, and what a mode changes in one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from asda_core.catalog import Catalog
from asda_core.config import RunConfig
from asda_core.config_io import (
    find_config,
    parents_first,
    parse,
    parsed_changes,
    shipped_configs,
    to_plain,
    with_change,
)
from asda_core.errors import ConfigError, prefix_errors, unknown_message
from asda_core.finetune_config import MODES, FinetuneConfig
from asda_core.settings.kinds import require_kind
from asda_core.settings.strict_yaml import read_yaml
from asda_core.system.paths import is_config_file

DEFAULT_RECIPE = FinetuneConfig(epochs=1)
"""The defaults, with a placeholder for the length that every recipe must give."""
GROUPS = (
    "optimizer", "step_decay", "data", "augment", "augment.mixup", "augment.spec_augment", "sampling", "by_mode",
)  # fmt: skip
"""Keys with nested keys; `front_end` and the options of plugins count as values."""
OPTIONS = "adapter.options."
MODE_KEYS = ("mode", "blocks", "adapter")
"""Keys that a mode sets."""
FOLDER = "finetune"
"""Folder of the recipes among the configs."""
LAST_BLOCKS = "last_blocks"
ANY_ADAPTER = "adapter"
"""Key of `by_mode` for any adapter; an entry with the adapter's own name takes precedence."""


def load_recipe(file: str | Path) -> FinetuneConfig:
    """Read a recipe from YAML: a path, or the name of one that comes with the package, as in "finetune/asda_esc50".

    Raises:
        ConfigError: with the file's name before each message.
    """
    path = find_config(file)
    if not path.exists():
        raise ConfigError(unknown_message("recipe", str(file), shipped_configs(FOLDER)))
    plain = read_yaml(path)
    require_kind(plain, "recipe", file)
    with prefix_errors(file):
        return parse(FinetuneConfig, plain)


def is_recipe(file: str | Path) -> bool:
    """Whether a YAML file has keys of a recipe that a run config does not have."""
    path = find_config(file)
    if not is_config_file(path) or not path.is_file():
        return False
    plain = read_yaml(path)
    recipe_keys = {item.name for item in fields(FinetuneConfig)} - {item.name for item in fields(RunConfig)}
    return isinstance(plain, dict) and bool(recipe_keys & plain.keys())


def changed_recipe(recipe: FinetuneConfig, changes: Sequence[str]) -> FinetuneConfig:
    """The recipe with the `key=value` changes of a command line."""
    return with_changes(recipe, parsed_changes(changes))


def with_changes(recipe: FinetuneConfig, changes: Mapping[str, Any]) -> FinetuneConfig:
    """Return the recipe with new values of dotted keys; `steps` replaces `epochs`, and vice versa.

    A mapping for a group of keys changes only those that it names: `{"optimizer": {"peak_lr": 0.1}}`.
    """
    plain = to_plain(recipe)
    flat = flatten_changes(changes)
    for key, value in parents_first(flat):
        other = {"steps": "epochs", "epochs": "steps"}.get(key)
        if other is not None and other not in flat and value:
            plain[other] = 0
        plain = with_change(plain, key, value, DEFAULT_RECIPE)
    return parse(FinetuneConfig, plain)


def merge_changes(file_changes: Mapping[str, Any], cli_changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes of a task file, overridden by those of a command line, whose `steps` or `epochs` replaces either."""
    lengths = {"steps", "epochs"}
    task_changes = {
        key: value for key, value in file_changes.items() if key not in lengths or not lengths & cli_changes.keys()
    }
    return {**task_changes, **cli_changes}


def flatten_changes(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return changes by dotted key, whatever their nesting."""
    return dict(_flat(changes))


def _flat(changes: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in changes.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and dotted in GROUPS:
            yield from _flat(value, f"{dotted}.")
        else:
            yield dotted, value


def recipe_for(
    recipe: FinetuneConfig, mode: str, catalog: Catalog, overrides: Mapping[str, Any] | None = None
) -> FinetuneConfig:
    """Return the recipe of a mode: that of the file, updated by its `by_mode` and then by the changes of a user.

    Args:
        recipe: recipe of a file.
        mode: "full", "linear", "attentive", "last_blocks=K", or the name of an adapter.
        catalog: catalog with the adapters.
        overrides: changes of a task or a command line.

    Raises:
        ConfigError: no such mode, or a wrong key or value.
    """
    user_changes = flatten_changes(overrides or {})
    for_all_modes = {key: value for key, value in user_changes.items() if not key.startswith(MODE_KEYS)}
    mode_keys = ("pooling",) if recipe.mode == "attentive" else ()
    recipe = with_changes(recipe, {key: value for key, value in for_all_modes.items() if key not in mode_keys})
    changes = _mode_changes(recipe, mode, [offer.spec.name for offer in catalog.family_offers(ANY_ADAPTER)])
    if "mode" in (by_mode := _by_mode(recipe, mode)):
        raise ConfigError(f"by_mode.{mode} cannot change the mode.")
    excluded = ("by_mode", "pooling") if mode == "attentive" else ("by_mode",)
    final = {key: value for key, value in for_all_modes.items() if not key.startswith(excluded)}
    if changes["mode"] == ANY_ADAPTER:
        final |= {key: value for key, value in user_changes.items() if key.startswith(OPTIONS)}
    return with_changes(with_changes(replace(recipe, by_mode={}), changes | by_mode), final)


def _mode_changes(recipe: FinetuneConfig, mode: str, adapters: Sequence[str]) -> dict[str, Any]:
    """Return the changes that the name of a mode implies."""
    name, _, number = mode.partition("=")
    changes: dict[str, Any] = {"mode": name, "blocks": 0, "adapter": None}
    if name == LAST_BLOCKS:
        if not number.isdigit():
            raise ConfigError(f"mode {mode!r} needs a number of blocks, as in last_blocks=2.")
        changes["blocks"] = int(number)
    elif name in adapters and not number:
        adapter = recipe.adapter if recipe.adapter is not None and recipe.adapter.name == name else None
        changes |= {"mode": ANY_ADAPTER, "adapter": name if adapter is None else to_plain(adapter)}
    elif name not in MODES or name == ANY_ADAPTER or number:
        raise ConfigError(unknown_message("mode", mode, [*(m for m in MODES if m != ANY_ADAPTER), *adapters]))
    if name == "attentive":
        changes["pooling"] = "attentive"
    elif recipe.mode == "attentive":  # whose pooling belongs to the mode
        changes["pooling"] = DEFAULT_RECIPE.pooling
    return changes


def _by_mode(recipe: FinetuneConfig, mode: str) -> dict[str, Any]:
    """Return the changes of `by_mode` for a mode; those of a named adapter override those of any adapter."""
    name = mode.partition("=")[0]
    any_adapter = {} if name in MODES else flatten_changes(recipe.by_mode.get(ANY_ADAPTER, {}))
    return any_adapter | flatten_changes(recipe.by_mode.get(name, {}))


def mode_of(recipe: FinetuneConfig) -> str:
    """The name of a recipe's own mode, as `recipe_for` takes it."""
    if recipe.adapter is not None:
        return recipe.adapter.name
    return f"{LAST_BLOCKS}={recipe.blocks}" if recipe.blocks else recipe.mode


def check_by_mode(recipe: FinetuneConfig, catalog: Catalog) -> None:
    """Apply every entry of `by_mode` once, to find errors early.

    Raises:
        ConfigError: naming the mode.
    """
    for mode in recipe.by_mode:
        try:
            if mode == ANY_ADAPTER:
                with_changes(replace(recipe, by_mode={}), _by_mode(recipe, ANY_ADAPTER))
            else:
                recipe_for(recipe, f"{mode}=1" if mode == LAST_BLOCKS else mode, catalog)
        except ConfigError as error:
            raise ConfigError(f"by_mode.{mode}: {error}") from None
