"""Check of a spec: that a config can name the plugin and set its options."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from asda_core.contracts import Spec
from asda_core.errors import ConfigError, PluginError
from asda_core.settings.checks import field_default, validator
from asda_core.settings.strict_yaml import parse_value

NAME = re.compile(r"\w[\w.+-]*")
"""What a name in YAML, on a command line and in the name of a folder may be: one word."""


def check_spec(spec: Spec[Any, Any, Any], where: str) -> None:
    """Check the fields of a spec whose errors would otherwise show late, or never.

    Args:
        spec: of any family.
        where: what offers it, for messages.

    Raises:
        PluginError: a config cannot name the plugin or set its options, or a field has the wrong type.
    """
    name, config = spec.name, spec.config
    parameters = getattr(config, "__dataclass_params__", None)
    if not (isinstance(name, str) and NAME.fullmatch(name) and parse_value(name) == name):
        raise PluginError(
            f"{where}: the name must be a string of letters, digits and _-.+ that YAML reads as text, not {name!r}."
        )
    if not (isinstance(config, type) and parameters and parameters.frozen):
        raise PluginError(f"{where}: the config of {name!r} must be a frozen dataclass, not {config!r}.")
    if not callable(spec.build):
        raise PluginError(f"{where}: build of {name!r} must be a function of options and context, not {spec.build!r}.")
    if arguments := _wrong_arguments(spec.build):
        raise PluginError(f"{where}: build of {name!r} must take two arguments, options and context, not {arguments}.")
    for field in ("summary", "source"):
        if not isinstance(getattr(spec, field), str):
            raise PluginError(f"{where}: {field} of {name!r} must be a string, not {getattr(spec, field)!r}.")
    for field in ("without_influence", "takes_over"):
        names = getattr(spec, field, ())
        if isinstance(names, str) or not (isinstance(names, Iterable) and all(isinstance(each, str) for each in names)):
            raise PluginError(f"{where}: {field} of {name!r} must be a tuple of names, not {names!r}.")
    if not isinstance(spec.released, Mapping):
        raise PluginError(
            f"{where}: released of {name!r} must be a mapping of options to values, not {spec.released!r}."
        )
    _check_options(spec, where)


def _wrong_arguments(function: Callable[..., Any]) -> str:
    """The signature of a function that cannot be called with two positional arguments; "" if it can, or has none."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # as of some functions written in C
        return ""
    try:
        signature.bind(None, None)
    except TypeError:
        return str(signature)
    return ""


def _check_options(spec: Spec[Any, Any, Any], where: str) -> None:
    """Check that the options have types that configs support, and that the spec names and sets them rightly."""
    try:
        validator(spec.config)
        hints = get_type_hints(spec.config)
    except (ConfigError, NameError) as error:
        raise PluginError(f"{where}: the config of {spec.name!r} cannot be used: {error}") from None
    options = {item.name: field_default(item, None) for item in fields(spec.config)}
    for field in ("released", "without_influence"):
        if unknown := [key for key in getattr(spec, field) if key not in options]:
            raise PluginError(f"{where}: {field} of {spec.name!r} names {unknown[0]!r}, which is none of its options.")
    defaults = {key: value for key, value in options.items() if value is not MISSING and type(value) is not FieldInfo}
    for field, values in (("the default", defaults), ("released", spec.released)):
        for key, value in values.items():
            try:
                TypeAdapter(hints[key]).validate_python(value)
            except ValidationError as error:
                reason = error.errors()[0]["msg"]
                raise PluginError(f"{where}: {field} of {key!r} of {spec.name!r}: {reason}, got {value!r}.") from None
