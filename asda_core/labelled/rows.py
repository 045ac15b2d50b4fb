"""Merge the rows of any source, one for each mention of a file, into a `LabelledData`."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from asda_core.errors import ConfigError, TaskError, unknown_message
from asda_core.labelled.examples import Example, LabelledData
from asda_core.labelled.label_files import Label, read_labels

NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?")
"""Pattern of the class and fold names that are sorted by value; "nan" and "inf" count as words."""


class Row(NamedTuple):
    """Labels and split of a file from one line of a list; without a list, `origin` is the folder and `line` is 0."""

    file: Path
    labels: tuple[str, ...]
    split: str
    origin: Path
    line: int

    @property
    def location(self) -> str:
        """Location of the row, for messages."""
        return f"{self.origin} line {self.line}" if self.line else str(self.file)


def by_number(value: str) -> tuple[bool, float, str]:
    """Sort key that puts numbers first, by value: 2 before 10."""
    number = NUMBER.fullmatch(value) is not None
    return (not number, float(value) if number else 0.0, value)


def read_vocabulary(file: Path) -> list[Label]:
    """Read the classes of a vocabulary.

    Raises:
        TaskError: the file cannot be read, or names a class twice.
    """
    try:
        vocabulary = read_labels(file)
    except ConfigError as error:
        raise TaskError(str(error)) from None
    keys: set[str] = set()
    for label in vocabulary:
        if _key(label) in keys:
            raise TaskError(f"{file} lists the class {_key(label)!r} twice.")
        keys.add(_key(label))
    return vocabulary


def merge_rows(name: str, rows: Iterable[Row], vocabulary: Sequence[Label] = ()) -> LabelledData:
    """Merge rows into one example per file, and determine the classes.

    Args:
        name: of the data set.
        rows: in order; a file in several rows gets the labels of all of them.
        vocabulary: all classes in order; labels are matched by identifier or by name. Empty: the labels that occur,
            sorted, numbers by value.

    Raises:
        TaskError: there are no rows, a file is in two splits, a label is not in the vocabulary, or a clip has no label
            although no clip has several.
    """
    merged = _one_per_file(rows)
    if not merged:
        raise TaskError(f"{name} has no clips: its list is empty.")
    if not vocabulary:
        labels = {label for row in merged for label in row.labels}
        vocabulary = [Label("", label) for label in sorted(labels, key=by_number)]
    examples = _examples(merged, vocabulary)
    single = all(len(example.labels) == 1 for example in examples)
    if not single and not any(len(example.labels) > 1 for example in examples):
        unlabelled = next(row for row in merged if not row.labels)
        raise TaskError(
            f"{unlabelled.location}: {unlabelled.file.name} has no label, but {name} is not multi-label (no clip has "
            "several)."
        )
    return LabelledData(
        name=name,
        examples=examples,
        classes=tuple(_key(label) for label in vocabulary),
        class_names=tuple(label.name for label in vocabulary),
        single=single,
    )


def _key(label: Label) -> str:
    return label.identifier or label.name


def _one_per_file(rows: Iterable[Row]) -> list[Row]:
    merged: list[Row] = []
    indices: dict[str, int] = {}
    for row in rows:
        index = indices.setdefault(os.path.normpath(row.file), len(merged))  # a/../b.wav is b.wav
        if index == len(merged):
            merged.append(row)
            continue
        first = merged[index]
        if first.split != row.split:
            raise TaskError(
                f"{row.location}: {row.file.name} is in the split {row.split!r}, but in {first.split!r} at "
                f"{first.location}."
            )
        merged[index] = first._replace(labels=(*first.labels, *row.labels))
    return merged


def _examples(rows: Iterable[Row], vocabulary: Sequence[Label]) -> tuple[Example, ...]:
    """Examples of the rows, with their labels (names or identifiers) mapped to classes, without duplicates."""
    classes = {label.name: _key(label) for label in vocabulary} | {_key(label): _key(label) for label in vocabulary}
    cache: dict[tuple[str, ...], tuple[str, ...]] = {}
    examples = []
    for row in rows:
        if row.labels not in cache:
            if undefined := [label for label in row.labels if label not in classes]:
                raise TaskError(f"{row.location}: {unknown_message('label', undefined[0], classes)}")
            cache[row.labels] = tuple(dict.fromkeys(classes[label] for label in row.labels))
        examples.append(Example(row.file, cache[row.labels], row.split))
    return tuple(examples)
