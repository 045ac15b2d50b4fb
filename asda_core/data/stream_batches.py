"""Batches from streamed shards; as with files, the batch of a step is the same whenever it is requested.

A stream has as many parts as the run had processes when it began, and every batch takes equally many clips from each.
Every epoch orders the shards anew, and part p of P reads every P-th of them, so that no two parts read the same shard
in an epoch. Clips are shuffled within blocks of `data.shuffle_clips`; the order within a block depends only on seed,
epoch, part and block:

    shards of a part | 000007.tar | 000002.tar | 000005.tar |
    blocks           | 0 (shuffled) | 1 and the rest (shuffled) | 0 of the next epoch, ...

A process reads the parts that its share of a batch comes from: its own part, or, if the run resumes with another
number of processes, several parts or one that another process reads too; so the batches stay the same. A resumed run
skips the clips that it has used without decoding them; shards with a known number of clips are not even read. The
remainder of an epoch, less than a block, is merged into the last block, so that a broken clip can be replaced by
others. Memory holds at most four undecoded blocks per part: two that a batch takes from, and two being read.
"""

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from asda_core.audio_files.sources import AudioList, ShardStream
from asda_core.config import DataConfig, require
from asda_core.data.clip_batches import Batches, Candidate, ClipBatches
from asda_core.data.clip_counts import ClipCounts
from asda_core.data.shard_streams import RunningCommands, StreamMember, read_stream
from asda_core.errors import AudioError


@dataclass
class ShuffleBlock:
    """Clips that are shuffled together.

    Attributes:
        first: number of the first clip in the part's endless sequence.
        clips: clips with the number of their shard, in the order of the stream until they are shuffled.
        problems: (file, message) of problems with the shards read for the block.
    """

    first: int
    clips: list[tuple[StreamMember, int]] = field(default_factory=list)
    problems: list[tuple[Path, str]] = field(default_factory=list)

    @property
    def end(self) -> int:
        """Number of the first clip after the block."""
        return self.first + len(self.clips)


class StreamBatches(Batches):
    """Batches of clips of one length from streamed shards. Request steps in order: going back restarts the stream."""

    def __init__(
        self,
        shards: Sequence[ShardStream],
        config: DataConfig,
        sample_rate: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        folder: Path | None = None,
        parts: int | None = None,
    ) -> None:
        """Set up the parts of the stream.

        Args:
            shards: of all ranks.
            config: how clips are cut; `batch_size` is that of all ranks together.
            sample_rate: in Hz.
            seed: of shuffling and crops.
            rank, world_size: index of the share that is made, of how many equal shares of every batch.
            folder: of the run, where the numbers of clips of the shards are recorded.
            parts: number of parts of the stream; default: one per rank.

        Raises:
            ConfigError: the batch size is not divisible by `world_size` or `parts`, or there are fewer shards than
                parts.
        """
        super().__init__(config, sample_rate, seed, None, rank, world_size)
        parts = parts or world_size
        require(
            config.batch_size % parts == 0, f"data.batch_size {config.batch_size} is not a multiple of {parts} parts."
        )
        require(len(shards) >= parts, f"{len(shards)} streamed shards are too few for {parts} parts; each needs one.")
        self.clips_per_part = config.batch_size // parts
        counts, self._size = ClipCounts(folder), 0
        self.parts = [StreamPart(shards, config.shuffle_clips, seed, part, parts, counts) for part in range(parts)]

    def close(self) -> None:
        """Stop reading."""
        for part in self.parts:
            part.close()

    def abort(self) -> None:
        """Abort reading, even if a command stalls; call `close` afterwards."""
        for part in self.parts:
            part.abort()

    def _candidates(self, number: int) -> Iterator[Candidate]:
        """The clip due in its block, followed by the others of the block as replacements."""
        step, index = divmod(number, self.config.batch_size)
        part_index, index = divmod(index, self.clips_per_part)
        part = self.parts[part_index]
        block = part.block_of(step * self.clips_per_part + index)
        self._record_problems(part.problems)
        part.problems.clear()
        self._size = len(block.clips)
        return self._from(block.clips, step * self.clips_per_part + index - block.first)

    @staticmethod
    def _from(sounds: Sequence[tuple[StreamMember, int]], index: int) -> Iterator[Candidate]:
        for step in range(len(sounds)):
            member, shard = sounds[(index + step) % len(sounds)]
            yield Candidate(member.file, member.content, shard)

    def _whole(self) -> str:
        return f"{self._size} clips of a shuffle block of the stream"


class StreamPart:
    """The endless sequence of clips of every P-th shard, of which one block at a time is current.

    Attributes:
        problems: (file, message) of problems with shards, until the caller takes them.
    """

    def __init__(
        self, shards: Sequence[ShardStream], size: int, seed: int, part: int, parts: int, counts: ClipCounts
    ) -> None:
        self.shards, self.size, self.seed = list(shards), size, seed
        self.part, self.parts, self.counts = part, parts, counts
        self.problems: list[tuple[Path, str]] = []
        self._reading = ThreadPoolExecutor(1, "shards")
        self._blocks: Iterator[ShuffleBlock] | None = None
        self._next: Future[ShuffleBlock] | None = None
        self._current = ShuffleBlock(0)
        self._closed, self._commands = False, RunningCommands()

    def abort(self) -> None:
        """Abort reading."""
        self._closed = True
        self._commands.abort()

    def close(self) -> None:
        """Stop reading."""
        self._closed = True
        if self._next is not None:
            self._next.exception()
        self._blocks, self._next, self._current = None, None, ShuffleBlock(0)
        self._closed, self._commands = False, RunningCommands()

    def block_of(self, number: int) -> ShuffleBlock:
        """Return the block that contains this clip of the sequence."""
        if self._blocks is None or number < self._current.first:
            self.close()
            self._blocks = self._read(number)
        while number >= self._current.end:
            self._advance(self._blocks)
        return self._current

    def _advance(self, blocks: Iterator[ShuffleBlock]) -> None:
        """Move on to the next block, and start reading the one after it."""
        pending = self._next or self._reading.submit(next, blocks)
        self._next = None
        try:
            self._current = pending.result()
        except BaseException:
            self.close()
            raise
        self.problems += self._current.problems  # also of a block without clips, which is skipped
        self._next = self._reading.submit(next, blocks)

    def _read(self, start: int) -> Iterator[ShuffleBlock]:
        """Yield the blocks of the endless sequence, from the one with clip `start` on."""
        epoch, first = 0, 0
        while True:
            order = np.random.default_rng([self.seed, epoch, 0]).permutation(len(self.shards))[self.part :: self.parts]
            total = self.counts.total([self.shards[number] for number in order])
            if total is None or first + total > start:
                total = yield from self._epoch(epoch, order, first, max(0, start - first))
            if self.counts.total(self.shards) == 0:
                raise AudioError(f"no audio in the {len(self.shards)} streamed shards.")
            first, epoch = first + total, epoch + 1

    def _epoch(self, epoch: int, order: np.ndarray, first: int, start: int) -> Generator[ShuffleBlock, None, int]:
        """Yield the blocks of an epoch from the one with its clip `start` on; return its number of clips."""
        size = self.size
        passed, skip = 0, max(0, start // size - 1) * size  # its block may begin one `size` earlier
        problems: list[tuple[Path, str]] = []
        block = ShuffleBlock(first + skip, problems=problems)
        for number in order:
            shard = self.shards[number]
            known = self.counts.known.get(shard.address)
            if known is not None and passed + known <= skip:
                passed += known
                continue
            shard_start = passed
            for member in read_stream(shard, problems, self._commands):
                if self._closed:
                    raise AudioError("the stream was closed.")
                passed += 1
                if passed > skip:
                    block.clips.append((member, int(number)))
                if len(block.clips) == 2 * size:
                    remaining = ShuffleBlock(block.first + size, block.clips[size:], problems)
                    del block.clips[size:]
                    yield self._shuffled(block, epoch, (block.first - first) // size)
                    block = remaining
            self.counts.record(shard, passed - shard_start)
        if block.clips or block.problems:
            yield self._shuffled(block, epoch, (block.first - first) // size)
        return passed

    def _shuffled(self, block: ShuffleBlock, epoch: int, number: int) -> ShuffleBlock:
        seeds = [self.seed, epoch, 1 + self.part, 1 + number]  # numpy ignores trailing zeros
        order = np.random.default_rng(seeds).permutation(len(block.clips))
        shuffled = ShuffleBlock(block.first, [block.clips[place] for place in order], list(block.problems))
        block.problems.clear()
        return shuffled


def open_batches(
    data: AudioList,
    config: DataConfig,
    sample_rate: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    folder: Path | None = None,
    parts: int | None = None,
) -> Batches:
    """Return the batches of a run, from files or from streams; arguments as for `StreamBatches`.

    Raises:
        ConfigError: the batch size is not divisible by `world_size` or `parts`, or there are fewer shards than parts.
    """
    streams = [source for source in data if isinstance(source, ShardStream)]
    if streams:
        return StreamBatches(streams, config, sample_rate, seed, rank, world_size, folder, parts)
    files = [source for source in data if isinstance(source, Path)]
    return ClipBatches(files, config, sample_rate, seed, rank=rank, world_size=world_size)
