"""Resolution of the model that a user names to a file."""

import os
from pathlib import Path

from asda_core.config_io import find_config, shipped_configs
from asda_core.errors import CheckpointError, unknown_message
from asda_core.system.paths import CHECKPOINT_DESCRIPTION, is_config_file, is_package_model
from asda_hear.names import DEFAULT_WEIGHTS, LOG_MEL


def find_model(model: str | os.PathLike[str]) -> Path:
    """Find a checkpoint, run folder or config, by path or by the name of the model or a config of the package.

    Args:
        model: as for `load_model`, except "log_mel", which is not a file.

    Raises:
        CheckpointError: nothing is found.
    """
    name = os.fspath(model)
    file = DEFAULT_WEIGHTS if not name or is_package_model(name) else find_config(Path(model))
    if not file.exists() and not is_config_file(file):
        unknown_name = unknown_message("model", os.fspath(model), [LOG_MEL, *shipped_configs()])
        raise CheckpointError(
            f"no checkpoint at {model}: expected {CHECKPOINT_DESCRIPTION}, or a config (.yaml); by name: {unknown_name}"
        )
    return file
