"""Read a source into a `LabelledData`: detect its format and call the reader of that format."""

import os
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
from asda_core.labelled.examples import LabelledData
from asda_core.labelled.folders import folder_rows
from asda_core.labelled.label_files import Label
from asda_core.labelled.rows import merge_rows, read_vocabulary
from asda_core.labelled.shards import find_shards, is_pattern, shard_rows
from asda_core.labelled.source import SourceConfig, SourceFormat, resolve_paths
from asda_core.labelled.tables import TABLE_SUFFIXES, read_header, table_rows, usual_column

COLUMN_KEYS = ("file_column", "label_column", "split_column")
KEYS_OF: dict[str, tuple[str, ...]] = {
    "csv": ("audio", *COLUMN_KEYS),
    "esc50": ("audio", *COLUMN_KEYS),
    "audioset": ("audio",),
    "shards": ("label_column", "split_column", "label_separator"),
}
"""Format -> keys of a source that it reads and not every format does."""
FILE_FORMATS = ("csv", "audioset", "shards")
"""Formats whose `data` may be a file."""


def read_labelled(source: SourceConfig, folder: str | Path) -> LabelledData:
    """All clips of a source, with their labels and splits.

    Args:
        source: content of a task file.
        folder: the folder that its relative paths refer to.

    Raises:
        TaskError: the source does not exist, has no known format, or a list is malformed; with file and line.
    """
    source = resolve_paths(source, folder)
    path = Path(source.data)
    if not (path.exists() or is_pattern(path)):
        raise TaskError(f"{os.path.normpath(path)} does not exist; expected a folder, a table or a shard (key data).")
    source_format = detect_format(source) if source.format == "auto" else source.format
    if path.is_file() and source_format not in FILE_FORMATS:
        raise TaskError(f"{path} is a file, but the format {source_format} needs a folder.")
    _check_keys(source, source_format)
    vocabulary = _vocabulary(source, source_format)
    match source_format:
        case "esc50":
            rows = esc50_rows(path, source)
        case "urbansound8k":
            rows, classes = urbansound8k_rows(path)
            vocabulary = vocabulary or classes
        case "speech_commands":
            rows = speech_commands_rows(path)
        case "audioset":
            rows = audioset_rows(path, source.audio)
        case "shards":
            rows = shard_rows(path, source, vocabulary)
        case "csv":
            rows = table_rows(_table(source), source)
        case _:
            rows = folder_rows(path)
    return merge_rows(source.name, rows, vocabulary)


def detect_format(source: SourceConfig) -> SourceFormat:
    """Return the most specific format that fits `source.data`, absolute or relative to the working directory.

    Raises:
        TaskError: no format fits.
    """
    path = Path(source.data)
    if esc50_table(path):
        return "esc50"
    if is_urbansound8k(path):
        return "urbansound8k"
    if is_speech_commands(path):
        return "speech_commands"
    if audioset_lists(path):
        return "audioset"
    if not path.is_dir() and find_shards(path):
        return "shards"
    if path.is_file() and path.suffix.lower() not in TABLE_SUFFIXES:
        raise TaskError(f"{path} is neither a folder nor a table ({' or '.join(TABLE_SUFFIXES)}) nor a shard (.tar).")
    if path.is_file() or _tables(source):
        return "csv"
    return "shards" if find_shards(path) else "folders"


def _vocabulary(source: SourceConfig, source_format: str) -> list[Label]:
    """Classes of the vocabulary that the source names, or of the one beside its lists or shards; empty without one."""
    file = None if source.vocabulary is None else Path(source.vocabulary)
    if file is None and source_format in ("audioset", "shards"):
        file = audioset_vocabulary(Path(source.data))
    return [] if file is None else read_vocabulary(file)


def _tables(source: SourceConfig) -> list[Path]:
    """Files of a folder that may be its table: those with a file column."""
    files = sorted(file for file in Path(source.data).iterdir() if file.suffix.lower() in TABLE_SUFFIXES)
    headers = {file: read_header(file) for file in files}
    if source.file_column:
        return [file for file, columns in headers.items() if source.file_column in columns]
    return [file for file, columns in headers.items() if usual_column("file", columns, file)]


def _table(source: SourceConfig) -> Path:
    path = Path(source.data)
    if path.is_file():
        return path
    tables = _tables(source)
    if len(tables) != 1:
        names = ", ".join(table.name for table in tables) or "none"
        raise TaskError(f"{path}: expected one table with a file column, found {names}; set data to the table.")
    return tables[0]


def _check_keys(source: SourceConfig, source_format: str) -> None:
    """Raise a `TaskError` for keys that this format does not read, rather than ignore them silently."""
    for key in ("audio", *COLUMN_KEYS):
        if getattr(source, key) and key not in KEYS_OF.get(source_format, ()):
            raise TaskError(
                f"{source.data} is read as {source_format}, which does not use the key {key}; remove it or set format."
            )
