"""Sounds in tar shards: where each lies, so that any of them is read without those before it.

A sound in a shard has a path as any file has, with the shard for a folder: `train-000003.tar/000000412.flac`.

    train-000003.tar     | header | 000000412.flac | header | 000000412.json | header | ...
                                  ^ offset         ^ offset + size

The index of a shard is written beside it by `asda data pack`; where it is missing, or of another shard, the headers
are read once and the index is written, if the folder lets us.
"""

import contextlib
import functools
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from asda_core.data.tar_headers import HEADER_BYTES, TAR_SUFFIX, Member, read_headers
from asda_core.errors import AudioError
from asda_core.system.files import write_text

INDEX_SUFFIX = ".index.json"
LAST = "last"
"""Fact in the index of a pack: the last work that is in the shard."""
INDEX_DIGITS = 16


@dataclass(frozen=True)
class ShardIndex:
    """Where the sounds of a shard lie.

    Attributes:
        shard: the tar.
        rows: name -> row, in the order of the tar.
        offsets, sizes: in bytes, of each row.
        trouble: what is wrong with the shard, one line each.
    """

    shard: Path
    rows: dict[str, int]
    offsets: "np.ndarray[Any, np.dtype[np.int64]]"
    sizes: "np.ndarray[Any, np.dtype[np.int64]]"
    trouble: tuple[str, ...] = field(default=())

    def paths(self) -> list[Path]:
        """The sounds as paths, the shard for a folder."""
        return [self.shard / name for name in self.rows]

    def place(self, name: str) -> tuple[int, int]:
        """Offset and size in bytes of a sound.

        Raises:
            AudioError: the shard has no such sound.
        """
        if name not in self.rows:
            raise AudioError(f"cannot read {self.shard / name}: the shard has no such sound ({len(self.rows)} others).")
        row = self.rows[name]
        return int(self.offsets[row]), int(self.sizes[row])


def split_member(file: Path) -> tuple[Path, str] | None:
    """(shard, name in it) of a path into a tar; None of any other path."""
    text, seam = str(file), f"{TAR_SUFFIX}/"
    end = text.find(seam)
    while end >= 0:
        shard = Path(text[: end + len(TAR_SUFFIX)])
        if shard.is_file():
            return shard, text[end + len(seam) :]
        end = text.find(seam, end + 1)
    return None


def member_bytes(shard: Path, name: str) -> bytes:
    """The bytes of a sound in a shard.

    Raises:
        AudioError: there is no such sound, or the shard ends before it does.
    """
    offset, size = index_of(shard).place(name)
    try:
        with shard.open("rb") as opened:  # of several GiB too, which one system call does not give
            opened.seek(offset)
            content = opened.read(size)
    except OSError as error:
        raise AudioError(f"cannot read {shard / name}: {error.strerror or error}.") from None
    if len(content) < size:
        raise AudioError(f"cannot read {shard / name}: the shard ends {size - len(content)} bytes before it does.")
    return content


def num_bytes(file: Path) -> int:
    """Size of a file, or of a sound in a shard; 0 of what is not there."""
    inside = split_member(file)
    if inside is None:
        return file.stat().st_size if file.exists() else 0
    try:
        return index_of(inside[0]).place(inside[1])[1]
    except AudioError:
        return 0


def index_of(shard: Path) -> ShardIndex:
    """The index of a shard; read once for as long as the shard stays the same.

    Raises:
        AudioError: it is no tar.
    """
    try:
        state = shard.stat()
    except OSError as error:
        raise AudioError(f"cannot read the shard {shard}: {error.strerror}.") from None
    return _index(shard, state.st_size, state.st_mtime_ns)


@functools.cache
def _index(shard: Path, size: int, changed: int) -> ShardIndex:
    known = _read_index(shard, size)
    if known is None:
        members, trouble = read_headers(shard)
        if LAST not in read_facts(shard):  # that of a pack tells more, and fits again when the shard is put back
            with contextlib.suppress(OSError):  # a folder that may only be read
                write_index(shard, shard, members, trouble=trouble)
    else:
        members, trouble = known
    for line in trouble:
        print(f"warning: {line}", file=sys.stderr)
    places = np.array([(member.offset, member.size) for member in members], dtype=np.int64).reshape(-1, 2)
    rows = {member.name: row for row, member in enumerate(members)}
    return ShardIndex(shard, rows, places[:, 0].copy(), places[:, 1].copy(), tuple(trouble))


def index_file(shard: Path) -> Path:
    """Where the index of a shard is kept."""
    return shard.with_name(shard.name.removesuffix(TAR_SUFFIX) + INDEX_SUFFIX)


def shard_of(index: str) -> str:
    """The name of the shard that an index is of."""
    return index.removesuffix(INDEX_SUFFIX) + TAR_SUFFIX


def write_index(shard: Path, content: Path, members: Sequence[Member], **more: Any) -> None:
    """Write the index of a shard.

    Args:
        shard: beside which it is written.
        content: the tar itself, which may not have its name yet.
        members: its sounds.
        more: further facts to keep.

    Raises:
        OSError: it cannot be written.
    """
    size = content.stat().st_size
    plain = {"shard": shard.name, "bytes": size, "last_header": _last_header(content, members), **more}
    rows = [json.dumps(member) for member in members]
    head = json.dumps({**plain, "columns": Member._fields})
    write_text(index_file(shard), f'{head[:-1]}, "members": [\n' + ",\n".join(rows) + "\n]}\n")


def read_facts(shard: Path) -> dict[str, Any]:
    """All that the index beside a shard says; empty where it is missing or damaged."""
    try:
        plain = json.loads(index_file(shard).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return plain if isinstance(plain, dict) else {}


def _read_index(shard: Path, size: int) -> tuple[list[Member], list[str]] | None:
    """Members and troubles, if the index beside the shard is of this very shard."""
    plain = read_facts(shard)
    try:
        members = [Member(*row) for row in plain["members"]]
        fits = plain["bytes"] == size and plain["last_header"] == _last_header(shard, members)
        return (members, list(plain.get("trouble", []))) if fits else None
    except (KeyError, TypeError):
        return None


def _last_header(shard: Path, members: Sequence[Member]) -> str:
    """Digest of the header of the last sound: another shard of the same size has another one."""
    if not members:
        return ""
    with shard.open("rb") as opened:
        opened.seek(members[-1].offset - HEADER_BYTES)
        return hashlib.sha256(opened.read(HEADER_BYTES)).hexdigest()[:INDEX_DIGITS]
