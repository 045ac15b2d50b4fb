"""Files that are written whole or not at all, also if the power goes; and how they are known again."""

import csv
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from asda_core.weights.paths import HUGGING_FACE_CONFIG

DIGEST_DIGITS = 16
NAME_DIGITS = 8
"""Of a digest in the name of a file or folder."""
LENGTH_BYTES = 8
"""With which a safetensors file begins: the length of what describes its tensors, lowest byte first; then comes JSON.

**Source**: https://huggingface.co/docs/safetensors
"""
METADATA = "__metadata__"
"""Key of that JSON for what is no tensor."""
LONGEST_NAME = 249
"""Bytes of a name that leave room for what stands around it: file systems take 255."""


def write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a neighbour of `file`, bring it to the disk, and only then put it in the place of `file`."""
    part = part_of(file)
    part.unlink(missing_ok=True)
    try:
        write_open(part, write)
        sync(part)
        os.replace(part, file)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and not error.filename:  # as of a full disk
            raise OSError(error.errno, error.strerror, str(file)) from None
        raise
    sync(file.parent)


def part_of(file: Path) -> Path:
    """The neighbour of a file that is filled first."""
    name = file.name
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:DIGEST_DIGITS]
    return file.with_name(f".{name}.part")


def write_open(file: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a new file, and give it the permissions of any new file: safetensors makes its own private."""
    file.touch()
    usual = file.stat().st_mode
    write(file)
    file.chmod(usual)


def write_text(file: Path, text: str) -> None:
    """`write_whole` for text."""
    write_whole(file, lambda part: part.write_text(text, encoding="utf-8"))


def append_line(file: Path, line: str) -> None:
    """Add a line to a file by one write, so that several processes may; behind a whole line, if a kill cut one off."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab+", buffering=0) as opened:
        opened.seek(max(0, opened.seek(0, os.SEEK_END) - 1))
        cut_off = opened.read() not in (b"", b"\n")
        opened.write(f"{chr(10) * cut_off}{line}\n".encode())


def json_lines(file: Path) -> list[Any]:
    """What the lines of a file hold, which need not be there; what a kill or a full disk has cut off is passed over."""
    found = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else ():
        with suppress(ValueError):
            found.append(json.loads(line))
    return found


def write_rows(file: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """`write_whole` for a table as CSV: a column for every key of any row, empty where a row has it not."""
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, names, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text.getvalue())


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder by name, also behind links to folders, but for those that lead back to where we are.

    Behind a link every other folder is entered once, however many links lead to it, so that folders that link to each
    other do not multiply without bounds. A folder that may not be read is passed over, and so is a link in a circle.
    """
    return _files_below(folder, (), None)


def _files_below(folder: Path, above: tuple[str, ...], entered: set[str] | None) -> Iterator[Path]:
    """`above` are the folders on the way by their real paths; `entered` those behind the link that we came through."""
    real = os.path.realpath(folder)
    if real in above or (entered is not None and real in entered):
        return
    if entered is not None:
        entered.add(real)
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if _is_folder(entry):
            behind = set() if entered is None and entry.is_symlink() else entered
            yield from _files_below(Path(entry.path), (*above, real), behind)
        else:
            yield Path(entry.path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle
        return False


def disk_time(folder: Path) -> float:
    """What time it is for the disk of a folder, which is made, to compare with times of files there.

    A file server has a clock of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as opened:
        return os.fstat(opened.fileno()).st_mtime


def text_digest(text: str, digits: int = DIGEST_DIGITS) -> str:
    """Digest of a text, in so many hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def file_digest(file: Path) -> str:
    """Digest of a file's content."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:DIGEST_DIGITS]


def beside_model(file: Path) -> Path | None:
    """The config beside the file of a foreign model, which says what no tensor shows; None where there is none."""
    beside = file.with_name(HUGGING_FACE_CONFIG)
    return beside if beside.is_file() else None


def safetensors_metadata(file: Path) -> dict[str, str]:
    """What is written beside the tensors of a safetensors file, without what takes seconds to import; else nothing."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(LENGTH_BYTES), "little")
            header = json.loads(opened.read(length if length < file.stat().st_size else 0))
        return dict(header.get(METADATA, {}))
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def model_digest(file: Path) -> str:
    """Digest of all that a model is read from: its file, and the config beside it."""
    beside = beside_model(file)
    return file_digest(file) + ("" if beside is None else f"+{file_digest(beside)}")


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
