"""`asda-hear tasks`: build, check, resample tasks in HEAR's format."""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence

from asda_core.errors import TaskError, counted
from asda_core.labelled.examples import TRAIN_VALID_TEST
from asda_core.system.workers import signals_as_interrupt
from asda_hear.evaluate.labels import Columns, assign_splits, clips_from_csv, clips_from_folders
from asda_hear.evaluate.scores import METADATA_FILE
from asda_hear.evaluate.task_audio import resample_task
from asda_hear.evaluate.task_checks import check_task, find_tasks
from asda_hear.evaluate.tasks import Clip, TaskConfig, build_task


def run_build(parsed: argparse.Namespace) -> None:
    """`asda-hear tasks build`."""
    columns = Columns(
        parsed.file_column,
        parsed.label_column,
        parsed.split_column,
        parsed.start_column,
        parsed.end_column,
        parsed.label_separator,
    )
    multilabel = parsed.multilabel or parsed.kind == "event"
    if parsed.csv:
        clips = clips_from_csv(parsed.csv, parsed.audio, columns, parsed.kind, multilabel)
    elif parsed.kind == "event":
        raise TaskError("an event task needs a --csv with the start and end of every event.")
    else:
        clips = clips_from_folders(parsed.audio)
    parts = {part: getattr(parsed, part).split(",") for part in TRAIN_VALID_TEST if getattr(parsed, part)}
    where = "the split column" if parsed.csv else str(parsed.audio)
    clips = assign_splits(clips, parts, parsed.folds, where=where)
    config = TaskConfig(
        name=parsed.name,
        embedding_type=parsed.kind,
        prediction_type="multilabel" if multilabel else "multiclass",
        clip_seconds=parsed.seconds,
        sample_rates=tuple(parsed.rate),
        evaluation=tuple(parsed.metric),
    )
    print(f"{parsed.name}: {clips_summary(clips)}", file=sys.stderr)
    with signals_as_interrupt():
        print(build_task(config, clips, parsed.out))


def _split_order(split: str) -> tuple[int, str]:
    """Sort key: train, valid and test in this order; folds by name."""
    return (TRAIN_VALID_TEST.index(split) if split in TRAIN_VALID_TEST else 0, split)


def clips_summary(clips: Sequence[Clip]) -> str:
    """Return the counts of clips, classes and clips per split, with a warning if a class has fewer clips than folds."""
    labels = Counter(label for clip in clips for label in {*clip.labels, *clip.event_labels})
    splits = Counter(clip.split for clip in clips)
    text = f"{counted(len(clips), 'clip')} of {len(labels)} classes, " + ", ".join(
        f"{split} {splits[split]}" for split in sorted(splits, key=_split_order)
    )
    fewest, count = min(labels.items(), key=lambda item: item[1], default=("", 0))
    if labels and not splits.keys() <= set(TRAIN_VALID_TEST) and len(splits) > count:
        too_few = f"the class {fewest!r} has {counted(count, 'clip')}"
        text += f"\nwarning: {len(splits)} folds, and {too_few}: some folds lack it."
    return text


def run_check(parsed: argparse.Namespace) -> None:
    """`asda-hear tasks check`."""
    for root in parsed.folders:
        for folder in [root] if (root / METADATA_FILE).exists() else find_tasks(root):
            check_task(folder)
            print(f"{folder}: good")


def run_resample(parsed: argparse.Namespace) -> None:
    """`asda-hear tasks resample`."""
    print(resample_task(parsed.folder, parsed.rate))
