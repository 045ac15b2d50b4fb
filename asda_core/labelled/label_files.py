"""Label files: the classes of a data set or a classifier, in order."""

import csv
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from asda_core.errors import ConfigError
from asda_core.finetune_config import ClassifierConfig

INDEX = re.compile("[0-9]{1,6}")
"""Index in the first column of a row of a label file."""


@dataclass(frozen=True)
class Label:
    """Row of a label file: the identifier of a class (AudioSet's mid; empty if there is none) and its name."""

    identifier: str
    name: str


def read_labels(file: Path) -> list[Label]:
    """Read the classes of a label file, in order.

    Args:
        file: AudioSet's `class_labels_indices.csv` (index, mid, display_name), with or without its header; a table of
            index and name; or a text file with a name per line.

    Raises:
        ConfigError: the file is missing or empty, or its indices are not 0, 1, 2, ...
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
        tab = any("\t" in line for line in lines)
        rows = [row for row in csv.reader(lines, delimiter="\t" if tab else ",") if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"cannot read the label file {file}: {error}") from None
    indexed = [len(row) > 1 and INDEX.fullmatch(row[0].strip()) is not None for row in rows]
    if len(rows) > 1 and len(rows[0]) > 1 and not indexed[0] and indexed[1]:  # a header
        rows, indexed = rows[1:], indexed[1:]
    if not rows:
        raise ConfigError(f"{file} holds no labels.")
    if not all(indexed):
        if any(indexed):
            raise ConfigError(f"{file}: some rows begin with an index and some do not.")
        return [Label("", ",".join(row).strip()) for row in rows]
    by_index = {int(row[0]): Label(row[1].strip() if len(row) > 2 else "", row[-1].strip()) for row in rows}
    if sorted(by_index) != list(range(len(rows))):
        raise ConfigError(f"{file}: the indices are not 0 to {len(rows) - 1}, each once.")
    return [by_index[index] for index in range(len(rows))]


def class_names(config: ClassifierConfig, labels: Sequence[Label] | None) -> list[str]:
    """Return a name for every class.

    Args:
        config: of the classifier; its own labels are the class names used in fine-tuning.
        labels: of a label file; rows are matched by identifier if the classifier's labels are identifiers, otherwise
            taken in the order of the classes.

    Raises:
        ConfigError: the file has a different number of classes.
    """
    own = config.labels or tuple(f"class {number}" for number in range(config.num_classes))
    if labels is None:
        return list(own)
    by_identifier = {label.identifier: label.name for label in labels if label.identifier}
    if config.labels and all(label in by_identifier for label in config.labels):
        return [by_identifier[label] for label in config.labels]
    if len(labels) != config.num_classes:
        raise ConfigError(f"the model has {config.num_classes} classes, but the label file names {len(labels)}.")
    if config.labels and by_identifier:
        labels_text = f"the labels of the checkpoint ({config.labels[0]!r}, ...)"
        print(f"warning: {labels_text} are not all in the label file; names are assigned in order.", file=sys.stderr)
    return [label.name for label in labels]
