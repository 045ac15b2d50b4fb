"""Configs given on a command line: a file, a name or a checkpoint, and changes of single keys."""

import sys
from collections.abc import Sequence
from pathlib import Path

from asda_core.config import RunConfig
from asda_core.config_io import (
    find_config,
    load_run_config,
    parents_first,
    parse,
    parsed_changes,
    to_plain,
    with_change,
)
from asda_core.errors import listing
from asda_core.official.reading import read_model
from asda_core.system.paths import is_config_file


def apply_changes(config: RunConfig, changes: Sequence[str]) -> RunConfig:
    """The config with `key=value` changes in any order; values are read as YAML.

    Raises:
        ConfigError: a change has no `=`, or the key or value is wrong.
    """
    plain = to_plain(config)
    for key, value in parents_first(parsed_changes(changes)):
        plain = with_change(plain, key, value)
    return parse(RunConfig, plain)


def is_config(path: Path) -> bool:
    """Whether a path names a config rather than a checkpoint."""
    return is_config_file(find_config(path)) or not path.exists()


def config_from_path(path: Path) -> RunConfig:
    """Return the config of a file or name, or that of a checkpoint, which is described in a line on stderr.

    Raises:
        ConfigError: the config is wrong, or a recipe or plan.
        CheckpointError: as in `read_model`.
    """
    if is_config(path):
        return load_run_config(path)
    checkpoint = read_model(path)
    model = "pre-trained"
    if checkpoint.classifier:
        labels = listing(checkpoint.classifier.labels)
        model = f"classifier of {checkpoint.classifier.num_classes} classes ({labels or 'without names'})"
    print(checkpoint.report or f"{checkpoint.file}: asda checkpoint, {model}, step {checkpoint.step}", file=sys.stderr)
    return checkpoint.config
