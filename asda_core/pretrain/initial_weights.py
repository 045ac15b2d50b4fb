"""Start a new run from the weights of a checkpoint."""

from dataclasses import fields
from functools import partial
from typing import Any

from asda_core.assemble import Parts, build_parts, check_clip, chosen_plugins, resolved_options
from asda_core.catalog import Catalog
from asda_core.checkpoint import TEACHER_PREFIX, Checkpoint, load_strict, load_weights, model_tensors
from asda_core.config import RunConfig
from asda_core.config_io import to_plain
from asda_core.errors import CheckpointError, ConfigError
from asda_core.weights.provenance import append_mismatches_to_errors, version_mismatches, warn_version_mismatches

MIXER_PREFIX = "encoder.mixer."


def build_training_parts(config: RunConfig, catalog: Catalog, init: Checkpoint | None) -> Parts:
    """Build the modules of a new run and check that the run is possible with them.

    Raises:
        ConfigError: an adapter without initial weights; a clip holds no patch; or as in `build_from_checkpoint`.
        PluginError: the state of a module cannot be saved in a checkpoint; raised here, not after hours of training.
        CheckpointError: as in `build_from_checkpoint`.
    """
    if config.adapter is not None and init is None:
        raise ConfigError(f"the adapter {config.adapter.name!r} needs a trained encoder: give one with --init.")
    parts = build_parts(catalog, config) if init is None else build_from_checkpoint(init, catalog, config)
    check_clip(parts.front_end, parts.encoder, config.data.clip_seconds)
    model_tensors(parts, with_objective=True)
    return parts


def build_from_checkpoint(checkpoint: Checkpoint, catalog: Catalog, config: RunConfig) -> Parts:
    """Build the modules of a new run with the weights of a checkpoint, also those of its objective if it holds one.

    A new adapter starts without effect, and a teacher within the objective starts as a copy of the adapted encoder:
    the stored teacher has no adapter, so its weights are not used.

    Raises:
        ConfigError: the run has another encoder, front end or objective, even if no tensor would show it.
        CheckpointError: the tensors do not fit the config of the run.
    """
    check_compatible(checkpoint, catalog, config)
    warn_version_mismatches(checkpoint.plugins, checkpoint.file, catalog)
    bare = checkpoint.config.adapter is None
    with append_mismatches_to_errors(version_mismatches(checkpoint.plugins, catalog)):
        parts = build_parts(catalog, config, partial(load_weights, checkpoint), with_adapter=not bare)
    if has_objective(checkpoint):
        tensors = dict(checkpoint.tensors)
        if bare and config.adapter is not None:
            new = {f"objective.{name}": tensor for name, tensor in parts.objective.state_dict().items()}
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(TEACHER_PREFIX)}
            tensors |= {name: tensor for name, tensor in new.items() if name.startswith(TEACHER_PREFIX)}
        try:
            load_strict(parts.objective, tensors, "objective.", checkpoint.file)
        except CheckpointError as error:
            raise ConfigError(
                f"the objective of the run differs from that of the checkpoint. `asda show {checkpoint.file}` "
                "prints a config that fits; to train with another objective, start from a checkpoint of the encoder "
                f"alone (model.safetensors). {error}"
            ) from None
    return parts


def check_compatible(checkpoint: Checkpoint, catalog: Catalog, config: RunConfig) -> None:
    """Check that a run has the encoder and the front end of a checkpoint.

    Raises:
        ConfigError: naming what differs.
    """
    before = checkpoint.config.adapter
    if before is not None and (config.adapter is None or config.adapter.name != before.name):
        raise ConfigError(
            f"the model of the run differs from {checkpoint.file}, which has the adapter {before.name!r}: adapters can "
            f"neither be stacked nor removed; set adapter: {before.name}."
        )
    mixer: Any = catalog.find("mixer", config.encoder.mixer.name).spec
    with append_mismatches_to_errors(version_mismatches(checkpoint.plugins, catalog)):
        ours, theirs = (_model_settings(catalog, run) for run in (config, checkpoint.config))
    if checkpoint.config.encoder.mixer.name in mixer.takes_over:
        theirs = {key: value for key, value in theirs.items() if not key.startswith(MIXER_PREFIX) or key in ours}
        theirs["encoder.mixer.name"] = config.encoder.mixer.name
        ours = {key: value for key, value in ours.items() if not key.startswith(MIXER_PREFIX) or key in theirs}
    if before is None:
        ours = {key: value for key, value in ours.items() if not key.startswith("adapter")}
    keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    if differences := [f"{key} {ours.get(key)}, not {theirs.get(key)}" for key in keys]:
        raise ConfigError(
            f"the model of the run differs from {checkpoint.file}: {'; '.join(differences)}. "
            f"`asda show {checkpoint.file}` prints a config that fits."
        )


def has_objective(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint holds what only training needs, such as decoder and teacher."""
    return any(name.startswith("objective.") for name in checkpoint.tensors)


def _model_settings(catalog: Catalog, config: RunConfig) -> dict[str, Any]:
    """Everything that determines what a model computes, with all options of its plugins, except for unused keys."""
    encoder = config.encoder
    shape = {f"encoder.{item.name}": getattr(encoder, item.name) for item in fields(encoder) if item.name != "mixer"}
    if encoder.norm == "post":
        del shape["encoder.pre_norm_residual"]
    mixer: Any = catalog.find("mixer", encoder.mixer.name).spec
    if not mixer.uses_heads:
        del shape["encoder.num_heads"]
    settings: dict[str, Any] = {}
    for family, path, choice in chosen_plugins(config):
        if family == "objective":
            continue
        spec = catalog.find(family, choice.name).spec
        options = to_plain(resolved_options(catalog, family, choice, path, config.compat))
        settings |= {f"{path}.options.{key}": v for key, v in options.items() if key not in spec.without_influence}
        settings[f"{path}.name"] = choice.name
    return {**shape, **settings}
