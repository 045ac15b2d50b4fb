"""YAML as configs are written in it: a key that stands twice is an error, and so is what is no YAML."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from asda_core.errors import ConfigError, why

MERGE = "tag:yaml.org,2002:merge"
"""The tag of `<<`, which may stand beside keys that it brings too."""


class StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which alone would let the last of two equal keys win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """The mapping of a node.

        Raises:
            ConstructorError: a key stands twice.
        """
        seen: list[Any] = []
        for key_node, _ in node.value:
            if key_node.tag == MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                place = f"line {key_node.start_mark.line + 1}"
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice ({place})")
            seen.append(key)
        return super().construct_mapping(node, deep)


def load(text: str) -> Any:
    """Plain data from YAML text.

    Raises:
        YAMLError: it is no YAML, or has a key twice.
    """
    return yaml.load(text, StrictLoader)


def read_yaml(file: str | Path) -> Any:
    """Plain data from a YAML file.

    Raises:
        ConfigError: the file is missing, is not YAML, or has a key twice.
    """
    try:
        return load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config {file}: {why(error)}") from None
    except yaml.constructor.ConstructorError as error:
        raise ConfigError(f"{file}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not YAML: {error}") from None


def parse_value(text: str) -> Any:
    """A value of the command line, read as YAML.

    Raises:
        ConfigError: it is not YAML, or has a key twice.
    """
    try:
        return load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{text!r} is not YAML: {error}") from None
