"""Files that are written atomically, also on a power failure; digests that identify them."""

import csv
import errno
import hashlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from asda_core.system.paths import HUGGING_FACE_CONFIG

DIGEST_DIGITS = 16
NAME_DIGITS = 8
"""Digits of a digest in the name of a file or folder."""
LENGTH_BYTES = 8
"""Bytes at the start of a safetensors file: the length of its JSON header, little-endian; the header follows.

**Source**: https://huggingface.co/docs/safetensors
"""
METADATA_KEY = "__metadata__"
"""Key of that header for everything that is not a tensor."""
MAX_NAME_BYTES = 249
"""Longest name in bytes that leaves room for the affixes of `temporary_path`: file systems allow 255."""
SHARED_MESSAGE = "its temporary file has vanished; another process may be writing the same file"
"""Reason given where the temporary file of `write_atomically` is gone: another process may have renamed it."""


def write_atomically(file: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically: `write` fills a temporary file beside it, which is synced and then replaces `file`.

    Where `file` is a symbolic link, the file that it leads to is replaced.

    Raises:
        OSError: it cannot be written, as on a full disk, or is a device; its `filename` is `file`.
    """
    target = Path(os.path.realpath(file)) if file.is_symlink() else file
    if target.exists() and not (target.is_file() or target.is_dir()):  # as /dev/null, which would be replaced
        raise OSError(errno.EINVAL, "Not a regular file", str(file))
    part = temporary_path(target)
    try:
        part.unlink(missing_ok=True)
        write_with_default_mode(part, write)
        sync(part)
        os.replace(part, target)
    except BaseException as error:
        with suppress(OSError):
            part.unlink()
        if isinstance(error, OSError) and error.errno and str(error.filename or part) == str(part):
            vanished = isinstance(error, FileNotFoundError) and part.parent.is_dir()
            reason = SHARED_MESSAGE if vanished else error.strerror
            raise OSError(error.errno, reason, str(file)) from None
        raise
    sync(target.parent)


@contextmanager
def name_in_errors(file: Path) -> Iterator[None]:
    """Add the name of the file that the block writes to an `OSError` without one, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, error.filename or str(file)) from None


def temporary_path(file: Path) -> Path:
    """The temporary file beside a file, which is written first."""
    name = file.name
    if len(os.fsencode(name)) > MAX_NAME_BYTES:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:DIGEST_DIGITS]
    return file.with_name(f".{name}.part")


def write_with_default_mode(file: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a new file, and give it the default permissions: safetensors makes its files private."""
    file.touch()
    mode = file.stat().st_mode
    write(file)
    file.chmod(mode)


def write_text(file: Path, text: str) -> None:
    """`write_atomically` for text; what UTF-8 cannot hold is escaped, since file names may be any bytes."""
    write_atomically(file, lambda part: part.write_text(text, encoding="utf-8", errors="backslashreplace"))


def append_line(file: Path, line: str) -> None:
    """Append a line in one write, so that several processes can; a line that a kill cut off is ended first."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab+", buffering=0) as opened:
        opened.seek(max(0, opened.seek(0, os.SEEK_END) - 1))
        cut_off = opened.read() not in (b"", b"\n")
        opened.write(f"{chr(10) * cut_off}{line}\n".encode(errors="backslashreplace"))


def read_json(file: Path) -> Any:
    """Content of a JSON file; None if it is missing or damaged, as by a full disk."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def read_json_object(file: Path) -> dict[str, Any]:
    """Content of a file with one JSON object; empty if it is missing, damaged or something else."""
    content = read_json(file)
    return content if isinstance(content, dict) else {}


def read_json_lines(file: Path) -> list[Any]:
    """Parse the lines of a file, which need not exist; lines that a kill or a full disk has cut off are skipped."""
    values = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else ():
        with suppress(ValueError):
            values.append(json.loads(line))
    return values


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Rows as CSV, the header among them; None becomes an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def write_csv(file: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """`write_atomically` for a table as CSV: a column for every key of any row, empty where a row lacks it."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, csv_text([names, *([row.get(name, "") for name in names] for row in rows)]))


def files_below(folder: Path) -> Iterator[Path]:
    """Yield every file below a folder by name, also behind links to folders, except links back to a parent folder.

    Behind a link every other folder is entered once, however many links lead to it, so that folders that link to each
    other do not multiply without bounds. An unreadable folder is skipped; a circular or broken link counts as a file.
    """
    return _files_below(folder, (), None)


def _files_below(folder: Path, parents: tuple[str, ...], entered: set[str] | None) -> Iterator[Path]:
    """`parents`: real paths of the parent folders; `entered`: those of folders entered behind the current link."""
    real = os.path.realpath(folder)
    if real in parents or (entered is not None and real in entered):
        return
    if entered is not None:
        entered.add(real)
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        reason = error.strerror or str(error)
        print(f"warning: cannot read the folder {folder}: {reason}; its files are not used.", file=sys.stderr)
        return
    for entry in entries:
        if _is_folder(entry):
            entered_next = set() if entered is None and entry.is_symlink() else entered
            yield from _files_below(Path(entry.path), (*parents, real), entered_next)
        else:
            yield Path(entry.path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle
        return False


def disk_time(folder: Path) -> float:
    """Current time of the file system of a folder, which is created if missing, to compare with file times there.

    A file server has its own clock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as opened:
        return os.fstat(opened.fileno()).st_mtime


def text_digest(text: str, digits: int = DIGEST_DIGITS) -> str:
    """Digest of a text, in `digits` hexadecimal digits."""
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:digits]


def file_digest(file: Path) -> str:
    """Digest of a file's content."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:DIGEST_DIGITS]


def sidecar_config_file(file: Path) -> Path | None:
    """The config file beside a model file of other origin, with what no tensor shows; None if there is none."""
    beside = file.with_name(HUGGING_FACE_CONFIG)
    return beside if beside.is_file() else None


def safetensors_metadata(file: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file without slow imports; empty if it cannot be read."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(LENGTH_BYTES), "little")
            header = json.loads(opened.read(length if length < file.stat().st_size else 0))
        return dict(header.get(METADATA_KEY, {}))
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def model_digest(file: Path) -> str:
    """Digest of everything that a model is read from: its file, and the config beside it."""
    beside = sidecar_config_file(file)
    return file_digest(file) + ("" if beside is None else f"+{file_digest(beside)}")


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
