"""Read a source into a `Labelled`: detect its format and call the reader of that format."""

from pathlib import Path

from asda_core.errors import TaskError
from asda_core.labelled.audioset import audioset_lists, audioset_rows, audioset_vocabulary
from asda_core.labelled.datasets import (
    esc50_rows,
    esc50_table,
    is_speech_commands,
    is_urbansound8k,
    speech_commands_rows,
    urbansound8k_rows,
)
from asda_core.labelled.examples import Labelled
from asda_core.labelled.folders import folder_rows
from asda_core.labelled.rows import gather, read_vocabulary
from asda_core.labelled.shards import is_pattern, shard_rows, shards_at
from asda_core.labelled.source import SourceConfig, SourceFormat, located
from asda_core.labelled.tables import TABLE_SUFFIXES, read_header, table_rows, usual_column

COLUMN_KEYS = ("file_column", "label_column", "split_column")
KEYS_OF: dict[str, tuple[str, ...]] = {
    "csv": ("audio", *COLUMN_KEYS),
    "esc50": ("audio", *COLUMN_KEYS),
    "audioset": ("audio",),
    "shards": ("label_column", "split_column", "label_separator"),
}
"""Format -> keys of a source that it reads and not every format does."""
READ_FILES = ("csv", "audioset", "shards")
"""Formats whose `data` may be a file."""


def read_labelled(source: SourceConfig, here: Path) -> Labelled:
    """All clips of a source, with their labels and splits.

    Args:
        source: content of a task file.
        here: the folder that its relative paths refer to.

    Raises:
        TaskError: the source does not exist, has no known format, or a list is malformed; with file and line.
    """
    source = located(source, here)
    place = Path(source.data)
    if not (place.exists() or is_pattern(place)):
        raise TaskError(f"{place} does not exist; expected a folder, a table or a shard (key data).")
    source_format = detect(source) if source.format == "auto" else source.format
    if place.is_file() and source_format not in READ_FILES:
        raise TaskError(f"{place} is a file, but the format {source_format} needs a folder.")
    _check_keys(source, source_format)
    vocabulary = read_vocabulary(Path(source.vocabulary)) if source.vocabulary is not None else []
    match source_format:
        case "esc50":
            rows = esc50_rows(place, source)
        case "urbansound8k":
            rows, classes = urbansound8k_rows(place)
            vocabulary = vocabulary or classes
        case "speech_commands":
            rows = speech_commands_rows(place)
        case "audioset":
            file = audioset_vocabulary(place)
            vocabulary = vocabulary or (read_vocabulary(file) if file is not None else [])
            rows = audioset_rows(place, source.audio)
        case "shards":
            file = audioset_vocabulary(place)
            vocabulary = vocabulary or (read_vocabulary(file) if file is not None else [])
            rows = shard_rows(place, source, vocabulary)
        case "csv":
            rows = table_rows(_table(source), source)
        case _:
            rows = folder_rows(place)
    return gather(source.name, rows, vocabulary)


def detect(source: SourceConfig) -> SourceFormat:
    """Return the most specific format that fits `source.data`, absolute or relative to the working directory.

    Raises:
        TaskError: no format fits.
    """
    place = Path(source.data)
    if esc50_table(place):
        return "esc50"
    if is_urbansound8k(place):
        return "urbansound8k"
    if is_speech_commands(place):
        return "speech_commands"
    if audioset_lists(place):
        return "audioset"
    if not place.is_dir() and shards_at(place):
        return "shards"
    if place.is_file() and place.suffix.lower() not in TABLE_SUFFIXES:
        raise TaskError(f"{place} is neither a folder nor a table ({' or '.join(TABLE_SUFFIXES)}) nor a shard (.tar).")
    if place.is_file() or _tables(source):
        return "csv"
    return "shards" if shards_at(place) else "folders"


def _tables(source: SourceConfig) -> list[Path]:
    """Files of a folder that may be its table: those with a file column."""
    files = sorted(file for file in Path(source.data).iterdir() if file.suffix.lower() in TABLE_SUFFIXES)
    headers = {file: read_header(file) for file in files}
    if source.file_column:
        return [file for file, columns in headers.items() if source.file_column in columns]
    return [file for file, columns in headers.items() if usual_column("file", columns, file)]


def _table(source: SourceConfig) -> Path:
    place = Path(source.data)
    if place.is_file():
        return place
    tables = _tables(source)
    if len(tables) != 1:
        names = ", ".join(table.name for table in tables) or "none"
        raise TaskError(f"{place}: expected one table with a file column, found {names}; set data to the table.")
    return tables[0]


def _check_keys(source: SourceConfig, source_format: str) -> None:
    """Raise a `TaskError` for keys that this format does not read, rather than ignore them silently."""
    for key in ("audio", *COLUMN_KEYS):
        if getattr(source, key) and key not in KEYS_OF.get(source_format, ()):
            raise TaskError(
                f"{source.data} is read as {source_format}, which does not use the key {key}; remove it or set format."
            )
