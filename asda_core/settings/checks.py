"""Reject unsupported types, non-finite numbers that are no default, and booleans in place of a number or text."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import PydanticUserError, TypeAdapter

from asda_core.errors import ConfigError

PLAIN_TYPES = {int, float, str}
"""Types that do not admit a boolean, although Python converts it to them."""


def validator(cls: type, path: str = "") -> Any:
    """Return the `TypeAdapter` that builds the dataclass `cls` from plain data.

    Raises:
        ConfigError: a field has a type that configs do not support; `path` is the dotted path for the message.
    """
    try:
        return TypeAdapter(cls)
    except PydanticUserError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{path or cls.__name__}: a field has a type that configs do not support: {reason}") from None


def field_default(item: "Field[Any]", owner: Any) -> Any:
    """The default of a field: its value in `owner`, the instance that is the default there, otherwise its own."""
    if owner is not None:
        return getattr(owner, item.name, MISSING)
    return item.default if item.default_factory is MISSING else item.default_factory()


def check_finite_value(hint: Any, value: Any, default: Any, dotted: str) -> None:
    """Reject a non-finite number before a dataclass receives it, also as text, which YAML makes of `inf`.

    Args:
        hint: the expected type.
        value: the given value.
        default: the default.
        dotted: dotted path, for the message.

    Raises:
        ConfigError: the number is not finite, and the default is not the same.
    """
    types = {hint, *get_args(hint)}
    if not isinstance(value, float) and not (isinstance(value, str) and float in types and str not in types):
        return
    try:
        number = float(value)
    except ValueError:
        return
    _check((number,), default, dotted)


def check_finite_numbers(built: Any, data: Any, path: str, owner: Any = None) -> None:
    """Reject non-finite numbers in what was given, at every level.

    Args:
        built: a dataclass.
        data: what it was built from.
        path: dotted path, for the message.
        owner: as in `field_default`.

    Raises:
        ConfigError: a number is not finite, and the default does not contain the same.
    """
    if not (is_dataclass(built) and isinstance(data, Mapping)):
        return
    hints = get_type_hints(type(built))
    for item in fields(built):
        if item.name in data:
            value, raw = getattr(built, item.name), data[item.name]
            dotted = f"{path}.{item.name}" if path else item.name
            default = field_default(item, owner)
            check_finite_numbers(value, raw, dotted, default if type(default) is type(value) else None)
            if isinstance(value, tuple | list) and isinstance(raw, tuple | list):
                for number, pair in enumerate(zip(value, raw, strict=False)):
                    check_finite_numbers(*pair, f"{dotted}.{number}")
            if not isinstance(value, dict) or float in get_args(hints[item.name]):  # others: their owner decides
                _check(_not_finite(value), default, dotted)


def is_unexpected_bool(hint: Any, value: Any) -> bool:
    """Whether a value is a boolean where a number or text is expected, and booleans are not allowed."""
    types = {hint, *get_args(hint)}
    is_plain = bool(PLAIN_TYPES & types) or get_origin(hint) is Literal
    is_literal = any(value is literal for literal in get_args(hint))  # Literal[True, "auto"]
    return isinstance(value, bool) and is_plain and not is_literal and not {bool, Any, object} & types


def _check(numbers: Iterable[float], default: Any, dotted: str) -> None:
    allowed = [*_not_finite(default)]
    for number in numbers:
        is_allowed = any(number == other or (math.isnan(number) and math.isnan(other)) for other in allowed)
        if not math.isfinite(number) and not is_allowed:
            raise ConfigError(f"{dotted} must be a finite number, not {number}.")


def _not_finite(value: Any) -> Iterator[float]:
    """The non-finite numbers in a value; dataclasses in it are not searched."""
    if isinstance(value, float):
        if not math.isfinite(value):
            yield value
    elif isinstance(value, Mapping):
        yield from _not_finite(list(value.values()))
    elif isinstance(value, tuple | list | set | frozenset):
        for item in value:
            yield from _not_finite(item)
