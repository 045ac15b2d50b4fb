"""Read any checkpoint as a `Checkpoint`: of asda, released EAT and ASDA (fairseq, Hugging Face), SSAST and SSAMBA."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from asda_core.checkpoint import FORMAT_PREFIX, TENSOR_PREFIXES, Checkpoint, Weights, read_checkpoint
from asda_core.config_io import find_config
from asda_core.errors import CheckpointError, ConfigError
from asda_core.official.eat import (
    NUM_BINS,
    Architecture,
    check_positions,
    classifier_names,
    decoder_names,
    encoder_names,
    infer_architecture,
    positions_name,
)
from asda_core.official.matching import Shape, check_finite_tensors, check_tensors, printable
from asda_core.official.pickles import is_pickled, plain_data, read_pickled
from asda_core.official.ssast import is_ssast, read_ssast
from asda_core.official.stored_config import (
    classifier_config,
    nested_value,
    pretraining_config,
    run_config,
    unsupported_settings,
)
from asda_core.system.files import sidecar_config_file
from asda_core.system.paths import find_model_file, is_config_file, is_package_model
from asda_core.weights.tensor_files import read_tensors

TEACHER_KEY = "_ema"
"""Key under which a released pre-training state keeps the teacher."""
CONTENT_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ConfigError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Exceptions that processing a foreign file can raise; all of them mean that its contents are invalid."""
MODEL_BY_MIXER = {"differential": "ASDA", "standard": "EAT"}


@dataclass(frozen=True)
class Contents:
    """Contents of a released file: tensors by released name, and the configs in it and beside it."""

    file: Path
    student: Mapping[str, Tensor]
    teacher: Mapping[str, Tensor]
    stored_config: Any
    sidecar: Mapping[str, Any]
    labels: Mapping[Any, Any]
    updates: int = 0


def read_model(path: str | Path, weights: Weights = "student") -> Checkpoint:
    """Read a checkpoint of any kind. No code in the file is ever run.

    Args:
        path: a file or run folder of asda, a released `.pt` or `.pth`, or a Hugging Face folder or `model.safetensors`.
        weights: "student" (what the releases use for features and fine-tuning) or "teacher".

    Returns:
        the checkpoint under asda's names; `report` says how many tensors were matched.

    Raises:
        CheckpointError: no file is found, it is damaged or rejected, or tensors are missing, unexpected or misshapen.
    """
    config = find_config(path)
    if is_config_file(config) and config.is_file() and not is_package_model(path):
        raise CheckpointError(f"{path} is a config and has no weights; give a checkpoint or a run folder.")
    file = find_model_file(Path(path), prefer_step=weights == "teacher")
    if is_pickled(file):
        contents = _fairseq(file)
        return convert(contents, weights)
    tensors, metadata = read_tensors(file)
    if metadata.get("format", "").startswith(FORMAT_PREFIX) or all(
        name.startswith(TENSOR_PREFIXES) for name in tensors
    ):
        return read_checkpoint(file, weights)
    beside = sidecar_config_file(file)
    return convert(Contents(file, tensors, {}, {}, {} if beside is None else _json(beside), {}), weights)


def convert(contents: Contents, weights: Weights) -> Checkpoint:
    """Recognise the architecture, check every name and shape, and rename the tensors to asda's names.

    Raises:
        CheckpointError: a tensor is missing, unexpected or misshapen, or the tensors or the config are invalid.
    """
    if weights == "teacher" and not contents.teacher:
        raise CheckpointError(f"{contents.file} holds no teacher; its weights are those of the student.")
    try:
        if is_ssast(contents.student):
            return read_ssast(contents.student, contents.sidecar, contents.file, weights)
        return _converted(contents, weights)
    except CheckpointError:
        raise
    except CONTENT_ERRORS as error:  # sparse or meta tensors, text in place of numbers, and so on
        raise CheckpointError(
            f"{contents.file}: its tensors or its config are invalid ({type(error).__name__}: {error!s:.200})."
        ) from None


def _converted(contents: Contents, weights: Weights) -> Checkpoint:
    stored_config = nested_value(pretraining_config(contents.stored_config), "model") or contents.sidecar
    architecture = infer_architecture(
        contents.student, stored_config if isinstance(stored_config, Mapping) else {}, contents.file
    )
    parts = {
        "encoder": encoder_names(architecture),
        "objective.decoder": decoder_names(architecture),
        "classifier": classifier_names(architecture),
    }
    tensors = _match(contents.student, parts, architecture, contents, "")
    teacher: dict[str, Tensor] = {}
    if contents.teacher:
        names = {"objective.teacher.encoder": parts["encoder"]}
        teacher = _match(contents.teacher, names, architecture, contents, " of the teacher")
    if weights == "teacher":
        tensors = {name.removeprefix("objective.teacher."): tensor for name, tensor in teacher.items()}
    elif "objective.decoder.proj.weight" in tensors and teacher:
        tensors |= teacher  # everything that is needed to resume training
    else:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("objective.")}
    check_finite_tensors(tensors, contents.file)
    config, rejected = run_config(architecture, contents.stored_config, contents.sidecar)
    return Checkpoint(
        file=contents.file,
        config=config,
        plugins={},
        step=contents.updates,
        data_digest="",
        tensors=tensors,
        classifier=classifier_config(
            architecture, contents.stored_config, contents.labels or _id2label(contents.sidecar)
        ),
        report=_report(contents, architecture, parts, weights) + _notes(contents, rejected),
    )


def _match(
    tensors: Mapping[str, Tensor],
    parts: Mapping[str, Mapping[str, tuple[str, Shape]]],
    architecture: Architecture,
    contents: Contents,
    owner: str,
) -> dict[str, Tensor]:
    """Return the tensors as float32 under asda's names, after checking that they are exactly the expected ones."""
    expected = {released: shape for names in parts.values() for released, shape in names.values()}
    table = positions_name(architecture)
    check_tensors(tensors, expected, {table}, contents.file, owner)
    if table in tensors:
        bins = contents.sidecar.get("mel_bins")
        check_positions(tensors[table], architecture, contents.file, bins if isinstance(bins, int) else NUM_BINS)
    return {
        f"{part}.{ours}": tensors[released].float().contiguous().clone()
        for part, names in parts.items()
        for ours, (released, _) in names.items()
    }


def _fairseq(file: Path) -> Contents:
    """Read a file of `torch.save` that holds fairseq's dictionary or a bare state dict."""
    loaded = read_pickled(file)
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{file} is not a checkpoint: it contains {type(loaded).__name__}.")
    state = loaded.get("model", loaded)
    student = _tensors(state, file, {TEACHER_KEY})
    teacher = _tensors(nested_value(state, TEACHER_KEY) or {}, file, set())
    labels = plain_data(nested_value(loaded, "task_state", "labels"))
    stored = plain_data(loaded.get("cfg")) or {"model": plain_data(loaded.get("args")) or {}}
    beside = sidecar_config_file(file)
    config = {} if "model" in loaded or beside is None else _json(beside)
    history = loaded.get("optimizer_history")
    updates = nested_value(history[-1], "num_updates") if isinstance(history, list) and history else None
    return Contents(
        file=file,
        student=student,
        teacher=teacher,
        stored_config=stored,
        sidecar=config,
        labels=labels if isinstance(labels, Mapping) else {},
        updates=updates if isinstance(updates, int) else 0,
    )


def _tensors(state: Any, file: Path, beside: set[str]) -> dict[str, Tensor]:
    """Return the tensors of a state dict, which may hold nothing else except under the names in `beside`."""
    if not isinstance(state, Mapping):
        raise CheckpointError(
            f"{file} is not a checkpoint of EAT or ASDA: expected a dict of tensors, got {state!r:.40}."
        )
    other = [name for name, value in state.items() if not isinstance(value, Tensor) and name not in beside]
    if other or not all(isinstance(name, str) for name in state):
        names = other or [name for name in state if not isinstance(name, str)]
        raise CheckpointError(f"{file}: unexpected entries among its tensors: {', '.join(map(printable, names))}.")
    return {name: value.detach() for name, value in state.items() if name not in beside}


def _id2label(beside: Mapping[str, Any]) -> Mapping[Any, Any]:
    """Return the inverse of Hugging Face's `id2label`: class name -> number."""
    names = beside.get("id2label")
    return {str(name): number for number, name in names.items()} if isinstance(names, Mapping) else {}


def _json(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {file}: {error}") from None
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file} must contain a mapping of keys to values.")
    return content


def _report(
    contents: Contents, architecture: Architecture, parts: Mapping[str, Mapping[str, Any]], weights: Weights
) -> str:
    """Describe the model and how many tensors were matched, in one line."""
    state = f"fine-tuned to {architecture.num_classes} classes" if architecture.num_classes else "pre-trained"
    counts = [f"{len(names)} of the {part.split('.')[-1]}" for part, names in parts.items() if names]
    if positions_name(architecture) in contents.student:
        counts.insert(1, "the table of positions")
    matched = len(contents.student)
    line = f"{contents.file}: {MODEL_BY_MIXER[architecture.encoder.mixer.name]}, {state} ({architecture.layout}): "
    line += f"{matched} of {matched} tensors matched ({', '.join(counts)})"
    if not contents.teacher:
        return f"{line}."
    line += f", {len(contents.teacher)} of {len(contents.teacher)} of the teacher"
    return f"{line}; using the {weights}'s weights."


def _notes(contents: Contents, rejected: list[str]) -> str:
    """Describe what of the stored config is not applied; none of it affects the features."""
    notes = f" Ignored invalid settings of its config: {', '.join(rejected)}." if rejected else ""
    if other := unsupported_settings(contents.stored_config):
        notes += f" Further training would differ, because it was trained with {', '.join(other)}."
    return notes
