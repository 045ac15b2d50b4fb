"""Read the audio files named by manifests and tables: text with a path per line, csv, tsv, parquet."""

import csv
import io
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path

from asda_core.audio_files.tar_headers import TAR_SUFFIX, UNSUPPORTED_SUFFIXES, is_audio
from asda_core.audio_files.tars import shard_index
from asda_core.errors import AudioError, ConfigError

TABLE_SUFFIXES = (".parquet", ".pq")
FILE_COLUMNS = (
    "file", "path", "filename", "file_name", "filepath", "file_path", "fname", "slice_file_name", "audio", "audio_file",
    "wav", "flac",
)  # fmt: skip
"""Usual names of the file column of a table; otherwise the first column whose values look like audio is taken."""
SAMPLE_ROWS = 20
"""Rows from which the file column is determined."""
SAMPLE_LINES = 200
"""Lines of a text in which those rows are searched, so that an unclosed quote does not swallow the whole text."""


def files_in_manifest(path: Path) -> list[Path]:
    """Files named by a text: in a column of a table with a header, otherwise one per line.

    Paths are relative to the text's folder; those of a list, to the folder that its first line names, if any.

    Raises:
        AudioError: the file is not text, or is a table that cannot be read.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        why = "it has no audio suffix and is not a text manifest"
        if path.suffix.lower() in UNSUPPORTED_SUFFIXES:
            why = f"libsndfile does not read {path.suffix}; convert it, as with `ffmpeg -i OLD NEW.wav`"
        raise AudioError(f"cannot read {path}: {why}.") from None
    try:
        names = _in_table(text)
        if names is not None:
            return [_path_of(path.parent, name) for name in names]
        lines = io.StringIO(text, newline=None)  # str.splitlines also splits at U+2028, which may be part of a name
        return list(_line_by_line(path.parent, [line for line in lines if line.strip()]))
    except csv.Error as error:
        raise AudioError(f"cannot read {path}: it is not a table or manifest ({error}).") from None


def check_quotes(text: str, delimiter: str) -> None:
    """Check that the quotes of a table are closed: the reader of csv takes all lines behind an open one for one cell.

    Raises:
        csv.Error: a quote is not closed, or a cell is too large, as behind an open quote; with the line.
    """
    if '"' not in text:
        return
    end_row = ["end"]
    reader = csv.reader(itertools.chain(io.StringIO(text, newline=""), ["\n", *end_row]), delimiter=delimiter)
    first, last, last_row = 1, 0, end_row
    try:
        for row in reader:
            first, last, last_row = last + 1, reader.line_num, row
    except csv.Error as error:
        raise csv.Error(f"{error} in the row that begins at line {last + 1}; is a quote not closed?") from None
    if last_row != end_row:
        raise csv.Error(f"a quote is not closed in the row that begins at line {first}")


def _line_by_line(root: Path, lines: Sequence[str]) -> Iterator[Path]:
    folder = root
    for number, line in enumerate(lines):
        fields = [line.strip(), line.split("\t")[0].strip(), *next(csv.reader([line]))[:1], line.split()[0]]
        name = next((field for field in fields if is_audio(field)), "")
        if fields[0].endswith(TAR_SUFFIX):
            yield from shard_index(root / fields[0]).paths()
        elif not name and number == 0 and os.path.isdir(path := folder / fields[0]):
            is_header = fields[0].lower() in FILE_COLUMNS and _first_exists(folder, lines[1:])
            root = root if is_header else path
        elif name or number or not _is_header_or_lost_root(fields[:3], lines):
            yield root / (name or fields[1])  # what is not audio is reported when it is read


def _is_header_or_lost_root(fields: Sequence[str], lines: Sequence[str]) -> bool:
    """Whether a first line (whole, and its first field by tabs and commas) names a column, or a folder elsewhere.

    Such a root has no tab where the lines after it have one, as in the tsv lists of fairseq, or is an absolute path
    without a suffix.
    """
    tabs = ["\t" in line.strip() for line in lines[:2]]
    is_root = tabs == [False, True] or (os.path.isabs(fields[0]) and not os.path.splitext(fields[0])[1])
    return is_root or any(field.lower() in FILE_COLUMNS for field in fields)


def _first_exists(folder: Path, lines: Sequence[str]) -> bool:
    return bool(lines) and os.path.isfile(folder / lines[0].strip())


def _path_of(root: Path, name: str) -> Path:
    """Path of a file named in a table: stripped of surrounding spaces, unless a file with these spaces exists."""
    stripped = name.strip()
    return root / (name if stripped != name and os.path.exists(root / name) else stripped)


def _in_table(text: str) -> list[str] | None:
    """Cells of the file column; None if the text is not a table."""
    column = _column_of_files(list(itertools.islice(io.StringIO(text, newline=""), SAMPLE_LINES)))
    if column is None:
        return None
    index, delimiter = column
    check_quotes(text, delimiter)
    rows = itertools.islice(_rows(io.StringIO(text, newline=""), delimiter), 1, None)
    return [row[index] for row in rows if len(row) > index and row[index].strip()]


def _rows(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    """Rows of a table that are not empty."""
    return (row for row in csv.reader(lines, delimiter=delimiter) if any(map(str.strip, row)))


def _column_of_files(lines: Sequence[str]) -> tuple[int, str] | None:
    """(column, delimiter) of a table with a header: a usual file column, or the first that holds only audio files."""
    other = None
    for delimiter in ("\t", ",", ";"):
        header, *rows = [*itertools.islice(_rows(lines, delimiter), SAMPLE_ROWS + 1)] or [[]]
        if len(header) < 2 or any(is_audio(name.strip()) for name in header):
            continue
        for index, name in enumerate(header):
            values = [row[index].strip() for row in rows if len(row) > index]
            quantifier = any if index else all  # the first may be part of a path that has a comma
            if values and name.strip().lower() in FILE_COLUMNS and quantifier(map(is_audio, values)):
                return index, delimiter
            if other is None and values and all(map(is_audio, values)) and {len(row) for row in rows} == {len(header)}:
                other = index, delimiter
    return other


def files_in_parquet(path: Path) -> list[Path]:
    """Files named in the file column of a parquet table.

    Raises:
        ConfigError: pyarrow is missing.
        AudioError: the file is not a parquet table, or no column names files.
    """
    try:
        parquet = import_module("pyarrow.parquet")
    except ImportError:
        raise ConfigError(f"{path}: parquet needs pyarrow: pip install 'asda-hear[parquet]'.") from None
    try:
        table = parquet.ParquetFile(path)
        first = next(table.iter_batches(SAMPLE_ROWS), None)
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise AudioError(f"cannot read {path}: it is not a parquet table or is damaged ({error}).") from None
    types = import_module("pyarrow").types
    texts = [types.is_string, types.is_large_string, types.is_string_view]
    fields = {field.name: field.type for field in table.schema_arrow}
    fields |= {name: kind.value_type for name, kind in fields.items() if types.is_dictionary(kind)}
    names = [name for name in fields if any(is_text(fields[name]) for is_text in texts)]
    cells = {} if first is None else first.to_pydict()
    candidates = [name for name in names if any(_is_audio_name(value) for value in cells.get(name, []))]
    if not candidates:  # its first cells may be empty
        candidates = [name for name in names if name.lower() in FILE_COLUMNS and not any(cells.get(name, []))]
    usual = [name for name in candidates if name.lower() in FILE_COLUMNS]
    if not candidates:
        raise AudioError(
            f"{path}: no column names audio files (columns: {', '.join(fields)}; audio stored in cells is not read)."
        )
    return list(_in_column(path, parquet, (usual or candidates)[0]))


def _in_column(path: Path, parquet: object, column: str) -> Iterator[Path]:
    for batch in parquet.ParquetFile(path).iter_batches(columns=[column]):  # type: ignore[attr-defined]
        yield from (_path_of(path.parent, name) for name in batch.column(0).to_pylist() if name and name.strip())


def _is_audio_name(value: object) -> bool:
    return isinstance(value, str) and is_audio(value.strip())
