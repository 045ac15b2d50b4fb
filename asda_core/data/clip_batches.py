"""Audio files -> batches of clips, a deterministic function of the step.

The clips of a step depend only on the seed and the number of the step, so a resumed run gets the same clips as an
uninterrupted one, with any number of reader threads. An unreadable file is replaced by the next one in the order of
its epoch, and is reported and counted. One that is missing, or whose disk fails, is tried again whenever it is due.

    step                 0                       1              batch_size 4, two ranks
    clip        | 0   1 | 2   3 | 4   5 | 6   7 | ...
    rank          0   0   1   1   0   0   1   1
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from asda_core.config import DataConfig, require
from asda_core.data.clip_reader import ClipReader
from asda_core.errors import AudioError, FileAccessError, first_reasons
from asda_core.system.memory import report_out_of_memory


@dataclass(frozen=True)
class Clips:
    """A batch of clips of one length.

    Attributes:
        audio: waveforms, zero-padded at the end.
        num_samples: length of each waveform before padding.
        source_indices: index of the file, or of the streamed shard, that each clip comes from.
    """

    audio: Float[Tensor, "batch samples"]
    num_samples: Int[Tensor, " batch"]
    source_indices: Int[Tensor, " batch"]


class Candidate(NamedTuple):
    """A file that a clip may come from: its name, its bytes if already available, and its number."""

    file: Path
    content: bytes | None
    source_index: int


class FoundClip(NamedTuple):
    """Length of a clip, number of its file, and the unreadable files before it: (file, reason, permanent)."""

    num_samples: int
    source_index: int
    failures: list[tuple[Path, str, bool]]


class Batches(ABC):
    """Batches of clips of one length, or one rank's share of each batch.

    Attributes:
        skipped: file -> reason why it was skipped, in order of occurrence.
    """

    def __init__(
        self,
        config: DataConfig,
        sample_rate: int,
        seed: int,
        transform: Callable[[Tensor, int], Tensor] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        require(0 <= rank < world_size, f"the rank must lie in 0..{world_size - 1}, not {rank}.")
        size = config.batch_size
        require(
            size % world_size == 0,
            f"data.batch_size {size}, of all processes, must be a multiple of their number, {world_size}.",
        )
        self.config = config
        self.reader = ClipReader(config, sample_rate)
        self.num_samples = self.reader.num_samples
        self.seed = seed
        self.skipped: dict[Path, str] = {}
        self.rank, self.world_size, self.clips_per_rank = rank, world_size, size // world_size
        self._transform = transform
        self._unreadable: set[Path] = set()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(config.workers, "clips") if config.workers > 1 else None

    def batch(self, step: int) -> Clips:
        """Return the clips of update `step` (from 0), or `clips_per_rank` of them from `rank * clips_per_rank` on.

        Raises:
            AudioError: no file is readable.
        """
        with self._lock:
            first = step * self.config.batch_size + self.rank * self.clips_per_rank
            numbers = range(first, first + self.clips_per_rank)
            candidates = [self._candidates(number) for number in numbers]
            apply = map if self._pool is None else self._pool.map
            with report_out_of_memory(f"the audio of {self.clips_per_rank} clips", "lower data.batch_size"):
                audio = torch.empty(self.clips_per_rank, self.num_samples)
            clips = list(apply(self._clip, numbers, candidates, audio))
            self._record_failures(clips)
        lengths = torch.tensor([clip.num_samples for clip in clips])
        return Clips(audio, lengths, torch.tensor([clip.source_index for clip in clips]))

    def abort(self) -> None:  # noqa: B027
        """Abort reads that may never finish; `close` is called next."""

    def close(self) -> None:  # noqa: B027
        """Close whatever is open; requesting another batch opens it again."""

    @abstractmethod
    def _candidates(self, number: int) -> Iterator[Candidate]:
        """Iterate over the candidates for clip `number` of the endless sequence; the first readable one is used."""

    def _clip(self, number: int, candidates: Iterator[Candidate], row: Tensor) -> FoundClip:
        """Fill a row of a batch; independent of the other clips, so the order of the threads does not matter."""
        fraction = float(np.random.default_rng([self.seed, number]).random()) if self.config.crop == "random" else 0.0
        failures: list[tuple[Path, str, bool]] = []
        for file, content, source in candidates:
            if file in self._unreadable:
                continue
            try:
                crop = self.reader.read_crop(file, fraction, content)
                row[: len(crop)] = crop if self._transform is None else self._transform(crop, number)
                row[len(crop) :] = 0.0
                return FoundClip(len(crop), source, failures)
            except AudioError as error:  # a long file stays: another crop may be good, in any order of reading
                permanent = file not in self.reader.long_files and not isinstance(error, FileAccessError)
                failures.append((file, str(error), permanent))
        reasons = first_reasons([*self.skipped.values(), *(reason for _, reason, _ in failures)])
        raise AudioError(f"none of the {self._whole()} is readable. First reasons: {reasons}")

    @abstractmethod
    def _whole(self) -> str:
        """Number and kind of the sources, for the message that none of them is readable."""

    def _record_failures(self, clips: Sequence[FoundClip]) -> None:
        """Record what could not be read, in the order of the clips."""
        failures = [failure for clip in clips for failure in clip.failures]
        self._record_problems([(file, reason) for file, reason, _ in failures])
        self._unreadable |= {file for file, _, permanent in failures if permanent}

    def _record_problems(self, problems: Sequence[tuple[Path, str]]) -> None:
        if problems:  # a new dict, since another thread may be iterating over the old one
            skipped = dict(self.skipped)
            for file, reason in problems:
                skipped.setdefault(file, reason)
            self.skipped = skipped


class ClipBatches(Batches):
    """Batches of clips of one length from a list of files."""

    def __init__(
        self,
        files: Sequence[Path],
        config: DataConfig,
        sample_rate: int,
        seed: int,
        order: Callable[[int], np.ndarray] | None = None,
        transform: Callable[[Tensor, int], Tensor] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Set the files and how clips are drawn from them.

        Args:
            files: audio files, also those in shards.
            config: how clips are cropped; `batch_size` is that of all ranks together.
            sample_rate: in Hz.
            seed: of order and crops.
            order: epoch -> indices of the files in order, equally many in every epoch. None shuffles all files.
            transform: augmentation: (waveform of a clip, its number in the endless sequence) -> waveform as long.
            rank, world_size: index of this rank and number of ranks, which share every batch equally.

        Raises:
            ConfigError: the batch cannot be divided equally among the ranks.
        """
        super().__init__(config, sample_rate, seed, transform, rank, world_size)
        self.files = list(files)
        self._ordered = order or self._shuffled
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))
        self.clips_per_epoch = len(self._ordered(0)) if self.files else 0

    def _candidates(self, number: int) -> Iterator[Candidate]:
        """Iterate over the scheduled file of the epoch and those after it."""
        if not self.files:
            raise AudioError("no audio files to train on.")
        epoch, position = divmod(number, self.clips_per_epoch)
        return self._from(position, self._epoch_order(epoch))

    def _from(self, position: int, order: np.ndarray) -> Iterator[Candidate]:
        for offset in range(len(order)):
            number = int(order[(position + offset) % len(order)])
            yield Candidate(self.files[number], None, number)

    def _whole(self) -> str:
        return f"{len(self.files)} audio files"

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if self._order[0] != epoch:
            self._order = (epoch, self._ordered(epoch))
        return self._order[1]

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch, 0]).permutation(len(self.files))
