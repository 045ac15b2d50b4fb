"""Audio files -> batches of clips, the same for a step whenever it is asked for.

Which clips a step gets depends on the seed and the number of the step alone, so a run that goes on after a stop gets
what it would have got. An unreadable file is replaced by the next one in the order of its epoch, named and counted.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from asda_core.audio import crop_or_pad, length_and_rate, read_audio
from asda_core.config import DataConfig
from asda_core.errors import AudioError

WHOLE_FILE_SECONDS = 60.0
"""Files up to this length are decoded once and cached; of longer ones only the stretch in use is decoded."""
BYTES_PER_MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Clips:
    """A batch of clips of one length.

    Attributes:
        audio: filled with silence behind the sound.
        num_samples: of sound in each clip.
        numbers: which of the files each clip is of.
    """

    audio: Float[Tensor, "batch samples"]
    num_samples: Int[Tensor, " batch"]
    numbers: Int[Tensor, " batch"]


class ClipReader:
    """Stretches of audio files; what was decoded is kept as far as there is room."""

    def __init__(self, config: DataConfig, sample_rate: int) -> None:
        self.config = config
        self.sample_rate = sample_rate
        self.num_samples = round(config.clip_seconds * sample_rate)
        self.long_files: set[Path] = set()
        self._cache: dict[Path, Tensor] = {}
        self._room = config.cache_mebibytes * BYTES_PER_MEBIBYTE

    def stretch(self, file: Path, share: float) -> Float[Tensor, " samples"]:
        """The stretch that begins at `share` of what can be its beginning; shorter than a clip if the file is.

        Raises:
            AudioError: the file cannot be read, or has fewer samples than the config wants.
        """
        if file not in self._cache:
            seconds = self._seconds(file)
            if seconds > WHOLE_FILE_SECONDS:
                self.long_files.add(file)
                start = share * max(0.0, seconds - self.config.clip_seconds)
                return self._read(file, start, self.config.clip_seconds)[: self.num_samples]
        audio = self.whole(file)
        first = int(share * max(0, len(audio) - self.num_samples + 1))
        return audio[first : first + self.num_samples]

    def heard(self, file: Path) -> Float[Tensor, " samples"]:
        """What evaluation hears of a file: all of it, or its first stretch where training always takes that.

        Raises:
            AudioError: the file cannot be read, or has fewer samples than the config wants.
        """
        return self.stretch(file, 0.0) if self.config.crop == "first" else self.whole(file)

    def _seconds(self, file: Path) -> float:
        """Length of a file that is not too short."""
        num_frames, rate = length_and_rate(file)
        if num_frames < self.config.min_samples:
            raise AudioError(f"left out {file}: {num_frames} samples are fewer than {self.config.min_samples}.")
        return num_frames / rate

    def _read(self, file: Path, start_seconds: float = 0.0, seconds: float | None = None) -> Tensor:
        return read_audio(file, self.sample_rate, start_seconds, seconds, self.config.resample_along)

    def whole(self, file: Path) -> Float[Tensor, " samples"]:
        """All of a file, kept in memory if there is room.

        Raises:
            AudioError: the file cannot be read.
        """
        if file in self._cache:
            return self._cache[file]
        self._seconds(file)
        audio = self._read(file)
        size = audio.numel() * audio.element_size()
        if size <= self._room:
            self._room -= size
            self._cache[file] = audio
        return audio


class ClipBatches:
    """Batches of clips of one length from a list of files.

    Attributes:
        skipped: file -> what was wrong with it, in the order in which it was met.
    """

    def __init__(
        self,
        files: Sequence[Path],
        config: DataConfig,
        sample_rate: int,
        seed: int,
        order: Callable[[int], np.ndarray] | None = None,
        change: Callable[[Tensor, int], Tensor] | None = None,
    ) -> None:
        """What to draw from.

        Args:
            files: of audio.
            config: how clips are cut.
            sample_rate: in Hz.
            seed: of order and crops.
            order: epoch -> numbers of the files in their order; every epoch has as many. None shuffles all.
            change: (samples of a clip, its number in the endless sequence) -> as many samples: augmentation.
        """
        self.files = list(files)
        self.config = config
        self.reader = ClipReader(config, sample_rate)
        self.num_samples = self.reader.num_samples
        self.seed = seed
        self.skipped: dict[Path, str] = {}
        self._unreadable: set[Path] = set()
        self._ordered = order or self._shuffled
        self._change = change
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))
        self._lock = threading.Lock()
        self.clips_per_epoch = len(self._ordered(0)) if self.files else 0

    def batch(self, step: int) -> Clips:
        """The clips of update `step` (from 0).

        Raises:
            AudioError: no file is readable.
        """
        if not self.files:
            raise AudioError("no audio files to train on.")
        with self._lock:
            first = step * self.config.batch_size
            found = [self._clip(number) for number in range(first, first + self.config.batch_size)]
        filled = [crop_or_pad(stretch, self.num_samples) for stretch, _ in found]
        lengths = torch.tensor([len(stretch) for stretch, _ in found])
        return Clips(torch.stack(filled), lengths, torch.tensor([number for _, number in found]))

    def _clip(self, number: int) -> tuple[Tensor, int]:
        """Clip `number` of the endless sequence, from the next readable file, and which file that is."""
        epoch, place = divmod(number, self.clips_per_epoch)
        order = self._epoch_order(epoch)
        share = float(np.random.default_rng([self.seed, number]).random()) if self.config.crop == "random" else 0.0
        for step in range(len(order)):
            chosen = int(order[(place + step) % len(order)])
            file = self.files[chosen]
            if file in self._unreadable:
                continue
            try:
                stretch = self.reader.stretch(file, share)
                return stretch if self._change is None else self._change(stretch, number), chosen
            except AudioError as error:
                self.skipped.setdefault(file, str(error))
                if file not in self.reader.long_files:  # another stretch of it may be good: which one must not matter
                    self._unreadable.add(file)
        reasons = "; ".join(list(self.skipped.values())[:3])
        raise AudioError(f"none of the {len(self.files)} audio files is readable. The first ones: {reasons}")

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if self._order[0] != epoch:
            self._order = (epoch, self._ordered(epoch))
        return self._order[1]

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch, 0]).permutation(len(self.files))
