"""Small labelled sources for the tests."""

from pathlib import Path

import numpy as np
import soundfile

from asda_core.labelled.examples import Example, LabelledData
from asda_core.labelled.reading import read_labelled
from asda_core.labelled.source import SourceConfig


def sound(file: Path) -> Path:
    """A few samples of silence."""
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, np.zeros(8), 8_000)
    return file


def text(file: Path, content: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, encoding="utf-8")
    return file


def read(data: Path, **keys: object) -> LabelledData:
    return read_labelled(SourceConfig(data=str(data), **keys), Path())  # type: ignore[arg-type]


def found(data: LabelledData, root: Path) -> list[tuple[str, tuple[str, ...], str]]:
    """(file below root, labels, split) of every clip."""
    return [(each.file.relative_to(root).as_posix(), each.labels, each.split) for each in data.examples]


def labelled(examples: list[Example]) -> LabelledData:
    classes = tuple(sorted({label for example in examples for label in example.labels}))
    return LabelledData("made", tuple(examples), classes, classes, all(len(each.labels) == 1 for each in examples))
