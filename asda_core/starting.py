"""A new run that begins with the weights of a checkpoint."""

from dataclasses import fields
from typing import Any

from asda_core.assemble import Parts, build_parts, resolved
from asda_core.catalog import Catalog
from asda_core.checkpoint import Checkpoint, load_strict
from asda_core.config import RunConfig
from asda_core.config_io import to_plain
from asda_core.errors import CheckpointError, ConfigError
from asda_core.model.encoder import Encoder


def start_from(checkpoint: Checkpoint, catalog: Catalog, config: RunConfig) -> Parts:
    """The parts of a new run with the weights of a checkpoint; of its objective too, where it holds one.

    Raises:
        ConfigError: the run has another encoder or front end, also where no tensor would show it.
        CheckpointError: the tensors do not fit the config of the run.
    """
    ours, theirs = (_meant(catalog, run) for run in (config, checkpoint.config))
    if checkpoint.config.adapter is None:
        ours = {key: value for key, value in ours.items() if not key.startswith("adapter")}
    keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    if other := [f"{key} {ours.get(key)}, not {theirs.get(key)}" for key in keys]:
        raise ConfigError(
            f"the run is another model than {checkpoint.file}: {'; '.join(other)}. "
            f"`asda show {checkpoint.file}` prints a config that fits."
        )

    def load(front_end: Any, encoder: Encoder) -> None:
        load_strict(front_end, checkpoint.tensors, "front_end.", checkpoint.file)
        load_strict(encoder, checkpoint.tensors, "encoder.", checkpoint.file)

    fresh = checkpoint.config.adapter is None
    parts = build_parts(catalog, config, load if fresh else None, None if fresh else load)
    if holds_objective(checkpoint):
        try:
            load_strict(parts.objective, checkpoint.tensors, "objective.", checkpoint.file)
        except CheckpointError as error:
            raise ConfigError(
                f"the objective of the run is another one than that of the checkpoint. `asda show {checkpoint.file}` "
                f"prints a config that fits; an encoder alone begins with a new one. {error}"
            ) from None
    return parts


def holds_objective(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint holds what only training needs, such as decoder and teacher."""
    return any(name.startswith("objective.") for name in checkpoint.tensors)


def _meant(catalog: Catalog, config: RunConfig) -> dict[str, Any]:
    """What decides what a model computes, with every option of its plugins, but what nothing in it asks for."""
    encoder, compat = config.encoder, config.compat
    front_end = resolved(catalog, "front end", config.front_end, "front_end", compat)
    mixer = resolved(catalog, "mixer", encoder.mixer, "encoder.mixer", compat)
    shape = {f"encoder.{item.name}": getattr(encoder, item.name) for item in fields(encoder) if item.name != "mixer"}
    if encoder.norm == "post":
        del shape["encoder.pre_norm_residual"]
    names = {"front_end.name": config.front_end.name, "encoder.mixer.name": encoder.mixer.name}
    options = {f"front_end.options.{key}": value for key, value in to_plain(front_end).items()}
    options |= {f"encoder.mixer.options.{key}": value for key, value in to_plain(mixer).items()}
    if config.adapter is not None:
        names["adapter.name"] = config.adapter.name
        adapter = to_plain(resolved(catalog, "adapter", config.adapter, "adapter", compat))
        options |= {f"adapter.options.{key}": value for key, value in adapter.items()}
    return {**shape, **names, **options}
