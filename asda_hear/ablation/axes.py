"""The axes of a plan: their labels, what each label sets, and checks for conflicting or equivalent ones."""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from asda_core.config_io import parents_first
from asda_core.errors import ConfigError

Changes = Mapping[str, Any]
"""Dotted key of a config -> value."""
Axes = Mapping[str, Mapping[str, Changes]]
"""Axis -> label -> what it sets."""

PLUGIN_KEYS = ("adapter", "encoder.mixer", "front_end", "objective")
"""Keys whose value may be just the name of a plugin."""
PLUGIN_NAME_KEYS = tuple(f"{key}.name" for key in PLUGIN_KEYS)


def parse_axis(axis: str, choices: Any) -> dict[str, dict[str, Any]]:
    """Return an axis, given as a list or a mapping, as label -> {config key: value}.

    Raises:
        ConfigError: it is neither, or has a label twice.
    """
    if isinstance(choices, list) and choices:
        pairs = [(label_text(value), {axis: value}) for value in choices]
    elif isinstance(choices, dict) and choices and all(isinstance(value, dict | None) for value in choices.values()):
        pairs = [(label_text(label), value or {}) for label, value in choices.items()]
    else:
        raise ConfigError(
            f"axis {axis!r} must be a list of values, or labels with {{config key: value}}, not {choices!r}."
        )
    names = [label for label, _ in pairs]
    if duplicates := [label for label in names if names.count(label) > 1]:
        raise ConfigError(f"axis {axis!r} has the label {duplicates[0]!r} twice.")
    return dict(pairs)


def label_text(value: Any) -> str:
    """Return a label as YAML writes it: on and off, which YAML reads as booleans, become true and false."""
    return {True: "true", False: "false", None: "null"}[value] if isinstance(value, bool | None) else str(value)


def flatten(changes: Changes) -> dict[str, Any]:
    """Flatten changes, however nested, to dotted key of a single value -> value, so that none undoes another.

    A plugin with options becomes its name, which drops the options of a previous plugin, and one key per option.

    Raises:
        ConfigError: the same value is set twice.
    """
    values: dict[str, Any] = {}
    for key, value in _leaves(changes):
        if key in values:
            raise ConfigError(f"{key} is set twice.")
        values[key] = value
    return values


def _leaves(changes: Changes, above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in changes.items():
        dotted = f"{above}{key}"
        if dotted in PLUGIN_KEYS and isinstance(value, Mapping) and "name" in value:
            yield dotted, value["name"]
            yield from _leaves({inner: option for inner, option in value.items() if inner != "name"}, f"{dotted}.")
        elif dotted in PLUGIN_NAME_KEYS:
            yield dotted.removesuffix(".name"), value
        elif _is_nested(value):
            yield from _leaves(value, f"{dotted}.")
        else:
            yield dotted, value


def _is_nested(value: Any) -> bool:
    """Whether a value is a mapping whose keys can follow a dot."""
    return isinstance(value, Mapping) and bool(value) and all(isinstance(key, str) and "." not in key for key in value)


def check_disjoint(axes: Axes) -> None:
    """Reject two axes that set the same key, since one of them would have no effect.

    Raises:
        ConfigError: there are two such axes; the message names both and the key.
    """
    keys_by_axis = {
        axis: {key for changes in labels.values() for key in flatten(changes)} for axis, labels in axes.items()
    }
    for one, other in itertools.combinations(axes, 2):
        if common := keys_by_axis[one] & keys_by_axis[other]:
            raise ConfigError(f"the axes {one!r} and {other!r} both set {min(common)}.")


def merge_label_changes(common: Changes, changes: Changes) -> dict[str, Any]:
    """Merge the changes of a cell in an order in which none undoes another; its labels override those of all cells.

    If a label names another plugin than `common`, the options in `common` of the replaced plugin are dropped.

    Args:
        common: changes for every cell.
        changes: changes of the cell's labels.
    """
    shared, own = flatten(common), flatten(changes)
    dropped_prefixes = tuple(f"{key}.options." for key in PLUGIN_KEYS if key in own and key in shared)
    remaining = {key: value for key, value in shared.items() if key not in own and not key.startswith(dropped_prefixes)}
    return dict(parents_first({**remaining, **own}))


def check_effect(axes: Axes, identities: Mapping[tuple[str, ...], str]) -> None:
    """Reject two labels of an axis that make the same cell for all labels of the other axes.

    Args:
        axes: in the order of the labels in `identities`.
        identities: labels of a combination -> text that identifies its cell.

    Raises:
        ConfigError: there are two such labels; the message names both, and what they set.
    """
    for position, (axis, labels) in enumerate(axes.items()):
        for one, other in itertools.combinations(labels, 2):
            with_one = [combination for combination in identities if combination[position] == one]
            if all(
                identities[combination] == identities[_with_label(combination, position, other)]
                for combination in with_one
            ):
                keys = ", ".join(sorted(flatten(labels[one]).keys() | flatten(labels[other]).keys())) or "nothing"
                raise ConfigError(
                    f"the labels {one!r} and {other!r} of the axis {axis!r} make the same cells: what they set "
                    f"({keys}) is equal, or does not affect results."
                )


def _with_label(combination: Sequence[str], position: int, label: str) -> tuple[str, ...]:
    return (*combination[:position], label, *combination[position + 1 :])


def distinctive_labels(labels: Mapping[str, str], others: Collection[Mapping[str, str]]) -> dict[str, str]:
    """Return the labels that are not the same in all others."""
    return {axis: label for axis, label in labels.items() if any(other[axis] != label for other in others)}
