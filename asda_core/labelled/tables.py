"""Read tables with a header: recognise the columns, and find the audio file of each row."""

import csv
import io
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from asda_core.audio_files.manifests import FILE_COLUMNS, check_quotes
from asda_core.audio_files.tar_headers import AUDIO_SUFFIXES
from asda_core.errors import MAX_LISTED_LONG, TaskError, listing, unknown_message
from asda_core.labelled.examples import NO_SPLIT
from asda_core.labelled.rows import Row
from asda_core.labelled.source import SourceConfig
from asda_core.system.files import files_below

TABLE_SUFFIXES = (".csv", ".tsv")
USUAL_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "file": ("filename", "file_name", "file", "filepath", "path", "fname", "slice_file_name", "audio"),
    "label": ("label", "labels", "category", "class", "target", "word", "tag", "tags"),
    "split": ("split", "fold", "set", "subset"),
}
"""Usual column names in public data sets, in lower case."""
MAX_HEADER = 10_000
"""Maximum number of characters read for the header and the blank lines above it."""


class TableRow(NamedTuple):
    """A line of a table: its number, its values by column, and any values beyond the last column."""

    line: int
    values: dict[str, str]
    surplus: list[str]


def read_text(file: Path) -> str:
    """Read the text of a list, with or without a byte order mark.

    Raises:
        TaskError: the file cannot be read, or is not UTF-8.
    """
    try:
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise TaskError(f"cannot read {file}: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise TaskError(
            f"cannot read {file}: byte {error.start} (0x{byte:02x}) is not UTF-8; save it as UTF-8."
        ) from None


def read_table(file: Path) -> tuple[list[str], list[TableRow]]:
    """Read columns and rows of a table, separated by tabs, commas or semicolons as determined from the header.

    Raises:
        TaskError: the file cannot be read, is not UTF-8, or is not a table.
    """
    content = read_text(file)
    lines = io.StringIO(content, newline="")
    num_blank = sum(1 for _ in itertools.takewhile(lambda line: not line.strip(), lines))
    lines.seek(0)
    from_header = list(itertools.islice(lines, num_blank, None))
    delimiter = _delimiter(from_header[0] if from_header else "")
    reader = csv.DictReader(from_header, delimiter=delimiter)
    try:
        check_quotes(content, delimiter)
    except csv.Error as error:
        raise TaskError(f"cannot read {file}: {error}.") from None
    try:
        reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
        rows = [_table_row(num_blank + reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise TaskError(f"cannot read {file}: {error} (after line {num_blank + reader.line_num}).") from None
    return list(reader.fieldnames), rows


def read_header(file: Path) -> list[str]:
    """Read only the columns of a table; empty if it cannot be read."""
    try:
        with file.open(encoding="utf-8-sig", errors="replace") as opened:
            header = next(filter(str.strip, opened.read(MAX_HEADER).split("\n")), "")
    except OSError:
        return []
    return [name.strip() for row in csv.reader([header], delimiter=_delimiter(header)) for name in row]


def _delimiter(header: str) -> str:
    """The delimiter that gives the most columns with usual names, and among equals the most columns."""

    def usual(delimiter: str) -> int:
        names = {name.strip(' "').lower() for name in header.split(delimiter)}
        return sum(not names.isdisjoint(columns) for columns in (*USUAL_COLUMNS.values(), FILE_COLUMNS))

    return max(",\t;", key=lambda delimiter: (usual(delimiter), header.count(delimiter)))


def _table_row(line: int, row: Mapping[str | None, str | list[str] | None]) -> TableRow:
    surplus = row.get(None)
    values = {key: value if isinstance(value, str) else "" for key, value in row.items() if key is not None}
    return TableRow(line, values, surplus if isinstance(surplus, list) else [])


def usual_column(role: str, columns: Sequence[str], path: Path) -> str | None:
    """Return the column with a usual name for "file", "label" or "split"; None if there is none.

    Raises:
        TaskError: several columns have usual names.
    """
    candidates = [column for column in columns if column.lower() in USUAL_COLUMNS[role]]
    if role == "file" and not candidates:
        candidates = [column for column in columns if column.lower() in FILE_COLUMNS]
    if len(candidates) > 1:
        raise TaskError(
            f"{path}: {' and '.join(candidates)} could each be the {role} column; set {role}_column to one."
        )
    return candidates[0] if candidates else None


def choose_column(role: str, requested: str, columns: Sequence[str], table: Path) -> str | None:
    """Return the column that the source names, otherwise the usual one.

    Raises:
        TaskError: the named column does not exist; or several columns have usual names, or none (except for "split").
    """
    if requested:
        if requested not in columns:
            raise TaskError(f"{table}: {unknown_message('column', requested, columns)} (key {role}_column)")
        if list(columns).count(requested) > 1:
            raise TaskError(f"{table}: several columns are called {requested}; rename all but one of them.")
        return requested
    column = usual_column(role, columns, table)
    if column is None and role != "split":
        raise TaskError(
            f"{table}: none of the columns {', '.join(columns)} has a usual name of a {role} column "
            f"({', '.join(USUAL_COLUMNS[role])}); set {role}_column."
        )
    return column


def usual_separator(column: str, values: Iterable[str]) -> str:
    """Comma if values have commas, no semicolons and a plural column name (FSD50K's `labels`); otherwise semicolon."""
    separators = set("".join(values)) & {";", ","}
    plural = column.lower().endswith("s") and not column.lower().endswith("ss")
    return "," if separators == {","} and plural else ";"


def table_rows(table: Path, source: SourceConfig, label_column: str = "") -> list[Row]:
    """Read the rows of any table.

    Args:
        table: its file names are relative to `source.audio`, otherwise to its own folder, or the folder `audio` in it.
            Names without a suffix (FSD50K) are searched for below that folder.
        source: names the columns if they are not the usual ones.
        label_column: label column of the data set, if the table has several usual ones.

    Raises:
        TaskError: a column or value is missing, a row has too many values, or audio files are missing.
    """
    columns, lines = read_table(table)
    if not columns:
        raise TaskError(f"{table} is empty; expected a header line with the column names.")
    file_column = choose_column("file", source.file_column, columns, table) or ""
    label_column = choose_column("label", source.label_column or label_column, columns, table) or ""
    split_column = choose_column("split", source.split_column, columns, table)
    separator = source.label_separator or usual_separator(label_column, [row.values[label_column] for row in lines])
    rows = []
    for line, values, surplus in lines:
        if any(surplus):
            count = len(columns) + len(surplus)
            raise TaskError(
                f"{table} line {line}: {count} values, but {len(columns)} columns; quote values that contain the "
                "delimiter."
            )
        for column in (file_column, split_column):
            if column and not values[column].strip():
                raise TaskError(f"{table} line {line}: the column {column} is empty.")
        parts = (part.strip() for part in values[label_column].split(separator))
        split = values[split_column].strip() if split_column else NO_SPLIT
        rows.append(Row(Path(values[file_column].strip()), tuple(part for part in parts if part), split, table, line))
    return require_files(_below(rows, table, source.audio), table)


def _below(rows: Sequence[Row], table: Path, audio: str | None) -> Iterator[Row]:
    """Yield the rows with the full paths of their files."""
    folder = table.parent
    if audio is not None:
        folder = Path(audio)
        if not folder.is_dir():
            raise TaskError(f"no folder {folder} (key audio).")
    elif rows and (folder / "audio").is_dir() and not (folder / rows[0].file).is_file():
        folder = folder / "audio"
    without_suffix = any(row.file.suffix.lower() not in AUDIO_SUFFIXES for row in rows)
    stems = files_by_stem(folder) if without_suffix else {}
    for row in rows:
        yield row._replace(file=_resolve(row, folder, stems.get(row.file.name, [])))


def files_by_stem(folder: Path) -> dict[str, list[Path]]:
    """Audio files anywhere below a folder, by name without suffix; the files themselves are not accessed."""
    by_stem: dict[str, list[Path]] = {}
    for file in files_below(folder):
        if file.suffix.lower() in AUDIO_SUFFIXES:
            by_stem.setdefault(file.stem, []).append(file)
    return by_stem


def _resolve(row: Row, folder: Path, same_stem: Sequence[Path]) -> Path:
    """Resolve the file of a row among those with the same name without suffix.

    Raises:
        TaskError: several files match.
    """
    path = folder / row.file
    same_path = [file for file in same_stem if file.with_suffix("").parts[-len(row.file.parts) :] == row.file.parts]
    same_folder = [file for file in same_path if file.parent == path.parent]
    matches = same_folder or same_path or same_stem
    if len(matches) > 1:
        raise TaskError(
            f"{row.location}: {row.file} matches {matches[0]} and {matches[1]}; give names with suffix and folder."
        )
    return matches[0] if matches else path


def require_files(rows: Iterator[Row], table: Path) -> list[Row]:
    """Return the rows if all their files exist, checked with one listing per folder.

    Raises:
        TaskError: some files are missing.
    """
    existing: list[Row] = []
    missing: list[Row] = []
    names: dict[Path, set[str]] = {}
    for row in rows:
        parent = row.file.parent
        if parent not in names:
            names[parent] = set(os.listdir(parent)) if parent.is_dir() else set()
        (existing if row.file.name in names[parent] else missing).append(row)
    if missing:
        places = [f"{row.file} (line {row.line})" for row in missing]
        raise TaskError(
            f"{table}: {len(missing):,} of {len(missing) + len(existing):,} files not found: "
            f"{listing(places, MAX_LISTED_LONG)}; check the key audio."
        )
    return existing
