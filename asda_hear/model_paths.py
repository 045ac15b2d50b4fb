"""Which file a user means by a model."""

import os
from pathlib import Path

from asda_core.config_io import CONFIG_SUFFIXES, find_config, shipped_configs
from asda_core.errors import CheckpointError, unknown
from asda_core.weights.paths import CHECKPOINTS, is_package_model
from asda_hear.names import DEFAULT_WEIGHTS, LOG_MEL


def find_model(model: str | os.PathLike[str]) -> Path:
    """A checkpoint, run folder or config: the path itself, the model or a config of the package by its name.

    Args:
        model: as `load_model` takes it, but for "log_mel", which is no file.

    Raises:
        CheckpointError: there is nothing.
    """
    name = os.fspath(model)
    found = DEFAULT_WEIGHTS if not name or is_package_model(name) else find_config(Path(model))
    if not found.exists() and found.suffix not in CONFIG_SUFFIXES:
        named = unknown("model", os.fspath(model), [LOG_MEL, *shipped_configs()])
        raise CheckpointError(
            f"no checkpoint at {model}: expected {CHECKPOINTS}, or a config (.yaml); by name: {named}"
        )
    return found
