"""Record of the clips that a checkpoint was fine-tuned on, to warn if it is tested on them."""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from asda_core.audio_files.digests import ends_digest
from asda_core.checkpoint import Checkpoint
from asda_core.errors import CheckpointError, TaskError
from asda_core.labelled.examples import TEST, VALID, Example, LabelledData
from asda_core.labelled.splits import Round

MARK_DIGITS, MAX_MARKED = 8, 20_000
"""Digits of the mark of a training clip in a checkpoint, and the largest number of marks stored: 160 kB."""
MAX_CHANCE_MATCHES = 0.01
"""Expected number of clips that share a mark by chance, above which a single match is no evidence."""


class TrainingSet(NamedTuple):
    """A data set that a checkpoint was trained on: name, held-out fold, and whether its clips are marked."""

    name: str
    held_out: str
    marked: bool

    def __str__(self) -> str:
        return f"{self.name} with {self.held_out} held out" if self.held_out else self.name

    def has(self, data: str, part: str, fold: str) -> bool:
        """Whether a part of a data set was in the training, judged by names."""
        return self.name == data and not (part in (TEST, VALID) and self.held_out == fold)


def trained_on_record(data: str, split: Round, earlier: Mapping[str, str]) -> dict[str, str]:
    """Return `Checkpoint.trained_on` for a training on a split of a data set.

    Args:
        data: name of the data set.
        split: split that is trained on.
        earlier: the same for the initial weights of the training.
    """
    own_marks = _marks(split.train) if len(split.train) <= MAX_MARKED else []
    marks = dict.fromkeys(filter(None, [*own_marks, *_split_marks(earlier.get("clips", ""))]))
    fits = len(marks) <= MAX_MARKED
    before = [item._replace(marked=item.marked and fits) for item in _sets(earlier)]
    record = {"data": data, "tested": split.name, "clips": "".join(marks if fits else own_marks)}
    if not any(own_marks):
        record["marked"] = "no"
    return {**record, "before": json.dumps(before)} if before else record


def _sets(trained: Mapping[str, str]) -> list[TrainingSet]:
    """Return all data sets of a `trained_on`, the last one first.

    Raises:
        CheckpointError: it was not written by `trained_on_record`.
    """
    if not trained.get("data"):
        return []
    marked = bool(trained.get("clips")) and trained.get("marked") != "no"
    last = TrainingSet(trained["data"], trained.get("tested", ""), marked)
    try:
        return [last, *(TrainingSet(*item) for item in json.loads(trained.get("before", "[]")))]
    except (ValueError, TypeError):  # written by hand
        raise CheckpointError(
            f"cannot read the earlier training sets of a checkpoint: {trained['before']!r}."
        ) from None


def shared_clips_warning(split: Round) -> str:
    """Return a warning about clips that occur in two parts under different names; empty if none are known.

    Parts with more than `MAX_MARKED` clips are not compared.

    Raises:
        TaskError: a test clip is the same file as a training clip, for example by a link.
    """
    named = {"test": split.test, "validation": split.valid, "training": split.train}
    marked = {
        part: [(ends_digest(clip.file), clip) for clip in clips] if len(clips) <= MAX_MARKED else []
        for part, clips in named.items()
    }
    warnings = []
    for part, other in (("test", "training"), ("test", "validation"), ("validation", "training")):
        by_mark = dict(marked[other])
        shared = [(clip, by_mark[mark]) for mark, clip in marked[part] if mark and mark in by_mark]
        for ours, theirs in shared if (part, other) == ("test", "training") else ():
            if ours.file.resolve() == theirs.file.resolve():
                raise TaskError(
                    f"{ours.file} in the test split is the same file as {theirs.file} in the {other} split."
                )
        if shared:
            ours, theirs = shared[0]
            warnings.append(
                f"warning: {len(shared)} of {len(named[part])} {part} clips have the same first and last bytes as a "
                f"{other} clip, and may be the same recording: for example {ours.file} and {theirs.file}."
            )
    return "\n".join(warnings)


def _split_marks(marks: str) -> list[str]:
    return [marks[start : start + MARK_DIGITS] for start in range(0, len(marks), MARK_DIGITS)]


def _marks(clips: Sequence[Example]) -> list[str]:
    """Mark of each clip, by the first and last bytes of its file (names like 1.wav repeat); empty if unreadable."""
    return [ends_digest(clip.file)[:MARK_DIGITS] for clip in clips]


def leakage_warning(checkpoint: Checkpoint, data: LabelledData, part: str, fold: str) -> str:
    """Return a warning if tested clips were in the training of the checkpoint; empty if none are known to be.

    Args:
        checkpoint: fine-tuned by this package; others do not record their training clips.
        data: the clips that are tested.
        part: "test", "train", "valid" or "all".
        fold: fold that the part belongs to; empty if the data set has none.
    """
    sets = _sets(checkpoint.trained_on)
    start = f"warning: {checkpoint.file} was trained on {', and before on '.join(map(str, sets))}: "
    marks = set(_split_marks(checkpoint.trained_on.get("clips", "")))
    matches = sum(mark in marks for mark in _marks(data.examples)) if marks else 0
    if matches > 1 or (matches and len(marks) * len(data.examples) < MAX_CHANCE_MATCHES * 16**MARK_DIGITS):
        return (
            f"{start}{matches} of the {len(data.examples)} clips (by their first and last bytes) are in its training "
            "data."
        )
    if any(item.has(data.name, part, fold) for item in sets if not item.marked):
        tested_clips = "clips of this data set" if part == "all" else f"the {part} clips{f' of {fold}' if fold else ''}"
        return f"{start}{tested_clips} are in its training data."
    return ""
