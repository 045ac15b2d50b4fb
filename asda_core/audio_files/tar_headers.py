"""Headers of tar shards: which members are audio, where each lies, and what is wrong with a tar."""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Self

from asda_core.errors import AudioError

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".caf", ".w64", ".au")
"""Suffixes of file names that a search takes for audio; libsndfile reads all of these formats."""
UNSUPPORTED_SUFFIXES = (".m4a", ".mp4", ".aac", ".wma", ".webm", ".mka", ".amr", ".ac3")
"""Suffixes of audio formats that libsndfile does not read; a search warns of such files."""
TAR_SUFFIX = ".tar"
HEADER_BYTES = 512
"""Size of a tar member's header. **Source**: POSIX ustar."""
ZERO = b"\0"
BLOCK_BYTES = 1 << 20
"""Block size for reading what follows the end of a tar."""
TRAILING_DATA = "has data after what looks like its end: a header is damaged or tars were concatenated"
"""Message for a tar that was not read completely."""
TAR_END = "EOFHeaderError"
"""Name of the exception that tarfile raises at the end mark; the class is not public."""
LINKED_OR_SPARSE = "audio files that are skipped: hard links or sparse members (tar --sparse)."
"""Message, after a count, for members whose bytes do not follow their header."""


class StrictHeader(tarfile.TarInfo):
    """A member's header; a damaged or truncated one is an error, where tarfile takes it for the end of the tar."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        """Read the next header.

        Raises:
            tarfile.ReadError: it is damaged or truncated, or the tar has no end mark.
        """
        try:
            info = super().fromtarfile(tar)
        except tarfile.HeaderError as error:
            if type(error).__name__ == TAR_END or not tar.offset:  # tarfile itself reports the first header
                raise
            raise tarfile.ReadError(str(error)) from None
        if info.size < 0:  # base 256 has a sign
            raise tarfile.ReadError("negative size")
        return info


class Member(NamedTuple):
    """An audio file in a shard: name, offset and size in bytes, number of samples, sample rate (both 0 if unknown)."""

    name: str
    offset: int
    size: int
    samples: int = 0
    rate: int = 0


def is_audio(name: str) -> bool:
    """Whether a file with this name is taken for audio."""
    return os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES


def plain_name(name: str) -> str:
    """The name of a member without `./`, `../` and a leading `/`, as used in a path below the shard."""
    return "/".join(part for part in PurePosixPath(name).parts if part not in ("/", ".", ".."))


def read_headers(shard: Path) -> tuple[list[Member], list[str]]:
    """List the audio files of a tar from its headers alone, and messages on what is wrong with it.

    Of several members with the same name, the first is used; of a truncated tar, the complete members.

    Raises:
        AudioError: the file is not a tar.
    """
    members: dict[str, Member] = {}
    problems: list[str] = []
    repeated, unsupported = 0, 0
    end = shard.stat().st_size
    try:
        with tarfile.open(shard, "r:", tarinfo=StrictHeader) as tar:
            for info in _until_damage(tar, shard, problems):
                name = plain_name(info.name)
                if not is_audio(name):
                    continue
                if info.islnk() or info.issparse():
                    unsupported += 1
                elif not info.isfile():
                    continue
                elif name in members:
                    repeated += 1
                elif info.offset_data + info.size <= end:  # otherwise it is truncated, as the next header shows
                    members[name] = Member(name, info.offset_data, info.size)
            if not problems and _has_data_after(shard, tar.offset):
                problems.append(f"{shard} {TRAILING_DATA}; only the files before that point are used ({len(members)}).")
            elif not problems and not members:
                problems.append(f"{shard} contains no audio files.")
    except tarfile.ReadError as error:
        problem = (
            "it is empty (0 bytes)" if end == 0 else f"it is not a tar ({error}); stream a compressed one with pipe:"
        )
        raise AudioError(f"cannot read the shard {shard}: {problem}.") from None
    if repeated:
        problems.append(f"{shard} has {repeated} members with a repeated name; the first of each name is used.")
    if unsupported:
        problems.append(f"{shard} has {unsupported} {LINKED_OR_SPARSE}")
    return list(members.values()), problems


def _has_data_after(shard: Path, offset: int) -> bool:
    """Whether anything but zeros follows the end of a tar: a lost header looks like the end."""
    with shard.open("rb") as file:
        file.seek(offset)
        return any(block.strip(ZERO) for block in iter(lambda: file.read(BLOCK_BYTES), b""))


def _until_damage(tar: tarfile.TarFile, shard: Path, problems: list[str]) -> Iterator[tarfile.TarInfo]:
    """Yield the members, up to where the tar is truncated, if it is."""
    count = 0
    try:
        for info in tar:
            count += 1
            yield info
    except tarfile.ReadError as error:
        problems.append(f"{shard} is truncated after {count} members ({error}).")
