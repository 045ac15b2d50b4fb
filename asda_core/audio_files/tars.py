"""Random access to audio files in tar shards, by an index of their offsets.

An audio file in a shard has a path like any other, with the shard as a folder: `train-000003.tar/000000412.flac`.

    train-000003.tar     | header | 000000412.flac | header | 000000412.json | header | ...
                                  ^ offset         ^ offset + size

The index of a shard is written beside it by `asda data pack`; where it is missing, or belongs to another shard, the
headers are read once and the index is written, if the folder is writable.
"""

import contextlib
import functools
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from asda_core.audio_files.tar_headers import HEADER_BYTES, TAR_SUFFIX, Member, read_headers
from asda_core.errors import AudioError, FileAccessError
from asda_core.system.files import read_json_object, write_text

INDEX_SUFFIX = ".index.json"
LAST = "last"
"""Key in the index of a pack: the last piece that is in the shard or was skipped."""
HEADER_DIGEST_DIGITS = 16
READER_VERSION = 2
"""Version of `read_headers` in an index made by it: version 1 treated sparse members as whole ones."""


@dataclass(frozen=True)
class ShardIndex:
    """Locations of the audio files in a shard.

    Attributes:
        shard: path of the tar.
        rows: name -> row, in the order of the tar.
        offsets, sizes: of each row, in bytes.
        problems: messages on what is wrong with the shard, one line each.
    """

    shard: Path
    rows: dict[str, int]
    offsets: "np.ndarray[Any, np.dtype[np.int64]]"
    sizes: "np.ndarray[Any, np.dtype[np.int64]]"
    problems: tuple[str, ...] = field(default=())

    def paths(self) -> list[Path]:
        """Paths of the audio files, with the shard as a folder."""
        return [self.shard / name for name in self.rows]

    def offset_and_size(self, name: str) -> tuple[int, int]:
        """Return offset and size in bytes of an audio file.

        Raises:
            AudioError: the shard has no such file.
        """
        if name not in self.rows:
            raise AudioError(
                f"cannot read {self.shard / name}: the shard has no such audio file (it has {len(self.rows)} others)."
            )
        row = self.rows[name]
        return int(self.offsets[row]), int(self.sizes[row])


def split_member(file: Path) -> tuple[Path, str] | None:
    """Split a path into a tar into (shard, name in it); None for any other path."""
    text, separator = str(file), f"{TAR_SUFFIX}/"
    end = text.find(separator)
    while end >= 0:
        shard = Path(text[: end + len(TAR_SUFFIX)])
        if os.path.isfile(shard):  # False also where a disk fails
            return shard, text[end + len(separator) :]
        end = text.find(separator, end + 1)
    return None


def member_bytes(shard: Path, name: str) -> bytes:
    """Read the bytes of an audio file in a shard.

    Raises:
        FileAccessError: the disk or network of the shard fails.
        AudioError: there is no such file, or the shard ends before it does.
    """
    offset, size = shard_index(shard).offset_and_size(name)
    try:
        with shard.open("rb") as file:  # buffered: one system call does not read several GiB
            file.seek(offset)
            content = file.read(size)
    except OSError as error:
        raise FileAccessError(f"cannot read {shard / name}: {error.strerror or error}.") from None
    if len(content) < size:
        raise AudioError(
            f"cannot read {shard / name}: the shard is truncated, {size - len(content)} bytes are missing."
        )
    return content


def num_bytes(file: Path) -> int:
    """Size in bytes of a file, or of an audio file in a shard; 0 if it does not exist."""
    inside = split_member(file)
    if inside is None:
        return file.stat().st_size if file.exists() else 0
    try:
        return shard_index(inside[0]).offset_and_size(inside[1])[1]
    except AudioError:
        return 0


def shard_index(shard: Path) -> ShardIndex:
    """Return the index of a shard; cached while the size and time of the shard stay the same.

    Raises:
        FileAccessError: the shard cannot be read.
        AudioError: it is not a tar.
    """
    try:
        state = shard.stat()
        return _index(shard, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise FileAccessError(f"cannot read the shard {shard}: {error.strerror}.") from None


@functools.cache
def _index(shard: Path, size: int, modified: int) -> ShardIndex:
    stored = _read_index(shard, size)
    if stored is None:
        members, problems = read_headers(shard)
        if LAST not in read_index_json(shard):  # a pack's has more, and fits again once the shard is restored
            with contextlib.suppress(OSError):  # a read-only folder
                write_index(shard, shard, members, trouble=problems, reader=READER_VERSION)
    else:
        members, problems = stored
    for line in problems:
        print(f"warning: {line}", file=sys.stderr)
    ranges = np.array([(member.offset, member.size) for member in members], dtype=np.int64).reshape(-1, 2)
    rows = {member.name: row for row, member in enumerate(members)}
    return ShardIndex(shard, rows, ranges[:, 0].copy(), ranges[:, 1].copy(), tuple(problems))


def index_file(shard: Path) -> Path:
    """Path of the index of a shard."""
    return shard.with_name(shard.name.removesuffix(TAR_SUFFIX) + INDEX_SUFFIX)


def shard_of(index: str) -> str:
    """The name of the shard that an index belongs to."""
    return index.removesuffix(INDEX_SUFFIX) + TAR_SUFFIX


def write_index(shard: Path, tar_file: Path, members: Sequence[Member], **extra_entries: Any) -> None:
    """Write the index of a shard.

    Args:
        shard: path beside which the index is written.
        tar_file: the tar itself, which may not have its final name yet.
        members: its audio files.
        extra_entries: further entries of the index.

    Raises:
        OSError: the index cannot be written.
    """
    size = tar_file.stat().st_size
    facts = {"shard": shard.name, "bytes": size, "last_header": _last_header(tar_file, members), **extra_entries}
    rows = [json.dumps(member) for member in members]
    head = json.dumps({**facts, "columns": Member._fields})
    write_text(index_file(shard), f'{head[:-1]}, "members": [\n' + ",\n".join(rows) + "\n]}\n")


def read_index_json(shard: Path) -> dict[str, Any]:
    """Read the whole index beside a shard; empty if it is missing or damaged."""
    return read_json_object(index_file(shard))


def _read_index(shard: Path, size: int) -> tuple[list[Member], list[str]] | None:
    """Members and messages from the index beside the shard; None if it does not belong to this shard."""
    facts = read_index_json(shard)
    try:
        members = [Member(*row) for row in facts["members"]]
        current = LAST in facts or facts.get("reader") == READER_VERSION
        fits = current and facts["bytes"] == size and facts["last_header"] == _last_header(shard, members)
        return (members, list(facts.get("trouble", []))) if fits else None
    except (KeyError, TypeError):
        return None


def _last_header(shard: Path, members: Sequence[Member]) -> str:
    """Digest of the header of the last audio file, which differs between shards of the same size."""
    if not members:
        return ""
    with shard.open("rb") as file:
        file.seek(members[-1].offset - HEADER_BYTES)
        return hashlib.sha256(file.read(HEADER_BYTES)).hexdigest()[:HEADER_DIGEST_DIGITS]
