"""Clip counts of streamed shards, recorded by a run so that resuming need not read the shards again."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asda_core.audio_files.sources import ShardStream
from asda_core.errors import AudioError
from asda_core.system.files import append_line, read_json_lines

SHARDS_FILE = "shards.jsonl"
"""File in the folder of a run."""


class ClipCounts:
    """Clip counts of the shards that were read to their end, by this run or an earlier one in the same folder."""

    def __init__(self, folder: Path | None) -> None:
        self.file = None if folder is None else folder / SHARDS_FILE
        self.known: dict[str, int] = {}
        if self.file is not None:
            self.known = dict(filter(None, map(_entry, read_json_lines(self.file))))

    def record(self, shard: ShardStream, count: int) -> None:
        """Record the count of a shard, also in the file, to which several ranks append whole lines.

        Raises:
            AudioError: the shard had another count before.
        """
        new = shard.address not in self.known
        known = self.known.setdefault(shard.address, count)
        if known != count:
            raise AudioError(
                f"{shard.address} has {count} clips but had {known} before; a run can resume only with the same shards."
            )
        if self.file is not None and new:
            append_line(self.file, json.dumps({"shard": shard.address, "clips": count}))

    def total(self, shards: Sequence[ShardStream]) -> int | None:
        """Total number of clips of these shards; None if the count of any is unknown."""
        counts = [self.known.get(shard.address) for shard in shards]
        return None if None in counts else sum(count for count in counts if count is not None)


def _entry(entry: Any) -> tuple[str, int] | None:
    """Address and count from the content of a line; None if it holds something else."""
    try:
        return str(entry["shard"]), int(entry["clips"])
    except (ValueError, KeyError, TypeError):
        return None
