"""Writes task folders in HEAR's format; `task_checks` checks them.

    NAME-VERSION-MODE/
        task_metadata.json   labelvocabulary.csv ("idx,label")   SPLIT.json (one per split)
        RATE/SPLIT/*.wav     mono, 16 bit; the names are the keys of SPLIT.json

**Source**: what heareval 2021.1.3 reads, and hearpreprocess writes.
"""

import json
import math
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from asda_core.audio.reading import crop_or_pad, read_audio
from asda_core.audio.writing import write_wav
from asda_core.errors import AudioError, TaskError, first_reasons, unknown_message
from asda_core.labelled.examples import TRAIN_VALID_TEST
from asda_core.system.files import write_csv, write_text
from asda_core.system.locks import hold_folder_lock
from asda_core.system.markdown import escape_surrogates
from asda_hear.evaluate.scores import FIXED_SPLITS, METADATA_FILE
from asda_hear.evaluate.task_checks import KNOWN_METRICS, VOCABULARY_FILE, answer_name, check_splits, check_task

EmbeddingType = Literal["scene", "event"]
PredictionType = Literal["multiclass", "multilabel"]
MILLISECONDS = 1000.0
MIN_RATE = 1000
"""Lowest sample rate in Hz: anything below is taken for a mistake, such as kHz for Hz."""
DEFAULT_METRICS = {
    ("scene", "multiclass"): ("top1_acc",),
    ("scene", "multilabel"): ("mAP", "d_prime", "aucroc"),
    ("event", "multilabel"): ("event_onset_200ms_fms", "segment_1s_er"),
}
"""Metrics by kind of task, the primary one first, as HEAR's own tasks have them."""


@dataclass(frozen=True)
class Event:
    """A labelled segment of a clip, in milliseconds from its beginning."""

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

    @property
    def event_labels(self) -> tuple[str, ...]:
        """Labels of the events, sorted, each once."""
        return tuple(sorted({event.label for event in self.events}))


@dataclass(frozen=True)
class TaskConfig:
    """Definition of a task.

    Attributes:
        name, version, mode: parts of the folder's name.
        embedding_type: "scene" (one answer per clip) or "event" (onsets and offsets).
        prediction_type: "multiclass" (exactly one label) or "multilabel" (any number).
        clip_seconds: length to which all clips are cropped or padded; None leaves them as they are (heareval then
            embeds one by one).
        sample_rates: sample rates in Hz, one folder each.
        evaluation: metrics, the primary one first; empty takes those of `DEFAULT_METRICS`.
        evaluation_params: heareval's `evaluation_params`, for example a search grid for this task.
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

    def __post_init__(self) -> None:
        for part in (self.name, self.version, self.mode):
            if not part or part.startswith(".") or set(part) & set("/\\\0"):
                raise TaskError(
                    f"{part!r} is not a valid name, version or mode of a task: each is part of its folder name."
                )
        if not self.sample_rates or min(self.sample_rates) < MIN_RATE:
            raise TaskError(f"sample rates must be at least {MIN_RATE} Hz, got {list(self.sample_rates)}.")
        seconds = self.clip_seconds
        if seconds is not None and not (math.isfinite(seconds) and round(seconds * min(self.sample_rates)) > 0):
            raise TaskError(f"the clip length must be finite and at least one sample, got {seconds} s.")
        kind = (self.embedding_type, self.prediction_type)
        if kind not in DEFAULT_METRICS:
            raise TaskError(
                f"a task cannot be {' and '.join(kind)}; expected {', or '.join(map(' and '.join, DEFAULT_METRICS))}."
            )
        for metric in self.evaluation:
            if metric not in KNOWN_METRICS[self.embedding_type]:
                raise TaskError(
                    unknown_message(f"metric of {self.embedding_type} tasks", metric, KNOWN_METRICS[kind[0]])
                )

    @property
    def metrics(self) -> tuple[str, ...]:
        """The given metrics, or the defaults."""
        return self.evaluation or DEFAULT_METRICS[self.embedding_type, self.prediction_type]

    @property
    def folder(self) -> str:
        """Name of the task folder."""
        return f"{self.name}-{self.version}-{self.mode}"


def build_task(config: TaskConfig, clips: Sequence[Clip], out: Path, progress: bool = True) -> Path:
    """Write a task folder, completely or not at all.

    Returns:
        the folder; one that exists already is replaced.

    Raises:
        TaskError: no clip is readable, two have the same name, or labels and splits do not fit the kind of task.
        ConfigError: another process builds the same task.
        OSError: for example, the disk is full.
    """
    splits = sorted({clip.split for clip in clips})
    check_splits(config.folder, splits, set(splits) == set(TRAIN_VALID_TEST))
    names = clip_names(clips)
    _check_labels(config, clips)
    if config.embedding_type == "event" and config.clip_seconds is not None:
        clips = cut_events(clips, config.clip_seconds)
    final = out / config.folder
    part, lock = (out / f".{config.folder}.{suffix}" for suffix in ("part", "lock"))
    with hold_folder_lock(out, lock.name, f"builds {config.folder} in"):
        shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
        try:
            skipped = _write_task(config, dict(zip(names, clips, strict=True)), part, progress)
            check_task(part, final)
            if final.exists():
                print(f"{final} exists and is replaced.", file=sys.stderr)
                shutil.rmtree(final)
            part.rename(final)
        except TaskError as error:
            raise TaskError(str(error).replace(str(part), str(final)).replace(part.name, final.name)) from None
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped; {final} was not written.") from None
        finally:
            shutil.rmtree(part, ignore_errors=True)
            lock.unlink(missing_ok=True)
    for reason in skipped:
        print(f"skipped: {reason}", file=sys.stderr)
    return final


def _check_labels(config: TaskConfig, clips: Sequence[Clip]) -> None:
    """Check, before any audio is written, that there are labels, and exactly one for each clip if multiclass."""
    if not any(clip.labels or clip.events for clip in clips):
        raise TaskError(f"{config.folder}: no clip has {answer_name(config.embedding_type)}.")
    invalid = [clip for clip in clips if config.prediction_type == "multiclass" and len(clip.labels) != 1]
    if invalid:
        first = f"got {list(invalid[0].labels)} for {invalid[0].file.name} ({len(invalid)} of {len(clips)} clips)"
        raise TaskError(
            f"{config.folder}: a multiclass task needs exactly one label, {first}; --multilabel allows any number."
        )


def clip_names(clips: Sequence[Clip]) -> list[tuple[str, str]]:
    """Return split and file name of each clip: its file name, prefixed with as many folders as make it unique.

    Names are unique within a split, as HEAR stores them; a name that any other clip has is prefixed with its folder.

    Raises:
        TaskError: two clips of a split cannot be distinguished.
    """
    stems = Counter(clip.file.stem for clip in clips)
    folders = [[part for part in clip.file.parent.parts if part not in (clip.file.anchor, "..")] for clip in clips]
    depths = [min(len(above), int(stems[clip.file.stem] > 1)) for clip, above in zip(clips, folders, strict=True)]
    while True:
        names = [
            (clip.split, escape_surrogates("-".join([*above[len(above) - depth :], f"{clip.file.stem}.wav"])))
            for clip, above, depth in zip(clips, folders, depths, strict=True)
        ]
        counts = Counter(names)
        duplicates = [number for number, name in enumerate(names) if counts[name] > 1]
        if not duplicates:
            return names
        extendable = [number for number in duplicates if depths[number] < len(folders[number])]
        if not extendable:
            first, second, *_ = (clips[number].file for number in duplicates if names[number] == names[duplicates[0]])
            raise TaskError(f"two clips would be named {names[duplicates[0]][1]}: {first} and {second}.")
        for number in extendable:
            depths[number] += 1


def cut_events(clips: Sequence[Clip], seconds: float) -> list[Clip]:
    """Return the clips with events cut at `seconds`; events that begin there or later are dropped, with a message.

    Raises:
        TaskError: no event is left.
    """
    end_ms = seconds * MILLISECONDS
    cut_clips = []
    for clip in clips:
        events = [replace(event, end_ms=min(event.end_ms, end_ms)) for event in clip.events if event.start_ms < end_ms]
        cut_clips.append(replace(clip, events=tuple(events)))
    before, after = (sum(len(clip.events) for clip in members) for members in (clips, cut_clips))
    if before and not after:
        raise TaskError(f"all {before} events begin at or after {seconds:g} s, where clips are cropped.")
    if dropped := before - after:
        print(
            f"dropped {dropped} of {before} events, which begin at or after {seconds:g} s, where clips are cropped.",
            file=sys.stderr,
        )
    return cut_clips


def _write_task(config: TaskConfig, clips: Mapping[tuple[str, str], Clip], part: Path, progress: bool) -> list[str]:
    """Write everything below `part`; return what was wrong with excluded clips."""
    written, skipped = _write_audio(config, clips, part, progress)
    splits = sorted({split for split, _ in written})
    if empty := sorted({split for split, _ in clips} - set(splits)):
        raise TaskError(f"no clip of {', '.join(empty)} is readable. First reasons: {first_reasons(skipped)}")
    mode = "presplit_kfold"
    if set(splits) == set(TRAIN_VALID_TEST):
        splits, mode = list(TRAIN_VALID_TEST), FIXED_SPLITS
    events = config.embedding_type == "event"
    for split in splits:
        targets = {name: _target_of(clip, events) for (own, name), clip in written.items() if own == split}
        write_text(part / f"{split}.json", json.dumps(targets, indent=1))
    labels = sorted({label for clip in written.values() for label in (*clip.labels, *clip.event_labels)})
    write_csv(part / VOCABULARY_FILE, [{"idx": number, "label": label} for number, label in enumerate(labels)])
    metadata: dict[str, Any] = {
        "task_name": config.name,
        "version": config.version,
        "mode": config.mode,
        "embedding_type": config.embedding_type,
        "prediction_type": config.prediction_type,
        "split_mode": mode,
        "sample_duration": config.clip_seconds,
        "evaluation": list(config.metrics),
        "splits": splits,
    }
    if config.evaluation_params:
        metadata["evaluation_params"] = dict(config.evaluation_params)
    write_text(part / METADATA_FILE, json.dumps(metadata, indent=4))
    return skipped


def _write_audio(
    config: TaskConfig, clips: Mapping[tuple[str, str], Clip], folder: Path, progress: bool
) -> tuple[dict[tuple[str, str], Clip], list[str]]:
    """Write every readable clip at every rate; return these, and what was wrong with the others."""
    written, skipped = {}, []
    for (split, name), clip in tqdm(clips.items(), desc=config.name, unit="clip", disable=not progress):
        try:
            for rate in config.sample_rates:
                audio = read_audio(clip.file, rate)
                end_ms = len(audio) / rate * MILLISECONDS
                if config.clip_seconds is not None:
                    audio = crop_or_pad(audio, round(config.clip_seconds * rate))
                write_wav(folder / str(rate) / split / name, audio.clamp(-1, 1).numpy(), rate)
        except AudioError as error:
            skipped.append(str(error))
            continue
        events = tuple(event for event in clip.events if event.start_ms < end_ms)
        written[split, name] = replace(clip, events=events)
    if not written:
        raise TaskError(f"none of the {len(clips)} clips is readable. First reasons: {first_reasons(skipped)}")
    before, after = (sum(len(by_name[key].events) for key in written) for by_name in (clips, written))
    if before > after:
        message = (
            f"{before - after} of {before} events begin at or after the end of their clips; times must be in seconds"
        )
        if not after:
            raise TaskError(f"{message}.")
        skipped.append(message)
    return written, skipped


def _target_of(clip: Clip, events: bool) -> list[Any]:
    if events:
        return [{"label": event.label, "start": event.start_ms, "end": event.end_ms} for event in clip.events]
    return list(clip.labels)
