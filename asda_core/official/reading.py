"""Read any checkpoint as a `Checkpoint`: of asda, released EAT and ASDA (fairseq, Hugging Face), SSAST and SSAMBA."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from asda_core.checkpoint import OWN_FORMATS, PARTS, Checkpoint, Weights, read_checkpoint
from asda_core.config_io import CONFIG_SUFFIXES, find_config
from asda_core.errors import CheckpointError, ConfigError
from asda_core.official.eat import (
    NUM_BINS,
    Architecture,
    check_positions,
    classifier_names,
    decoder_names,
    encoder_names,
    positions_name,
    recognise,
)
from asda_core.official.matching import Shape, check_all, check_finite_tensors, shown
from asda_core.official.pickles import is_pickled, plain, read_pickled
from asda_core.official.ssast import is_masked_patch, read_masked_patch
from asda_core.official.stored_config import classifier_config, not_reproduced, pretraining, run_config, told
from asda_core.system.files import beside_model
from asda_core.weights.paths import is_package_model, locate
from asda_core.weights.tensor_files import read_tensors

TEACHER = "_ema"
"""Key under which a released pre-training state keeps the teacher."""
STRANGE = (
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
FAMILY = {"differential": "ASDA", "standard": "EAT"}


@dataclass(frozen=True)
class Contents:
    """Contents of a released file: tensors by released name, and the configs in it and beside it."""

    file: Path
    student: Mapping[str, Tensor]
    teacher: Mapping[str, Tensor]
    stored: Any
    beside: Mapping[str, Any]
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
    if config.suffix in CONFIG_SUFFIXES and config.is_file() and not is_package_model(path):
        raise CheckpointError(f"{path} is a config and has no weights; give a checkpoint or a run folder.")
    file = locate(Path(path), in_training=weights == "teacher")
    if is_pickled(file):
        contents = _fairseq(file)
        return convert(contents, weights)
    tensors, metadata = read_tensors(file)
    if metadata.get("format", "").startswith(OWN_FORMATS) or all(name.startswith(PARTS) for name in tensors):
        return read_checkpoint(file, weights)
    beside = beside_model(file)
    return convert(Contents(file, tensors, {}, {}, {} if beside is None else _json(beside), {}), weights)


def convert(contents: Contents, weights: Weights) -> Checkpoint:
    """Recognise the architecture, check every name and shape, and rename the tensors to asda's names.

    Raises:
        CheckpointError: a tensor is missing, unexpected or misshapen, or the tensors or the config are invalid.
    """
    if weights == "teacher" and not contents.teacher:
        raise CheckpointError(f"{contents.file} holds no teacher; its weights are those of the student.")
    try:
        if is_masked_patch(contents.student):
            return read_masked_patch(contents.student, contents.beside, contents.file, weights)
        return _converted(contents, weights)
    except CheckpointError:
        raise
    except STRANGE as error:  # sparse or meta tensors, text in place of numbers, and so on
        raise CheckpointError(
            f"{contents.file}: its tensors or its config are invalid ({type(error).__name__}: {error!s:.200})."
        ) from None


def _converted(contents: Contents, weights: Weights) -> Checkpoint:
    stated = told(pretraining(contents.stored), "model") or contents.beside
    found = recognise(contents.student, stated if isinstance(stated, Mapping) else {}, contents.file)
    parts = {
        "encoder": encoder_names(found),
        "objective.decoder": decoder_names(found),
        "classifier": classifier_names(found),
    }
    tensors = _match(contents.student, parts, found, contents, "")
    teacher: dict[str, Tensor] = {}
    if contents.teacher:
        names = {"objective.teacher.encoder": parts["encoder"]}
        teacher = _match(contents.teacher, names, found, contents, " of the teacher")
    if weights == "teacher":
        tensors = {name.removeprefix("objective.teacher."): tensor for name, tensor in teacher.items()}
    elif "objective.decoder.proj.weight" in tensors and teacher:
        tensors |= teacher  # everything that is needed to resume training
    else:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("objective.")}
    check_finite_tensors(tensors, contents.file)
    config, rejected = run_config(found, contents.stored, contents.beside)
    return Checkpoint(
        file=contents.file,
        config=config,
        plugins={},
        step=contents.updates,
        data="",
        tensors=tensors,
        classifier=classifier_config(found, contents.stored, contents.labels or _id2label(contents.beside)),
        report=_report(contents, found, parts, weights) + _notes(contents, rejected),
    )


def _match(
    tensors: Mapping[str, Tensor],
    parts: Mapping[str, Mapping[str, tuple[str, Shape]]],
    found: Architecture,
    contents: Contents,
    whose: str,
) -> dict[str, Tensor]:
    """Return the tensors as float32 under asda's names, after checking that they are exactly the expected ones."""
    expected = {released: shape for names in parts.values() for released, shape in names.values()}
    table = positions_name(found)
    check_all(tensors, expected, {table}, contents.file, whose)
    if table in tensors:
        bins = contents.beside.get("mel_bins")
        check_positions(tensors[table], found, contents.file, bins if isinstance(bins, int) else NUM_BINS)
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
    student = _tensors(state, file, {TEACHER})
    teacher = _tensors(told(state, TEACHER) or {}, file, set())
    labels = plain(told(loaded, "task_state", "labels"))
    stored = plain(loaded.get("cfg")) or {"model": plain(loaded.get("args")) or {}}
    beside = beside_model(file)
    config = {} if "model" in loaded or beside is None else _json(beside)
    history = loaded.get("optimizer_history")
    updates = told(history[-1], "num_updates") if isinstance(history, list) and history else None
    return Contents(
        file=file,
        student=student,
        teacher=teacher,
        stored=stored,
        beside=config,
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
        raise CheckpointError(f"{file}: unexpected entries among its tensors: {', '.join(map(shown, names))}.")
    return {name: value for name, value in state.items() if name not in beside}


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


def _report(contents: Contents, found: Architecture, parts: Mapping[str, Mapping[str, Any]], weights: Weights) -> str:
    """Describe the model and how many tensors were matched, in one line."""
    state = f"fine-tuned to {found.num_classes} classes" if found.num_classes else "pre-trained"
    counts = [f"{len(names)} of the {part.split('.')[-1]}" for part, names in parts.items() if names]
    if positions_name(found) in contents.student:
        counts.insert(1, "the table of positions")
    matched = len(contents.student)
    line = f"{contents.file}: {FAMILY[found.encoder.mixer.name]}, {state} ({found.layout}): "
    line += f"{matched} of {matched} tensors matched ({', '.join(counts)})"
    if not contents.teacher:
        return f"{line}."
    line += f", {len(contents.teacher)} of {len(contents.teacher)} of the teacher"
    return f"{line}; using the {weights}'s weights."


def _notes(contents: Contents, rejected: list[str]) -> str:
    """Describe what of the stored config is not applied; none of it affects the features."""
    notes = f" Ignored invalid settings of its config: {', '.join(rejected)}." if rejected else ""
    if other := not_reproduced(contents.stored):
        notes += f" Further training would differ, because it was trained with {', '.join(other)}."
    return notes
