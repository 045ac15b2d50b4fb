"""How many clips streamed shards have, noted down by a run, so that going on need not read them again."""

import json
from collections.abc import Sequence
from pathlib import Path

from asda_core.data.sources import ShardStream
from asda_core.errors import AudioError
from asda_core.system.files import append_line

SHARDS_FILE = "shards.jsonl"
"""In the folder of a run."""


class Counts:
    """Clips of the shards that were read to their end, by this run or one before it in its folder."""

    def __init__(self, folder: Path | None) -> None:
        self.file = None if folder is None else folder / SHARDS_FILE
        self.known: dict[str, int] = {}
        if self.file is not None and self.file.exists():
            lines = self.file.read_text(encoding="utf-8").splitlines()
            self.known = dict(filter(None, map(_entry, lines)))

    def note(self, shard: ShardStream, count: int) -> None:
        """Keep the count of a shard, also in the file, to which several ranks append whole lines.

        Raises:
            AudioError: the shard had another count before.
        """
        new = shard.address not in self.known
        known = self.known.setdefault(shard.address, count)
        if known != count:
            raise AudioError(
                f"{shard.address} holds {count} clips and held {known}; a run resumes with the same shards only."
            )
        if self.file is not None and new:
            append_line(self.file, json.dumps({"shard": shard.address, "clips": count}))

    def total(self, shards: Sequence[ShardStream]) -> int | None:
        """Clips of all these shards, if all are known."""
        counts = [self.known.get(shard.address) for shard in shards]
        return None if None in counts else sum(count for count in counts if count is not None)


def _entry(line: str) -> tuple[str, int] | None:
    """Address and clips of a line; None of one that a kill or a full disk has cut off, and of an empty one."""
    try:
        entry = json.loads(line)
        return str(entry["shard"]), int(entry["clips"])
    except (ValueError, KeyError, TypeError):
        return None
