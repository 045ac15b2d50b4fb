"""Write tar shards atomically, each with its index.

A shard is filled under a temporary name and synced to disk, its index is written, and only then is it renamed; so a
shard under its final name is complete and has an index. The index also records how far packing had come, which is
where it resumes after any interruption.
"""

import io
import json
import os
import tarfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from asda_core.audio_files.tar_headers import HEADER_BYTES, TAR_SUFFIX, Member
from asda_core.audio_files.tars import read_index_json, write_index
from asda_core.system.files import name_in_errors, sync
from asda_core.system.resources import MEBIBYTE


def shard_name(name: str, number: int) -> str:
    """File name of a shard, such as `train-000003.tar`."""
    return f"{name}-{number:06d}{TAR_SUFFIX}"


def finished_shards(folder: Path, name: str) -> list[dict[str, Any]]:
    """Contents of the index files of the complete shards, up to the first that is missing or incomplete."""
    finished: list[dict[str, Any]] = []
    while (shard := folder / shard_name(name, len(finished))).exists():
        facts = read_index_json(shard)
        if facts.get("bytes") != shard.stat().st_size or "last" not in facts:
            break
        finished.append(facts)
    return finished


class ShardWriter:
    """Writer of shards of a given size, one after another.

    Attributes:
        number: of the shard that is being filled.
        skipped: (file, reason) of the files skipped since the previous shard.
    """

    def __init__(self, folder: Path, name: str, number: int, mebibytes: int) -> None:
        self.folder, self.name, self.number = folder, name, number
        self.limit = mebibytes * MEBIBYTE
        self.skipped: list[tuple[str, str]] = []
        self._members: list[Member] = []
        self._tar: tarfile.TarFile | None = None

    @property
    def _part(self) -> Path:
        return self.folder / f".{shard_name(self.name, self.number)}.part"

    @property
    def is_full(self) -> bool:
        """Whether the shard has reached its size."""
        return self._tar is not None and self._tar.offset >= self.limit

    @property
    def is_open(self) -> bool:
        """Whether a shard has been started."""
        return self._tar is not None

    def add(self, key: str, suffix: str, content: bytes, description: Mapping[str, Any]) -> None:
        """Add an audio file, followed by its JSON description; both share the key, as webdataset requires.

        Args:
            key: of the clip, without a dot.
            suffix: of the audio file, with its dot.
            content: the encoded audio.
            description: the description; `samples` and `rate` are also written to the index.
        """
        if self._tar is None:
            self._tar = tarfile.open(self._part, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        offset = self._tar.offset + HEADER_BYTES
        self._members.append(Member(key + suffix, offset, len(content), description["samples"], description["rate"]))
        with name_in_errors(self._part):
            for name, data in ((key + suffix, content), (f"{key}.json", json.dumps(description).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                self._tar.addfile(info, io.BytesIO(data))

    def finish(self, last: tuple[int, int]) -> None:
        """Close the shard that is being filled, and rename it to its final name.

        Args:
            last: (place, piece number) of the last piece that is in it or was skipped.

        Raises:
            OSError: for example, the disk is full.
        """
        assert self._tar is not None
        with name_in_errors(self._part):
            self._tar.close()
            sync(self._part)
        shard = self.folder / shard_name(self.name, self.number)
        write_index(shard, self._part, self._members, last=last, skipped=self.skipped)
        os.replace(self._part, shard)
        sync(self.folder)
        self.number += 1
        self._tar, self._members, self.skipped = None, [], []

    def drop(self) -> None:
        """Discard an incomplete shard."""
        if self._tar is not None:
            tar, self._tar = self._tar, None
            try:
                with suppress(OSError):  # close() writes the end mark, which fails on a full disk
                    tar.close()
            finally:
                self._part.unlink(missing_ok=True)
