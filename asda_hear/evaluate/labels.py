"""Labels and splits of clips, from a folder per class or a CSV."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from asda_core.errors import TaskError, unknown_message
from asda_core.labelled.examples import NO_SPLIT, TRAIN_VALID_TEST
from asda_core.labelled.folders import folder_rows
from asda_core.labelled.random_splits import SPLIT_CYCLE, assign_stratified
from asda_core.labelled.splits import fold_sort_key, usual_split
from asda_core.labelled.tables import read_table, usual_separator
from asda_core.system.markdown import escape_surrogates
from asda_hear.evaluate.task_checks import MIN_FOLDS
from asda_hear.evaluate.tasks import MILLISECONDS, Clip, EmbeddingType, Event


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a CSV; `start` and `end` are in seconds and used only for events.

    `separator` stands between several labels; empty selects the usual one.
    """

    file: str = "filename"
    label: str = "label"
    split: str = ""
    start: str = "start"
    end: str = "end"
    separator: str = ""


def split_names(names: set[str], where: str) -> dict[str, str]:
    """Name -> train, valid or test, by `asda_core.labelled.splits.usual_split`; empty if no name is that of a split.

    Raises:
        TaskError: some names are those of splits and others are not, or one of the three splits is missing.
    """
    standard = {name: split for name in names if (split := usual_split(name))}
    if standard and (len(standard) < len(names) or {*standard.values()} != {*TRAIN_VALID_TEST}):
        raise TaskError(
            f"{where} has {', '.join(sorted(names))}: {min(standard)!r} is a split, but HEAR needs exactly train, "
            "valid and test (rename them, or with --csv give --train A --valid B --test C)."
        )
    return standard


def clips_from_folders(root: Path) -> list[Clip]:
    """Read clips from a folder per class, optionally within folders for train, valid and test; see `folder_rows`.

    Raises:
        TaskError: audio lies outside a class folder, or some but not all of the folders are splits.
    """
    rows = folder_rows(root)
    return [Clip(row.file, row.split, labels=tuple(map(escape_surrogates, row.labels))) for row in rows]


def clips_from_csv(
    table: Path, audio: Path, columns: Columns, kind: EmbeddingType, multilabel: bool = True
) -> list[Clip]:
    """Read the clips of a CSV with a header; a clip of an event task may have several rows, or one without a label.

    Raises:
        TaskError: a column is missing, a row has more values than columns or no file name, a time is not a number, an
            event begins before its clip or ends before it begins, or a clip has two splits or none.
    """
    names, rows = read_table(table)
    needed = [columns.file, columns.label, *([columns.split] if columns.split else [])]
    needed += [columns.start, columns.end] if kind == "event" else []
    for name in needed:
        if name not in names:
            raise TaskError(f"{table}: {unknown_message('column', name, names)}")
    default_separator = (
        usual_separator(columns.label, [row.values[columns.label] for row in rows]) if multilabel else ";"
    )
    separator = columns.separator or default_separator
    clips: dict[str, Clip] = {}
    for number, row, surplus in rows:
        if any(surplus):
            more = f"more values than columns ({surplus[0]!r})"
            raise TaskError(f"{table} line {number} has {more}: quote labels that contain commas.")
        name, split = row[columns.file].strip(), row[columns.split].strip() if columns.split else NO_SPLIT
        if not name:
            raise TaskError(f"{table} line {number}: the column {columns.file} is empty.")
        if columns.split and not split:
            raise TaskError(f"{table} line {number}: {name} has no value in the column {columns.split!r}.")
        key = os.path.abspath(audio / name)  # a/../b.wav is b.wav
        clip = clips.get(key, Clip(audio / name, split))
        if clip.split != split:
            raise TaskError(f"{table} line {number}: {name} is in two splits, {clip.split!r} and {split!r}.")
        label = row[columns.label].strip()
        if kind == "event" and label:
            clip = replace(clip, events=(*clip.events, _event(row, columns, label, f"{table} line {number}")))
        elif label:
            added = tuple(part.strip() for part in label.split(separator) if part.strip())
            clip = replace(clip, labels=tuple(dict.fromkeys((*clip.labels, *added))))
        clips[key] = clip
    return list(clips.values())


def _event(row: Mapping[str, str], columns: Columns, label: str, where: str) -> Event:
    try:
        start, end = float(row[columns.start]), float(row[columns.end])
    except ValueError:
        start = end = math.nan
    if not (math.isfinite(start) and math.isfinite(end)):
        raise TaskError(f"{where}: {columns.start} and {columns.end} must be seconds.")
    if start < 0:
        raise TaskError(f"{where}: {columns.start} is {start:g} s, before the clip begins.")
    if end < start:
        raise TaskError(f"{where}: {columns.end} is {end:g} s, before {columns.start}, {start:g} s.")
    return Event(label, start * MILLISECONDS, end * MILLISECONDS)


def assign_splits(
    clips: Sequence[Clip],
    parts: Mapping[str, Sequence[str]],
    folds: int,
    seed: int = 0,
    where: str = "the split column",
) -> list[Clip]:
    """Assign a split to every clip.

    Args:
        clips: clips with the split that the CSV or the folders give.
        parts: train, valid and test -> values of the split column; empty if the column names splits or folds itself.
        folds: number of folds to draw if no split is given, at least 3; 0 draws train, valid and test.
        seed: seed of that draw, which is stratified by label, or by the set of a clip's event labels.
        where: what gives the splits, for error messages.

    Raises:
        TaskError: a value belongs to no part or to two, a part has no clip, there is no split column, `folds` is too
            small, exceeds the number of clips or is given for clips that have splits, or there are too few clips for
            three parts.
    """
    if folds and folds < MIN_FOLDS:
        raise TaskError(f"--folds must be at least {MIN_FOLDS} for heareval, not {folds}.")
    split_values = {clip.split for clip in clips}
    if folds and (parts or split_values != {NO_SPLIT}):
        raise TaskError(
            "--folds draws random folds; it cannot be combined with splits (--split-column, split folders, --train, "
            "--valid, --test)."
        )
    if folds > len(clips):
        raise TaskError(f"--folds {folds} exceeds the number of clips, {len(clips)}.")
    if parts:
        part_of = _part_by_value(parts, split_values)
        return [replace(clip, split=part_of[clip.split]) for clip in clips]
    if split_values == {NO_SPLIT}:
        cycle = [f"fold{number:02d}" for number in range(folds)] or SPLIT_CYCLE
        assigned = assign_stratified([clip.labels or clip.event_labels for clip in clips], cycle, seed)
        if not folds and set(assigned) != set(TRAIN_VALID_TEST):
            raise TaskError(f"{len(clips)} clips are too few for a random split into train, valid and test.")
        return [replace(clip, split=split) for clip, split in zip(clips, assigned, strict=True)]
    if standard := split_names(split_values, where):
        return [replace(clip, split=standard[clip.split]) for clip in clips]
    names = fold_names(split_values)
    return [replace(clip, split=names[clip.split]) for clip in clips]


def _part_by_value(parts: Mapping[str, Sequence[str]], split_values: set[str]) -> dict[str, str]:
    """Value of the split column -> its part."""
    if split_values == {NO_SPLIT}:
        raise TaskError("--train, --valid and --test name values of a split column: give --split-column too.")
    part_of: dict[str, str] = {}
    for part, values in parts.items():
        for value in values:
            if part_of.setdefault(value, part) != part:
                raise TaskError(f"the split value {value!r} is in both {part_of[value]} and {part}.")
    if unassigned := sorted(split_values - part_of.keys()):
        raise TaskError(f"the split value {unassigned[0]!r} is in none of train, valid and test.")
    used_parts = {part_of[value] for value in split_values}
    if empty_parts := [part for part in TRAIN_VALID_TEST if part not in used_parts]:
        raise TaskError(
            f"no clip is in {empty_parts[0]}: give --{empty_parts[0]} one or more of {', '.join(sorted(split_values))}."
        )
    return part_of


def fold_names(values: Iterable[str]) -> dict[str, str]:
    """Any names of folds -> fold00, fold01, ... in natural order: 2 before 10, and fold2 before fold10."""
    return {value: f"fold{number:02d}" for number, value in enumerate(sorted(set(values), key=fold_sort_key))}
