"""YAML <-> dataclass, strict: unknown keys and wrong types are errors that name the dotted path."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from enum import Enum
from pathlib import Path, PurePath
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import ValidationError

from asda_core.config import PluginChoice, RunConfig
from asda_core.errors import ConfigError, prefix_errors, unknown_message
from asda_core.settings.checks import (
    check_finite_numbers,
    check_finite_value,
    field_default,
    is_unexpected_bool,
    validator,
)
from asda_core.settings.kinds import require_kind
from asda_core.settings.strict_yaml import parse_value, read_yaml
from asda_core.system.files import text_digest

ConfigT = TypeVar("ConfigT")

DEFAULT_RUN = RunConfig()
SIGNATURE_DIGITS = 8
SECTIONS_ADDED = ("compute",)
"""Sections added later: one without remaining keys is excluded from the signature, so that older runs keep theirs."""
YAML_BOOLEAN_HINT = "YAML 1.1 reads yes, no, on and off as booleans; quote them to get strings."
CONFIG_FOLDERS = (Path(__file__).with_name("configs"), Path(__file__).parents[1] / "configs")
"""Folders of the configs that are shipped with the package: in an installed package, and in a checkout."""


def parse(cls: type[ConfigT], data: Any, path: str = "") -> ConfigT:
    """Build the dataclass `cls` from plain data.

    Args:
        cls: a frozen dataclass; its fields are the valid keys.
        data: the content of a YAML file: nested mappings, lists, numbers, text. None stands for an empty mapping.
        path: dotted path of `data` in the file, for messages.

    Raises:
        ConfigError: an unknown key, a value of a wrong type, or numbers that do not fit together.
    """
    prepared = _check_keys(cls, {} if data is None else data, path)
    released = getattr(cls, "released_keys", None)
    if released is not None and isinstance(prepared, dict) and prepared.get("compat") == "released":
        prepared = _check_keys(cls, _merged(_nested(released(prepared)), prepared), path)
    try:
        built: ConfigT = validator(cls, path).validate_python(prepared)
    except ValidationError as error:
        raise ConfigError("\n".join(_describe(item, path) for item in error.errors())) from None
    check_finite_numbers(built, prepared, path)
    return built


def find_config(name: str | Path) -> Path:
    """Return the file itself, or the file of the shipped config of this name."""
    if not Path(name).exists() and not Path(name).suffix:
        for folder in CONFIG_FOLDERS:
            if (shipped := folder / f"{name}.yaml").is_file():
                return shipped
    return Path(name)


def shipped_configs(folder: str = "") -> list[str]:
    """Names that `find_config` knows: of runs, or of those in the folder "ablations", "finetune" or "tasks"."""
    prefix = f"{folder}/" if folder else ""
    return sorted({prefix + file.stem for root in CONFIG_FOLDERS for file in (root / folder).glob("*.yaml")})


def load_run_config(file: str | Path) -> RunConfig:
    """Read the config of a run from YAML; a file states only what differs from the published model.

    Args:
        file: a path, or the name of a config that comes with the package, as in "asda_tiny".

    Raises:
        ConfigError: with the name of the file before the message.
    """
    path = find_config(file)
    if not path.suffix and not path.exists():
        raise ConfigError(f"no file at {file}: {unknown_message('config', str(file), shipped_configs())}")
    plain = read_yaml(path)
    require_kind(plain, "config", file)
    with prefix_errors(file):
        return parse(RunConfig, plain)


def parsed_changes(changes: Sequence[str], option: str = "--set") -> dict[str, Any]:
    """Parse the `key=value` changes of a command-line option into key -> value, read as YAML.

    Raises:
        ConfigError: a change has no `=`, or is not YAML.
    """
    values = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise ConfigError(f"{option} {change!r} must have the form key=value.")
        values[key] = parse_value(value)
    return values


def to_plain(config: Any) -> dict[str, Any]:
    """The dataclass as nested dicts and lists, the inverse of `parse`.

    Raises:
        ConfigError: an option of a plugin has a type that configs do not support.
    """
    try:
        return dict(json.loads(json.dumps(asdict(config), default=_plain_value)))
    except TypeError as error:
        raise ConfigError(f"an option cannot be written to a config: {error}") from None


def _plain_value(value: Any) -> Any:
    """Convert an option's value that JSON does not support to one that `parse` reads back."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise ConfigError(f"{value!r} cannot be written to a config; options must be numbers, strings, booleans or paths.")


def to_yaml(config: Any) -> str:
    """The dataclass as YAML text, every key stated."""
    return yaml.safe_dump(to_plain(config), sort_keys=False)


def with_value(data: Mapping[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    """A copy of nested plain data with one key set, as in "encoder.mixer.options.ratio"; missing levels are created.

    Raises:
        ConfigError: a key on the path has a value that is not a mapping.
    """
    key, _, rest = dotted.partition(".")
    if rest:
        section = data.get(key)
        if isinstance(section, str):  # a plugin given by its name alone
            section = {"name": section}
        if not isinstance(section, Mapping | None):
            raise ConfigError(f"{key} has the value {section!r}, which has no key {rest!r}.")
        value = with_value(section or {}, rest, value)
    return {**data, key: value}


def with_change(plain: Mapping[str, Any], dotted: str, value: Any, default_config: Any = DEFAULT_RUN) -> dict[str, Any]:
    """`with_value` for a whole config, where a change of `compat` also changes the keys that depend on it.

    `default_config` is a config of the same class with the default values.
    A key at its default changes to the released value, and vice versa; any other value is kept. A mapping for a
    group of keys changes only those that it names: `optimizer: {peak_lr: 0.1}`.
    """
    if isinstance(value, Mapping) and _is_group(default_config, dotted):
        for key, nested in value.items():
            plain = with_change(plain, f"{dotted}.{key}", nested, default_config)
        return dict(plain)
    changed = with_value(plain, dotted, value)
    before = plain.get("compat", "default")
    if dotted == "compat" and value in ("default", "released") and value != before:
        defaults = to_plain(default_config)
        for key, released in default_config.released_keys(changed).items():
            default = value_at(defaults, key)
            old, new = (default, released) if value == "released" else (released, default)
            if value_at(changed, key) == old:
                changed = with_value(changed, key, new)
    return changed


def parents_first(changes: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Sort changes of dotted keys so that none undoes another: `objective` before `objective.options.clones`."""
    return sorted(changes.items(), key=lambda change: str(change[0]).count("."))


def _is_group(defaults: Any, dotted: str) -> bool:
    """Whether a key stands for a group of keys; a plugin, whose options depend on its name, does not."""
    level = defaults
    for key in dotted.split("."):
        level = getattr(level, str(key), None)
    return is_dataclass(level) and not isinstance(level, PluginChoice)


def value_at(plain: Mapping[str, Any], dotted: str) -> Any:
    """The value at a dotted path of nested mappings."""
    level: Any = plain
    for key in dotted.split("."):
        level = level[key]
    return level


def _nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in dotted.items():
        nested = with_value(nested, key, value)
    return nested


def _merged(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two nested mappings level by level; values of `overrides` take precedence."""
    merged = dict(base)
    for key, value in overrides.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if nested else value
    return merged


def signature(config: Any, **more: Any) -> str:
    """Digest of everything that can change a result, in eight hex digits; it names the run folder.

    Args:
        config: a run, or a fine-tuning recipe.
        more: further facts that the results depend on, such as the identity of the data.
    """
    plain = to_plain(config)
    at_default = [dotted for dotted, default in config.added.items() if value_at(plain, dotted) == default]
    for dotted in (*config.without_influence, *at_default):
        parent, _, key = dotted.rpartition(".")
        del (value_at(plain, parent) if parent else plain)[key]
    plain = {key: value for key, value in plain.items() if value != {} or key not in SECTIONS_ADDED}
    canonical = json.dumps([plain, more], sort_keys=True, separators=(",", ":"), default=str)
    return text_digest(canonical, SIGNATURE_DIGITS)


def differences(before: Any, now: Any) -> list[str]:
    """The keys that affect results and differ between two configs, with both values, as in "steps: 20, now 40"."""
    old, new = dict(_flattened(to_plain(before))), dict(_flattened(to_plain(now)))
    keys = [key for key in dict.fromkeys([*old, *new]) if key not in now.without_influence]
    return [f"{key}: {old.get(key)!r}, now {new.get(key)!r}" for key in keys if old.get(key) != new.get(key)]


def _flattened(plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in plain.items():
        if isinstance(value, Mapping) and value:
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _check_keys(cls: type, data: Any, path: str, owner: Any = None) -> Any:
    """Reject keys that are not fields, at every level; accept a plugin that is given by its name alone.

    `owner` is the instance that is the default at this place of the config, if it is not `cls` with its defaults.
    """
    if cls is PluginChoice and isinstance(data, str):
        return {"name": data}
    if isinstance(data, cls):
        return data
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path or 'the config'} must be a mapping of keys to values, not {data!r}.")
    hints, items = get_type_hints(cls), {item.name: item for item in fields(cls)}
    checked: dict[str, Any] = {}
    for key, value in data.items():
        dotted = f"{path}.{key}" if path else str(key)
        if key not in items:
            raise ConfigError(f"{unknown_message('config key', str(key), items)} (at {dotted})")
        default = field_default(items[key], owner)
        check_finite_value(hints[key], value, default, dotted)
        checked[key] = _checked_value(hints[key], value, dotted, default)
    return checked


def _checked_value(hint: Any, value: Any, dotted: str, default: Any = None) -> Any:
    """Check the keys of the dataclasses in a value; between several possible types, the validator decides."""
    origin, args = get_origin(hint), [inner for inner in get_args(hint) if inner is not type(None)]
    if is_unexpected_bool(hint, value):
        raise ConfigError(f"{dotted}: expected {_type_name(hint)}, got the boolean {value}. {YAML_BOOLEAN_HINT}")
    if isinstance(hint, type) and is_dataclass(hint):
        return _check_keys(hint, value, dotted, default if isinstance(default, hint) else None)
    if origin in (Union, UnionType) and len(args) == 1 and value is not None:
        return _checked_value(args[0], value, dotted, default)
    if origin in (tuple, list) and isinstance(value, tuple | list):
        hints = args[:1] * len(value) if origin is list or Ellipsis in args else args
        pairs = enumerate(zip(hints, value, strict=False))
        return [*(_checked_value(*pair, f"{dotted}.{number}") for number, pair in pairs), *value[len(hints) :]]
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        return {key: _checked_value(get_args(hint)[1], inner, f"{dotted}.{key}") for key, inner in value.items()}
    return value


def _describe(item: Any, path: str) -> str:
    """Describe one error of the validator in one line; a message that begins with its own path is not prefixed."""
    dotted = ".".join([path, *map(str, item["loc"])] if path else map(str, item["loc"]))
    whole = isinstance(item["input"], Mapping)  # fields that do not fit together: the message names them
    got = "" if whole or not item["loc"] or item["type"] == "missing" else f", got {item['input']!r}"
    text = item["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list such as [1, 2]")  # in YAML terms
    where = "" if text.startswith((f"{dotted}.", f"{dotted} ", f"{dotted}: ")) else f"{dotted or 'the config'}: "
    return f"{where}{text}{got}"


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
