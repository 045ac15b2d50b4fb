"""Checkpoints: weights (safetensors) with the config and the plugins that made them; reading and writing are strict.

A run folder::

    config.yaml  log.jsonl  skipped.jsonl  tensorboard/
    step-00002000/   model.safetensors      encoder., objective., front_end. tensors; config and plugins as metadata
                     training.safetensors   the optimiser's state
    model.safetensors                       the encoder alone, written at the end of the run
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from asda_core.assemble import Parts, build_model, plugin_origins
from asda_core.catalog import Catalog, PluginOrigins
from asda_core.config import RunConfig
from asda_core.config_io import parse, to_plain
from asda_core.devices import building, own_modes
from asda_core.errors import CheckpointError, ConfigError, PluginError
from asda_core.finetune_config import ClassifierConfig
from asda_core.model.encoder import Encoder
from asda_core.model.heads import Classifier
from asda_core.system.files import sync, write_atomically, write_with_default_mode
from asda_core.system.paths import find_model_file, step_folders
from asda_core.weights.provenance import append_mismatches_to_errors, version_mismatches, warn_version_mismatches
from asda_core.weights.tensor_files import read_tensors, save_tensors

FORMAT_PREFIX = "asda-"
FORMAT = f"{FORMAT_PREFIX}1"
"""Written into every checkpoint; changes when older code could not read a new one."""
TRAINING_FILE = "training.safetensors"
TEACHER_PREFIX, TEACHER_ENCODER_PREFIX = "objective.teacher.", "objective.teacher.encoder."
ORIGIN_KEYS = ("name", "distribution", "version")
TRAINED_ON = "trained_on"
"""Key of the metadata of a fine-tuned checkpoint; see `Checkpoint.trained_on`."""
TENSOR_PREFIXES = ("front_end.", "encoder.", "objective.", "classifier.")
"""Prefixes of tensor names in an asda checkpoint."""


Weights = Literal["student", "teacher"]


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file.

    Attributes:
        file: where it was read from.
        config: config of the run that made it.
        plugins: family -> name, distribution, version of the plugins in use.
        step: number of updates done.
        data_digest: digest of the list of audio files, empty if unknown.
        tensors: all tensors by name.
        classifier: the head of a fine-tuned model, None if there is none.
        embedding: options of `asda_hear.load_model` that suit the model, as stated by its author; often empty.
        trained_on: for a fine-tuned model: `data`, the name of the data set; `tested`, the held-out fold, empty if
            train and test splits were given; `clips`, marks that identify the training clips; `marked`, "no" if the
            clips of `data` have none; and `before`, name, held-out fold and whether marked of the data sets on which
            the initial weights were trained, as JSON. See `finetune.leakage`.
        report: one line on what was read, empty for an asda checkpoint.
    """

    file: Path
    config: RunConfig
    plugins: PluginOrigins
    step: int
    data_digest: str
    tensors: Mapping[str, Tensor]
    classifier: ClassifierConfig | None = None
    report: str = ""
    embedding: Mapping[str, Any] = field(default_factory=dict)
    trained_on: Mapping[str, str] = field(default_factory=dict)


def read_checkpoint(path: str | Path, weights: Weights = "student") -> Checkpoint:
    """Read an asda checkpoint, or the newest one of a run folder. No code in the file is ever executed.

    Args:
        path: file or folder.
        weights: "teacher" replaces the encoder by the teacher that a step of the run holds.

    Raises:
        CheckpointError: the file is missing, damaged, not a checkpoint of asda, or holds no teacher.
    """
    file = find_model_file(Path(path), prefer_step=weights == "teacher")
    tensors, metadata = read_tensors(file)
    if (format_name := metadata.get("format")) != FORMAT:
        other = format_name is not None and format_name.startswith(FORMAT_PREFIX)
        what = f"of another version of asda (format {format_name!r})" if other else "not an asda checkpoint"
        raise CheckpointError(f"{file} is a safetensors file, but {what}: expected format {FORMAT!r} in its metadata.")
    read_value = partial(_metadata_value, file, metadata)
    config = read_value("config", lambda value: parse(RunConfig, value))
    step = read_value("step", _count)
    origins = read_value(
        "plugins",
        lambda value: {part: {key: str(origin[key]) for key in ORIGIN_KEYS} for part, origin in value.items()},
    )
    head = read_value("classifier", lambda value: None if value is None else parse(ClassifierConfig, value), "null")
    embedding = read_value("embedding", dict, "{}")
    trained_on = read_value(TRAINED_ON, lambda value: {key: str(text) for key, text in value.items()}, "{}")
    blocks = {name.split(".")[2] for name in tensors if name.startswith("encoder.blocks.")}
    if config.encoder.depth > len(blocks):  # before a million blocks are built
        raise CheckpointError(
            f"{file}: its config has encoder.depth {config.encoder.depth}, but the file holds {len(blocks)} blocks."
        )
    if stray := [name for name in tensors if not name.startswith(TENSOR_PREFIXES)]:
        raise CheckpointError(f"{file} holds tensors that belong to no part of a model: {', '.join(stray)}.")
    if weights == "teacher":
        tensors = {
            name.removeprefix(TEACHER_PREFIX): value
            for name, value in tensors.items()
            if TEACHER_ENCODER_PREFIX in name
        }
        if not tensors:
            raise CheckpointError(f"{file} holds no teacher; the step checkpoints of a latent_regression run do.")
    contents = metadata.get("data", ""), tensors, head
    return Checkpoint(file, config, origins, step, *contents, embedding=embedding, trained_on=trained_on)


def _metadata_value(
    file: Path, metadata: Mapping[str, str], key: str, read: Callable[[Any], Any], default: str = ""
) -> Any:
    """Read the JSON value of a key of the metadata; `default` if the key is missing."""
    try:
        return read(json.loads(metadata[key] if not default else metadata.get(key, default)))
    except KeyError as error:
        why = "it is missing" if key not in metadata else f"key {error} is missing"
    except (ArithmeticError, AttributeError, RecursionError, TypeError, ValueError) as error:
        why = str(error)
    raise CheckpointError(f"{file}: cannot read {key!r} in its metadata: {why}")


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a number of steps")
    return value


@building()
@own_modes()
def load_encoder(checkpoint: Checkpoint, catalog: Catalog) -> tuple[Any, Encoder]:
    """Front end and encoder with the weights of a checkpoint, in float32 on the CPU, in evaluation mode.

    Raises:
        CheckpointError: a plugin is missing, or the tensors do not fit the config.
    """
    changed = version_mismatches(checkpoint.plugins, catalog)
    try:
        front_end, encoder = build_model(catalog, checkpoint.config)
    except (RuntimeError, MemoryError, ConfigError) as error:
        why = f"cannot build a model from its config ({error!s:.200})."
        raise CheckpointError(" ".join([f"{checkpoint.file}: {why}", *changed])) from None
    except PluginError as error:
        needs = ", ".join(f"{o['name']} of {o['distribution']} {o['version']}" for o in checkpoint.plugins.values())
        raise CheckpointError(f"{checkpoint.file} needs the plugins {needs}. {error}") from None
    with append_mismatches_to_errors(changed):
        load_weights(checkpoint, front_end, encoder)
    warn_version_mismatches(checkpoint.plugins, checkpoint.file, catalog)
    return front_end.eval(), encoder.eval()


@building()
@own_modes()
def load_classifier(checkpoint: Checkpoint) -> Classifier:
    """The head of a fine-tuned checkpoint, in float32 on the CPU, in evaluation mode.

    Raises:
        CheckpointError: the checkpoint has none, or the tensors do not fit.
    """
    if checkpoint.classifier is None:
        raise CheckpointError(f"{checkpoint.file} is pre-trained only: it has no classifier.")
    classifier = Classifier(checkpoint.classifier, checkpoint.config.encoder.dim)
    load_strict(classifier, checkpoint.tensors, "classifier.", checkpoint.file)
    return classifier.eval()


def load_weights(checkpoint: Checkpoint, front_end: Any, encoder: Encoder) -> None:
    """Load the weights of a checkpoint into modules built from its config; errors as in `load_strict`."""
    load_strict(front_end, checkpoint.tensors, "front_end.", checkpoint.file)
    load_strict(encoder, checkpoint.tensors, "encoder.", checkpoint.file)


def load_strict(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str, file: Path) -> None:
    """Load the tensors whose names begin with `prefix`; every name, shape and type (floating-point or not) must match.

    Raises:
        CheckpointError: naming what is missing, unexpected, of another shape or dtype, or not finite.
    """
    loaded = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    expected = module.state_dict()
    problems = [f"missing {name}" for name in sorted(expected.keys() - loaded.keys())]
    problems += [f"unexpected {name}" for name in sorted(loaded.keys() - expected.keys())]
    problems += [
        f"{name} has shape {tuple(loaded[name].shape)}, not {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & loaded.keys())
        if loaded[name].shape != expected[name].shape
    ]
    problems += [
        f"{name} has dtype {loaded[name].dtype}, not {expected[name].dtype}"
        for name in sorted(expected.keys() & loaded.keys())
        if loaded[name].is_floating_point() != expected[name].is_floating_point()
    ]
    problems += [f"{name} holds NaN or infinite values" for name, tensor in loaded.items() if not is_finite(tensor)]
    if problems:
        raise CheckpointError(f"{file} does not match its config ({prefix}*): {'; '.join(problems)}.")
    module.load_state_dict(loaded)


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite."""
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def model_tensors(parts: Parts, with_objective: bool) -> dict[str, Tensor]:
    """The tensors of a run, named with the prefixes of its modules.

    Raises:
        PluginError: the state of a module holds something other than tensors, which no checkpoint can store.
    """
    modules: dict[str, nn.Module] = {"front_end": parts.front_end, "encoder": parts.encoder}
    if with_objective:
        modules["objective"] = parts.objective
    state = {f"{prefix}.{name}": value for prefix, part in modules.items() for name, value in part.state_dict().items()}
    if other := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise PluginError(f"{other[0]} is not a tensor: checkpoints store only tensors, and no code (get_extra_state).")
    return {name: tensor.detach().contiguous() for name, tensor in state.items()}


def checkpoint_metadata(
    config: RunConfig,
    catalog: Catalog,
    step: int,
    data_digest: str = "",
    classifier: ClassifierConfig | None = None,
    embedding: Mapping[str, Any] | None = None,
    trained_on: Mapping[str, str] | None = None,
    plugins: PluginOrigins | None = None,
) -> dict[str, str]:
    """The metadata that is written beside the tensors.

    Args:
        config: config of the run that made them.
        catalog: the plugins.
        step: number of updates done.
        data_digest: digest of the list of audio files.
        classifier: config of the classification head.
        embedding, trained_on: as in `Checkpoint`.
        plugins: the plugins that made them, if not those of the catalog.
    """
    origins = plugins or plugin_origins(catalog, config, with_objective=classifier is None)
    head = {} if classifier is None else {"classifier": json.dumps(to_plain(classifier))}
    optional = {"embedding": embedding, TRAINED_ON: trained_on}
    return {
        **head,
        **{key: json.dumps(value) for key, value in optional.items() if value},
        "format": FORMAT,
        "config": json.dumps(to_plain(config)),
        "plugins": json.dumps(origins),
        "step": str(step),
        "data": data_digest,
    }


def write_model(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write one file atomically."""
    write_atomically(file, lambda part: save_tensors(part, tensors, metadata))


def write_step(
    folder: Path, step: int, files: Mapping[str, tuple[dict[str, Tensor], dict[str, str]]], keep: int
) -> Path:
    """Write the files of one step into `folder` atomically, and remove all but the newest `keep` steps."""
    part = folder / f".step-{step:08d}.part"
    for leftover in folder.glob(".step-*.part"):  # left by a kill during writing; no other run uses the folder
        shutil.rmtree(leftover, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        for name, (tensors, metadata) in files.items():
            write_with_default_mode(part / name, partial(save_tensors, tensors=tensors, metadata=metadata))
            sync(part / name)
        sync(part)
    except BaseException:  # frees the space on a full disk
        shutil.rmtree(part, ignore_errors=True)
        raise
    final = folder / f"step-{step:08d}"
    shutil.rmtree(final, ignore_errors=True)
    os.replace(part, final)
    sync(folder)
    for old in step_folders(folder)[:-keep]:
        shutil.rmtree(old)
    return final
