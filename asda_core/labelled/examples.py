"""A labelled clip, and a set of them with its classes."""

from dataclasses import dataclass
from pathlib import Path

NO_SPLIT = ""
TRAIN, VALID, TEST = "train", "valid", "test"
TRAIN_VALID_TEST = (TRAIN, VALID, TEST)


@dataclass(frozen=True)
class Example:
    """One clip: its file, labels (members of `LabelledData.classes`), and split or fold (`NO_SPLIT`: unknown)."""

    file: Path
    labels: tuple[str, ...]
    split: str = NO_SPLIT


@dataclass(frozen=True)
class LabelledData:
    """Labelled clips.

    Attributes:
        name: of the data set, for tables and folders.
        examples: in the order of the source.
        classes: identifier of each class, in the order of the outputs of a classifier.
        class_names: readable name of each class; the same as `classes` if there is no other.
        single: whether every clip has exactly one label.
    """

    name: str
    examples: tuple[Example, ...]
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    single: bool
