"""Front end and encoder of the model that a user names: a checkpoint of any kind, or a config for random weights."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asda_core.assemble import build_parts
from asda_core.catalog import Catalog
from asda_core.checkpoint import Checkpoint, Weights, load_encoder
from asda_core.config import RunConfig
from asda_core.config_io import load_run_config
from asda_core.devices import building, own_modes
from asda_core.errors import ConfigError
from asda_core.model.encoder import Encoder
from asda_core.official.reading import read_model
from asda_core.system.paths import is_config_file
from asda_hear.model_paths import find_model


@dataclass(frozen=True)
class OpenedEncoder:
    """What `open_encoder` returns.

    Attributes:
        file: the checkpoint or config.
        config: of the run that made the checkpoint, or the config itself.
        front_end: a `FrontEnd`, on the CPU and in float32 like the encoder, both in evaluation mode.
        encoder: the encoder that takes its features.
        checkpoint: None if a config was opened.
    """

    file: Path
    config: RunConfig
    front_end: Any
    encoder: Encoder
    checkpoint: Checkpoint | None


@building()
@own_modes()
def open_encoder(model: str | os.PathLike[str], catalog: Catalog, weights: Weights = "student") -> OpenedEncoder:
    """Open a checkpoint, printing the report on a released one to stderr, or a config with weights drawn from its seed.

    Args:
        model: as `find_model` takes it.
        catalog: the plugins.
        weights: "student", or "teacher" where the checkpoint holds one.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or rejected, or needs a plugin that is missing.
        ConfigError: the config is invalid, or the teacher of a config is requested, which has none.
        PluginError: a config names a plugin that is missing or broken.
    """
    file = find_model(model)
    if is_config_file(file):
        if weights == "teacher":
            raise ConfigError(f"weights teacher: {model} is not a trained model and has no teacher.")
        config = load_run_config(file)
        parts = build_parts(catalog, config)
        return OpenedEncoder(file, config, parts.front_end.eval(), parts.encoder.eval(), None)
    checkpoint = read_model(file, weights)
    if checkpoint.report:
        print(checkpoint.report, file=sys.stderr)
    return OpenedEncoder(file, checkpoint.config, *load_encoder(checkpoint, catalog), checkpoint)
