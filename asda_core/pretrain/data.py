"""Audio files -> batches of clips, the same for a step whenever it is asked for.

Which clips a step gets depends on the seed and the number of the step alone, so a run that goes on after a stop gets
what it would have got. An unreadable file is replaced by the next one in the order of its epoch, named and counted.
"""

import threading
from collections.abc import Sequence
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
    """A batch of clips of one length, and how many samples of each are sound (the rest is silence)."""

    audio: Float[Tensor, "batch samples"]
    num_samples: Int[Tensor, " batch"]


class ClipBatches:
    """Batches of clips of one length from a list of files.

    Attributes:
        skipped: file -> what was wrong with it, in the order in which it was met.
    """

    def __init__(self, files: Sequence[Path], config: DataConfig, sample_rate: int, seed: int) -> None:
        self.files = list(files)
        self.config = config
        self.sample_rate = sample_rate
        self.num_samples = round(config.clip_seconds * sample_rate)
        self.seed = seed
        self.skipped: dict[Path, str] = {}
        self._unreadable: set[Path] = set()
        self._long: set[Path] = set()
        self._cache: dict[Path, Tensor] = {}
        self._room = config.cache_mebibytes * BYTES_PER_MEBIBYTE
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))
        self._lock = threading.Lock()

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
        filled = [crop_or_pad(stretch, self.num_samples) for stretch in found]
        return Clips(torch.stack(filled), torch.tensor([len(stretch) for stretch in found]))

    def _clip(self, number: int) -> Tensor:
        """Clip `number` of the endless sequence, from the next readable file."""
        epoch, place = divmod(number, len(self.files))
        order = self._epoch_order(epoch)
        share = float(np.random.default_rng([self.seed, number]).random()) if self.config.crop == "random" else 0.0
        for step in range(len(self.files)):
            file = self.files[order[(place + step) % len(order)]]
            if file in self._unreadable:
                continue
            try:
                return self._stretch(file, share)
            except AudioError as error:
                self.skipped.setdefault(file, str(error))
                if file not in self._long:  # another stretch of a long file may be good: which one must not matter
                    self._unreadable.add(file)
        reasons = "; ".join(list(self.skipped.values())[:3])
        raise AudioError(f"none of the {len(self.files)} audio files is readable. The first ones: {reasons}")

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self.seed, epoch, 0]).permutation(len(self.files)))
        return self._order[1]

    def _stretch(self, file: Path, share: float) -> Tensor:
        """The stretch that begins at `share` of what can be its beginning; shorter than a clip if the file is."""
        if file not in self._cache:
            num_frames, rate = length_and_rate(file)
            if num_frames < self.config.min_samples:
                raise AudioError(f"left out {file}: {num_frames} samples are fewer than {self.config.min_samples}.")
            seconds = num_frames / rate
            if seconds > WHOLE_FILE_SECONDS:
                self._long.add(file)
                start = share * max(0.0, seconds - self.config.clip_seconds)
                return self._read(file, start, self.config.clip_seconds)[: self.num_samples]
        audio = self._whole(file)
        first = int(share * max(0, len(audio) - self.num_samples + 1))
        return audio[first : first + self.num_samples]

    def _read(self, file: Path, start_seconds: float = 0.0, seconds: float | None = None) -> Tensor:
        return read_audio(file, self.sample_rate, start_seconds, seconds, self.config.resample_along)

    def _whole(self, file: Path) -> Tensor:
        if file in self._cache:
            return self._cache[file]
        audio = self._read(file)
        size = audio.numel() * audio.element_size()
        if size <= self._room:
            self._room -= size
            self._cache[file] = audio
        return audio
