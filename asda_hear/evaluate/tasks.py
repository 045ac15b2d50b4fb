"""HEAR-format task folders: writing, checking and resampling them.

    NAME-VERSION-MODE/
        task_metadata.json   labelvocabulary.csv ("idx,label")   SPLIT.json (one per split)
        RATE/SPLIT/*.wav     mono, 16 bit; the names are the keys of SPLIT.json

**Source**: what heareval 2021.1.3 reads, and hearpreprocess writes.
"""

import csv
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import soundfile
from tqdm import tqdm

from asda_core.audio import crop_or_pad, read_audio
from asda_core.errors import AudioError, TaskError, unknown

EmbeddingType = Literal["scene", "event"]
PredictionType = Literal["multiclass", "multilabel"]
TRAIN_VALID_TEST = ("train", "valid", "test")
MIN_FOLDS = 3
"""heareval trains on what is neither the test nor the validation fold."""
METRICS = {
    ("scene", "multiclass"): ("top1_acc",),
    ("scene", "multilabel"): ("mAP", "d_prime", "aucroc"),
    ("event", "multilabel"): ("event_onset_200ms_fms", "segment_1s_er"),
}
"""Metrics by kind of task, the primary one first, as HEAR's own tasks have them."""
KNOWN_METRICS = (
    "top1_acc", "pitch_acc", "chroma_acc", "mAP", "d_prime", "aucroc", "event_onset_200ms_fms",
    "event_onset_50ms_fms", "event_onset_offset_50ms_20perc_fms", "segment_1s_er",
)  # fmt: skip


@dataclass(frozen=True)
class Event:
    """A labelled stretch of a clip, in milliseconds from its beginning."""

    label: str
    start_ms: float
    end_ms: float


@dataclass(frozen=True)
class Clip:
    """One clip: its file, the split it belongs to, and either labels or events."""

    file: Path
    split: str
    labels: tuple[str, ...] = ()
    events: tuple[Event, ...] = ()


@dataclass(frozen=True)
class TaskConfig:
    """What a task is.

    Attributes:
        name, version, mode: make up the folder's name.
        embedding_type: "scene" (one answer per clip) or "event" (onsets and offsets).
        prediction_type: "multiclass" (exactly one label) or "multilabel" (any number).
        clip_seconds: all clips are cut or filled to this; None leaves them as they are (heareval then embeds one by
            one).
        sample_rates: in Hz, one folder each.
        evaluation: metrics, the primary one first; empty takes those of `METRICS`.
        evaluation_params: heareval's `evaluation_params`, as for a grid of the task's own.
    """

    name: str
    embedding_type: EmbeddingType = "scene"
    prediction_type: PredictionType = "multiclass"
    clip_seconds: float | None = None
    sample_rates: tuple[int, ...] = (16_000,)
    evaluation: tuple[str, ...] = ()
    evaluation_params: Mapping[str, Any] = field(default_factory=dict)
    version: str = "v1.0.0"
    mode: str = "full"

    @property
    def folder(self) -> str:
        """Name of the task's folder."""
        return f"{self.name}-{self.version}-{self.mode}"


def build_task(config: TaskConfig, clips: Sequence[Clip], out: Path, progress: bool = True) -> Path:
    """Write a task folder, whole or not at all.

    Returns:
        the folder; one that exists already is replaced.

    Raises:
        TaskError: no clip is readable, or labels and splits do not fit the kind of task.
    """
    metrics = config.evaluation or METRICS.get((config.embedding_type, config.prediction_type), ())
    for metric in metrics or ("",):
        if metric not in KNOWN_METRICS:
            raise TaskError(unknown("metric", metric, KNOWN_METRICS))
    final = out / config.folder
    part = out / f".{config.folder}.part"
    shutil.rmtree(part, ignore_errors=True)
    try:
        skipped = _write_task(config, metrics, clips, part, progress)
        check_task(part)
    except TaskError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise TaskError(str(error).replace(str(part), str(final)).replace(part.name, final.name)) from None
    if final.exists():
        print(f"{final} was there and is replaced.", file=sys.stderr)
        shutil.rmtree(final)
    part.rename(final)
    for reason in skipped:
        print(f"skipped: {reason}", file=sys.stderr)
    return final


def _write_task(
    config: TaskConfig, metrics: Sequence[str], clips: Sequence[Clip], part: Path, progress: bool
) -> list[str]:
    """Write everything below `part`; returns what was wrong with clips that were left out."""
    written, skipped = _write_audio(config, clips, part, progress)
    splits = sorted({clip.split for clip in written.values()})
    mode = "presplit_kfold"
    if set(splits) == set(TRAIN_VALID_TEST):
        splits, mode = list(TRAIN_VALID_TEST), "trainvaltest"
    events = config.embedding_type == "event"
    for split in splits:
        chosen = {name: _answer(clip, events) for name, clip in written.items() if clip.split == split}
        (part / f"{split}.json").write_text(json.dumps(chosen, indent=1))
    labels = sorted({label for clip in written.values() for label in (*clip.labels, *(e.label for e in clip.events))})
    with (part / "labelvocabulary.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("idx", "label"), *enumerate(labels)])
    metadata: dict[str, Any] = {
        "task_name": config.name,
        "version": config.version,
        "mode": config.mode,
        "embedding_type": config.embedding_type,
        "prediction_type": config.prediction_type,
        "split_mode": mode,
        "sample_duration": config.clip_seconds,
        "evaluation": list(metrics),
        "splits": splits,
    }
    if config.evaluation_params:
        metadata["evaluation_params"] = dict(config.evaluation_params)
    (part / "task_metadata.json").write_text(json.dumps(metadata, indent=4))
    return skipped


def _write_audio(
    config: TaskConfig, clips: Sequence[Clip], folder: Path, progress: bool
) -> tuple[dict[str, Clip], list[str]]:
    """Write every readable clip at every rate; returns name -> clip, and what was wrong with the others."""
    stems = Counter(clip.file.stem for clip in clips)
    written: dict[str, Clip] = {}
    skipped = []
    for clip in tqdm(clips, desc=config.name, unit="clip", disable=not progress):
        stem = clip.file.stem if stems[clip.file.stem] == 1 else f"{clip.file.parent.name}-{clip.file.stem}"
        name = f"{stem}.wav"
        if name in written:
            raise TaskError(f"two clips would be called {name}: {written[name].file} and {clip.file}.")
        try:
            for rate in config.sample_rates:
                audio = read_audio(clip.file, rate)
                if config.clip_seconds is not None:
                    audio = crop_or_pad(audio, round(config.clip_seconds * rate))
                target = folder / str(rate) / clip.split / name
                target.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(target, audio.clamp(-1, 1).numpy(), rate, subtype="PCM_16")
            written[name] = clip
        except AudioError as error:
            skipped.append(str(error))
    if not written:
        raise TaskError(f"none of the {len(clips)} clips is readable. The first reasons: {'; '.join(skipped[:3])}")
    return written, skipped


def _answer(clip: Clip, events: bool) -> list[Any]:
    if events:
        return [{"label": event.label, "start": event.start_ms, "end": event.end_ms} for event in clip.events]
    return list(clip.labels)


def check_task(folder: Path) -> None:
    """Check all that heareval will read, so that a mistake shows before the long run.

    Raises:
        TaskError: naming what is wrong and where.
    """
    try:
        metadata = json.loads((folder / "task_metadata.json").read_text())
        with (folder / "labelvocabulary.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        answers = {split: json.loads((folder / f"{split}.json").read_text()) for split in metadata["splits"]}
    except (OSError, ValueError, KeyError) as error:
        raise TaskError(f"{folder} is no HEAR task: {type(error).__name__}: {error}") from None
    labels = {row["label"] for row in rows}
    if [row["idx"] for row in rows] != [str(number) for number in range(len(rows))]:
        raise TaskError(f"{folder}/labelvocabulary.csv: idx must run from 0 to {len(rows) - 1}.")
    if metadata["split_mode"] == "trainvaltest":
        if set(answers) != set(TRAIN_VALID_TEST):
            raise TaskError(f"{folder}: splits are {sorted(answers)}; expected train, valid and test, or folds.")
    elif len(answers) < MIN_FOLDS:
        raise TaskError(f"{folder}: {len(answers)} folds ({', '.join(answers)}); heareval needs at least {MIN_FOLDS}.")
    rates = [path for path in folder.iterdir() if path.name.isdigit()]
    if not rates:
        raise TaskError(f"{folder} has no audio: expected a folder named by its rate, such as 16000.")
    for split, clips in answers.items():
        for name, answer in clips.items():
            _check_answer(f"{folder.name} {split} {name}", answer, metadata, labels)
            for rate in rates:
                if not (rate / split / name).is_file():
                    raise TaskError(f"{rate / split / name} is missing.")


def _check_answer(where: str, answer: Any, metadata: Mapping[str, Any], labels: set[str]) -> None:
    events = metadata["embedding_type"] == "event"
    names = [item["label"] for item in answer] if events else list(answer)
    if strange := [name for name in names if name not in labels]:
        raise TaskError(f"{where}: {unknown('label', strange[0], labels)}")
    if not events and metadata["prediction_type"] == "multiclass" and len(names) != 1:
        raise TaskError(f"{where}: a multiclass task needs exactly one label, given {names}.")
    if events and any(item["end"] < item["start"] for item in answer):
        raise TaskError(f"{where}: an event ends before it starts.")


def resample_task(folder: Path, rate: int, out: Path | None = None, progress: bool = True) -> Path:
    """Make audio at another rate, from the highest rate that is there; files that are there are not made again.

    Args:
        folder: the task.
        rate: in Hz.
        out: another task folder to write to, with everything but the audio copied; None adds to `folder` itself.
        progress: whether to show a bar.

    Returns:
        the task folder that has the rate.

    Raises:
        TaskError: the task has no audio.
    """
    if not folder.is_dir():
        raise TaskError(f"no task at {folder}.")
    rates = sorted((int(path.name) for path in folder.iterdir() if path.name.isdigit()), reverse=True)
    if not rates:
        raise TaskError(f"{folder} has no audio to resample.")
    files = sorted((folder / str(rates[0])).rglob("*.wav"))
    final = out or folder
    if final != folder:
        final.mkdir(parents=True, exist_ok=True)
        for file in folder.iterdir():
            if file.is_file():
                shutil.copy(file, final)
    for file in tqdm(files, desc=f"{folder.name} {rate} Hz", unit="clip", disable=not progress):
        target = final / str(rate) / file.relative_to(folder / str(rates[0]))
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_suffix(".part")
            soundfile.write(part, read_audio(file, rate).clamp(-1, 1).numpy(), rate, subtype="PCM_16", format="WAV")
            part.replace(target)
    return final


def fold_names(values: Iterable[str]) -> dict[str, str]:
    """Any names of folds -> fold00, fold01, ... in sorted order (numbers by their value)."""
    ordered = sorted(set(values), key=lambda value: (not value.isdigit(), int(value) if value.isdigit() else 0, value))
    return {value: f"fold{number:02d}" for number, value in enumerate(ordered)}
