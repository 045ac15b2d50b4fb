"""`asda pretrain`."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from asda_core.assemble import plugin_origins
from asda_core.audio_files.sources import find_training_data, is_stream, list_identity, warn_of_duplicates
from asda_core.catalog import installed_catalog
from asda_core.commands.config_arguments import apply_changes, config_from_path
from asda_core.config import DataConfig
from asda_core.config_io import signature
from asda_core.errors import ConfigError
from asda_core.official.reading import read_model
from asda_core.pretrain.initial_weights import has_objective
from asda_core.pretrain.loop import pretrain
from asda_core.pretrain.processes import processes_from_environment
from asda_core.pretrain.schedule import is_peak_reached, warmup_warning
from asda_core.system.command_line import interrupts_enabled
from asda_core.system.files import model_digest


@interrupts_enabled()
def run_pretrain(parsed: argparse.Namespace) -> None:
    """Run `asda pretrain`, also as one of the processes that torchrun starts."""
    processes = processes_from_environment(os.environ)
    config = apply_changes(config_from_path(parsed.config), parsed.changes)
    catalog = installed_catalog()
    plugin_origins(catalog, config)  # a missing plugin raises before anything is built
    if config.steps and not parsed.data:
        raise ConfigError("--data is required for training (steps=0 only writes the initial model).")
    files = find_training_data(parsed.data)
    init = read_model(parsed.init) if parsed.init else None
    identity: dict[str, Any] = {"data": list_identity(files)}
    if init is not None:
        identity["init"] = model_digest(init.file)
        objective = "with its objective" if has_objective(init) else "with a new objective"
        if processes.is_first:
            print(f"{init.report}\ninitialised with the encoder of {init.file}, {objective}.".lstrip(), file=sys.stderr)
    if processes.is_first and not is_peak_reached(config):
        print(f"warning: {warmup_warning(config.optimizer, f'steps {config.steps}')}", file=sys.stderr)
    streamed = any(map(is_stream, parsed.data))
    if processes.is_first and not streamed:
        warn_of_duplicates([file for file in files if isinstance(file, Path)])
    if processes.is_first and files and not streamed and config.data.shuffle_clips != DataConfig().shuffle_clips:
        print("warning: data.shuffle_clips applies to streamed shards only; files are fully shuffled.", file=sys.stderr)
    folder = parsed.out or Path("runs") / f"{parsed.config.stem}-{signature(config, **identity)}"
    if processes.is_first:
        sources = "streamed shards" if streamed else "audio files"
        print(f"{len(files)} {sources} -> {folder}", file=sys.stderr)
    final = pretrain(config, files, folder, catalog, parsed.device, processes.is_first, init, processes)
    if processes.is_first:
        print(final)
