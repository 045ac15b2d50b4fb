"""Batches from streamed shards; the same for a step whenever it is asked for, as those from files.

A stream has as many parts as the run had processes when it began, and every batch takes equally many clips of each.
Every epoch has the shards in an order of its own, and part p of P reads every P-th of them, so no two parts read one
shard in an epoch. Clips are shuffled within blocks of `data.shuffle_clips`; the order within one depends on seed,
epoch, part and block alone:

    shards of a part | 000007.tar | 000002.tar | 000005.tar |
    blocks           | 0 (shuffled) | 1 and the rest (shuffled) | 0 of the next epoch, ...

A process reads the parts that its share of a batch is of: its own, and where another number of processes goes on with
the run, several, or one that another reads too; so the batches stay what they were. A run that goes on passes over
what it had, undecoded; shards whose number of clips is known are not even read. The rest of an epoch, less than a
block, goes with the last, so that a broken clip has others to take its place. Memory holds four blocks of a part at
most, undecoded: two that a batch takes from, and two that are being read.
"""

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from asda_core.config import DataConfig, require
from asda_core.data.counts import Counts
from asda_core.data.shard_streams import Commands, StreamMember, read_stream
from asda_core.data.sources import AudioList, ShardStream
from asda_core.errors import AudioError
from asda_core.pretrain.data import Batches, Candidate, ClipBatches


@dataclass
class ShuffleBlock:
    """Clips that are shuffled together.

    Attributes:
        first: number of the first in the part's endless sequence.
        sounds: with the number of their shard, in the order of the stream until they are shuffled.
        trouble: what was wrong with shards read for it.
    """

    first: int
    sounds: list[tuple[StreamMember, int]] = field(default_factory=list)
    trouble: list[tuple[Path, str]] = field(default_factory=list)

    @property
    def end(self) -> int:
        """Number of the first clip behind it."""
        return self.first + len(self.sounds)


class StreamBatches(Batches):
    """Batches of clips of one length from streamed shards. Ask for steps in order: another begins the stream anew."""

    def __init__(
        self,
        shards: Sequence[ShardStream],
        config: DataConfig,
        sample_rate: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        folder: Path | None = None,
        parts: int | None = None,
    ) -> None:
        """What to draw from.

        Args:
            shards: of all ranks.
            config: how clips are cut; `batch_size` is that of all ranks together.
            sample_rate: in Hz.
            seed: of orders and crops.
            rank, world: which of how many equal parts of every batch is made.
            folder: of the run, where the shards' numbers of clips are kept.
            parts: of the stream; default: one for each rank.

        Raises:
            ConfigError: the batch cannot be parted so, or there are fewer shards than parts.
        """
        super().__init__(config, sample_rate, seed, None, rank, world)
        parts = parts or world
        require(config.batch_size % parts == 0, f"data.batch_size {config.batch_size} is no multiple of {parts} parts.")
        require(len(shards) >= parts, f"{len(shards)} streamed shards are too few for {parts} parts; one for each.")
        self.of_part = config.batch_size // parts
        counts, self._size = Counts(folder), 0
        self.parts = [StreamPart(shards, config.shuffle_clips, seed, part, parts, counts) for part in range(parts)]

    def close(self) -> None:
        """Stop reading."""
        for part in self.parts:
            part.close()

    def end(self) -> None:
        """Give up what is being read, also where a command stalls; `close` comes next."""
        for part in self.parts:
            part.end()

    def _candidates(self, number: int) -> Iterator[Candidate]:
        """The clip whose turn it is in its block, and those behind it."""
        step, place = divmod(number, self.config.batch_size)
        number, place = divmod(place, self.of_part)
        part = self.parts[number]
        block = part.block_of(step * self.of_part + place)
        self._note_trouble(part.trouble)
        part.trouble.clear()
        self._size = len(block.sounds)
        return self._from(block.sounds, step * self.of_part + place - block.first)

    @staticmethod
    def _from(sounds: Sequence[tuple[StreamMember, int]], place: int) -> Iterator[Candidate]:
        for step in range(len(sounds)):
            sound, shard = sounds[(place + step) % len(sounds)]
            yield Candidate(sound.file, sound.content, shard)

    def _whole(self) -> str:
        return f"{self._size} clips of a block of the stream"


class StreamPart:
    """The endless sequence of clips of every P-th shard, a block of it in memory.

    Attributes:
        trouble: what was wrong with shards, until somebody takes it.
    """

    def __init__(
        self, shards: Sequence[ShardStream], size: int, seed: int, part: int, parts: int, counts: Counts
    ) -> None:
        self.shards, self.size, self.seed = list(shards), size, seed
        self.part, self.parts, self.counts = part, parts, counts
        self.trouble: list[tuple[Path, str]] = []
        self._reading = ThreadPoolExecutor(1, "shards")
        self._blocks: Iterator[ShuffleBlock] | None = None
        self._next: Future[ShuffleBlock] | None = None
        self._current = ShuffleBlock(0)
        self._closed, self._commands = False, Commands()

    def end(self) -> None:
        """Give up what is being read."""
        self._closed = True
        self._commands.end()

    def close(self) -> None:
        """Stop reading."""
        self._closed = True
        if self._next is not None:
            self._next.exception()
        self._blocks, self._next, self._current = None, None, ShuffleBlock(0)
        self._closed, self._commands = False, Commands()

    def block_of(self, number: int) -> ShuffleBlock:
        """The block with that clip of the sequence."""
        if self._blocks is None or number < self._current.first:
            self.close()
            self._blocks = self._read(number)
        while number >= self._current.end:
            self._advance(self._blocks)
        return self._current

    def _advance(self, blocks: Iterator[ShuffleBlock]) -> None:
        """To the next block, while the one behind it is read."""
        waiting = self._next or self._reading.submit(next, blocks)
        self._next = None
        try:
            self._current = waiting.result()
        except BaseException:
            self.close()
            raise
        self.trouble += self._current.trouble  # also of a block without a clip, which is passed over
        self._next = self._reading.submit(next, blocks)

    def _read(self, start: int) -> Iterator[ShuffleBlock]:
        """Blocks of the endless sequence, from the one with clip `start` on."""
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
        """Blocks of an epoch from that with its clip `start` on; returns how many clips it has."""
        size = self.size
        passed, skip = 0, max(0, start // size - 1) * size  # the block of a clip may have begun one earlier
        trouble: list[tuple[Path, str]] = []
        block = ShuffleBlock(first + skip, trouble=trouble)
        for number in order:
            shard = self.shards[number]
            known = self.counts.known.get(shard.address)
            if known is not None and passed + known <= skip:
                passed += known
                continue
            before = passed
            for sound in read_stream(shard, trouble, self._commands):
                if self._closed:
                    raise AudioError("the stream was closed.")
                passed += 1
                if passed > skip:
                    block.sounds.append((sound, int(number)))
                if len(block.sounds) == 2 * size:
                    rest = ShuffleBlock(block.first + size, block.sounds[size:], trouble)
                    del block.sounds[size:]
                    yield self._shuffled(block, epoch, (block.first - first) // size)
                    block = rest
            self.counts.note(shard, passed - before)
        if block.sounds or block.trouble:
            yield self._shuffled(block, epoch, (block.first - first) // size)
        return passed

    def _shuffled(self, block: ShuffleBlock, epoch: int, number: int) -> ShuffleBlock:
        words = [self.seed, epoch, 1 + self.part, 1 + number]  # numpy takes zeros behind the last word for none
        order = np.random.default_rng(words).permutation(len(block.sounds))
        made = ShuffleBlock(block.first, [block.sounds[place] for place in order], list(block.trouble))
        block.trouble.clear()
        return made


def open_clips(
    data: AudioList,
    config: DataConfig,
    sample_rate: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
    folder: Path | None = None,
    parts: int | None = None,
) -> Batches:
    """The batches of a run, from files or from streams; arguments as those of `StreamBatches`.

    Raises:
        ConfigError: the batch cannot be parted so, or there are fewer streamed shards than parts.
    """
    streams = [source for source in data if isinstance(source, ShardStream)]
    if streams:
        return StreamBatches(streams, config, sample_rate, seed, rank, world, folder, parts)
    files = [source for source in data if isinstance(source, Path)]
    return ClipBatches(files, config, sample_rate, seed, rank=rank, world=world)
