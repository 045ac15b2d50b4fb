"""Strict YAML for configs: a duplicate key is an error, and so is invalid YAML."""

from pathlib import Path
from typing import Any

import yaml

from asda_core.errors import ConfigError, error_message

MERGE = "tag:yaml.org,2002:merge"
"""The tag of `<<`, which may occur beside keys that it provides too."""


class DuplicateKeyError(ConfigError):
    """A key occurs twice in a mapping."""


def parse_yaml(text: str) -> Any:
    """Plain data from YAML text, by PyYAML's safe loader, which alone would use the last of two equal keys.

    Raises:
        YAMLError: the text is not YAML.
        DuplicateKeyError: a key occurs twice.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_keys(loader, node)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check_keys(loader: yaml.SafeLoader, top: yaml.Node) -> None:
    """Check the keys of every mapping, before any is constructed: constructing inserts merged keys into it."""
    pending, visited = [top], set[int]()
    while pending:
        node = pending.pop()
        if id(node) in visited or not isinstance(node, yaml.CollectionNode):
            continue
        visited.add(id(node))
        if not isinstance(node, yaml.MappingNode):
            pending += node.value
            continue
        keys = set[Any]()
        for key_node, value_node in node.value:
            pending += [key_node, value_node]
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == MERGE:
                continue
            key = loader.construct_object(key_node)
            if key in keys:
                raise DuplicateKeyError(f"duplicate key {key!r} (line {key_node.start_mark.line + 1}).")
            keys.add(key)


def read_yaml(file: str | Path) -> Any:
    """Plain data from a YAML file.

    Raises:
        ConfigError: the file is missing, is not YAML, or has a key twice.
    """
    try:
        return parse_yaml(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config {file}: {error_message(error)}") from None
    except DuplicateKeyError as error:
        raise ConfigError(f"{file}: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not YAML: {error}") from None


def parse_value(text: str) -> Any:
    """A value of the command line, read as YAML.

    Raises:
        ConfigError: it is not YAML, or has a key twice.
    """
    try:
        return parse_yaml(text)
    except DuplicateKeyError as error:
        raise ConfigError(f"{text!r}: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{text!r} is not YAML: {error}") from None
