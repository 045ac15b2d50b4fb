"""Any checkpoint -> `Checkpoint`: ours, the released EAT and ASDA (fairseq), EAT's Hugging Face layout."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from asda_core.checkpoint import FORMAT, Checkpoint, Weights, locate, read_checkpoint, read_tensors
from asda_core.errors import CheckpointError, ConfigError
from asda_core.official.eat import (
    NUM_BINS,
    Architecture,
    Shape,
    check_positions,
    classifier_names,
    decoder_names,
    encoder_names,
    finite,
    positions_name,
    recognise,
)
from asda_core.official.pickles import is_pickled, read_pickled
from asda_core.official.told import classifier_config, not_reproduced, pretraining, run_config, told

TEACHER = "_ema"
"""Where a released pre-training state keeps the teacher."""
HUGGING_FACE_CONFIG = "config.json"
FAMILY = {"differential": "ASDA", "standard": "EAT"}


@dataclass(frozen=True)
class Contents:
    """What a released file holds: tensors by released name, and the configs in it and beside it."""

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
        path: a file or run folder of asda, a released `.pt`, or a Hugging Face folder or `model.safetensors`.
        weights: "student" (what the releases use for features and fine-tuning) or "teacher".

    Returns:
        the checkpoint under our names; `report` tells how many tensors were matched.

    Raises:
        CheckpointError: nothing is there, it is damaged or refused, or tensors are missing, unexpected or misshapen.
    """
    file = locate(Path(path))
    if is_pickled(file):
        return convert(_fairseq(file), weights)
    tensors, metadata = read_tensors(file)
    if metadata.get("format") == FORMAT:
        return read_checkpoint(file, weights)
    beside = file.with_name(HUGGING_FACE_CONFIG)
    return convert(Contents(file, tensors, {}, {}, _json(beside) if beside.is_file() else {}, {}), weights)


def convert(contents: Contents, weights: Weights) -> Checkpoint:
    """Recognise the architecture, check every name and shape, and give the tensors our names."""
    if weights == "teacher" and not contents.teacher:
        raise CheckpointError(f"{contents.file} holds no teacher; its weights are those of the student.")
    before = told(pretraining(contents.stored), "model") or contents.beside
    try:
        found = recognise(contents.student, before if isinstance(before, Mapping) else {}, contents.file)
    except ConfigError as error:
        raise CheckpointError(f"{contents.file}: {error}") from None
    parts = {
        "encoder": encoder_names(found),
        "objective.decoder": decoder_names(found),
        "classifier": classifier_names(found),
    }
    tensors = _match(contents.student, parts, found, contents)
    teacher: dict[str, Tensor] = {}
    if contents.teacher:
        teacher = _match(contents.teacher, {"objective.teacher.encoder": parts["encoder"]}, found, contents)
    if weights == "teacher":
        tensors = {name.removeprefix("objective.teacher."): tensor for name, tensor in teacher.items()}
    elif "objective.decoder.proj.weight" in tensors and teacher:
        tensors |= teacher  # everything that is needed to train on
    else:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("objective.")}
    finite(tensors, contents.file)
    return Checkpoint(
        file=contents.file,
        config=run_config(found, contents.stored, contents.beside),
        plugins={},
        step=contents.updates,
        data="",
        tensors=tensors,
        classifier=classifier_config(found, contents.stored, contents.labels),
        report=_report(contents, found, parts, weights),
    )


def _match(
    given: Mapping[str, Tensor],
    parts: Mapping[str, Mapping[str, tuple[str, Shape]]],
    found: Architecture,
    contents: Contents,
) -> dict[str, Tensor]:
    """The tensors as float32 under our names; every one of the file must have its place, and every place its tensor."""
    wanted = {released: shape for names in parts.values() for released, shape in names.values()}
    table = positions_name(found)
    wrong = [f"missing {name}" for name in wanted if name not in given]
    wrong += [f"unexpected {name}" for name in given if name not in wanted and name != table]
    wrong += [
        f"{name} has shape {tuple(given[name].shape)}, not {shape}"
        for name, shape in wanted.items()
        if name in given and tuple(given[name].shape) != shape
    ]
    if wrong:
        matched = sum(name in given for name in wanted)
        raise CheckpointError(f"{contents.file}: {matched} of {len(wanted)} tensors matched; {'; '.join(wrong)}.")
    if table in given:
        bins = contents.beside.get("mel_bins")
        check_positions(given[table], found, contents.file, bins if isinstance(bins, int) else NUM_BINS)
    return {
        f"{part}.{ours}": given[released].float().contiguous().clone()
        for part, names in parts.items()
        for ours, (released, _) in names.items()
    }


def _fairseq(file: Path) -> Contents:
    """What a file of `torch.save` holds: fairseq's dictionary, or a bare state."""
    whole = read_pickled(file)
    if not isinstance(whole, Mapping):
        raise CheckpointError(f"{file} holds no checkpoint, but {type(whole).__name__}.")
    state = whole.get("model", whole)
    state = state if isinstance(state, Mapping) else {}
    student = {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    teacher = {name: tensor for name, tensor in (told(state, TEACHER) or {}).items() if isinstance(tensor, Tensor)}
    labels = told(whole, "task_state", "labels")
    stored = whole.get("cfg") or {"model": whole.get("args") or {}}
    beside = file.with_name(HUGGING_FACE_CONFIG)
    config = _json(beside) if "model" not in whole and beside.is_file() else {}
    history = whole.get("optimizer_history") or [{}]
    updates = told(history[-1], "num_updates") if isinstance(history, list) else None
    return Contents(
        file=file,
        student=student,
        teacher=teacher,
        stored=stored,
        beside=config,
        labels=labels if isinstance(labels, Mapping) else {},
        updates=updates if isinstance(updates, int) else 0,
    )


def _json(file: Path) -> Mapping[str, Any]:
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {file}: {error}") from None
    if not isinstance(read, Mapping):
        raise CheckpointError(f"{file} holds no mapping of keys to values.")
    return read


def _report(contents: Contents, found: Architecture, parts: Mapping[str, Mapping[str, Any]], weights: Weights) -> str:
    """One line: what it is, and how many tensors were matched."""
    state = f"fine-tuned to {found.num_classes} classes" if found.num_classes else "pre-trained"
    counts = [f"{len(names)} of the {part.split('.')[-1]}" for part, names in parts.items() if names]
    if positions_name(found) in contents.student:
        counts.insert(1, "the table of positions")
    matched = len(contents.student)
    line = f"{contents.file}: {FAMILY[found.encoder.mixer.name]}, {state} ({found.layout}): "
    line += f"{matched} of {matched} tensors matched ({', '.join(counts)})"
    if contents.teacher:
        line += f", {len(contents.teacher)} of {len(contents.teacher)} of the teacher"
    other = not_reproduced(contents.stored)
    note = f" Training on from it would differ, since it was trained with {', '.join(other)}." if other else ""
    return f"{line}; using the {weights}'s weights.{note}"
