"""Read hours-long audio files from beginning to end, in memory that does not depend on their length."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import torchaudio.functional
from jaxtyping import Float
from torch import Tensor

from asda_core.audio.checks import MAX_AMPLITUDE, amplitude_error, non_finite_error
from asda_core.audio.opening import open_audio
from asda_core.audio.reading import OVERLAP_PERIODS, mono_blocks, samples_per_period
from asda_core.config import ResampleAxis
from asda_core.errors import AudioError

STREAM_SAMPLES = 1 << 19
"""Samples per channel that are decoded at once: 12 s at 44.1 kHz, 2 MiB per channel."""


class LoadedSound:
    """Audio that is in memory."""

    def __init__(self, audio: Float[Tensor, " samples"]) -> None:
        self.audio = audio
        self.num_samples = len(audio)

    def mean(self) -> float:
        """Mean of all samples."""
        return float(self.audio.mean())

    def segment(self, start: int, stop: int) -> Float[Tensor, " segment"]:
        """Samples `start` to `stop`, or to the end."""
        return self.audio[start:stop]


class StreamedSound:
    """An audio file as mono at a given sample rate, of which only the requested segment is in memory.

    It is decoded twice: on construction, to count and check its samples, so that a file that is damaged in its last
    minute is rejected before its first one is processed; and as its segments are requested.

    Args:
        file: anything that libsndfile reads.
        sample_rate: target sample rate in Hz.
        resample_along: as in `audio.reading.read_audio`, whose samples these equal up to rounding.

    Attributes:
        num_samples: number of samples at the target rate.

    Raises:
        AudioError: as in `audio.reading.read_audio`, with the same messages.
    """

    def __init__(self, file: str | Path, sample_rate: int, resample_along: ResampleAxis = "time") -> None:
        self.file, self.sample_rate = Path(file), sample_rate
        with open_audio(file) as sound:
            stated, rate = len(sound), sound.samplerate
            self.wrong_axis = resample_along == "channels" and sound.channels > 1 and rate != sample_rate
        counted = self._count_samples(stated, sample_rate if self.wrong_axis else rate)
        if not counted:
            raise AudioError(f"cannot use {file}: it holds no samples from 0 s onwards.")
        same_rate = self.wrong_axis or rate == sample_rate
        self.num_samples = counted if same_rate else resampled_length(counted, rate, sample_rate)
        self._blocks, self._first, self._held = self._new_blocks(), 0, torch.empty(0)

    def mean(self) -> float:
        """Mean of all samples; decodes the file once more."""
        return sum(float(block.double().sum()) for block in self._new_blocks()) / self.num_samples

    def segment(self, start: int, stop: int) -> Float[Tensor, " segment"]:
        """Samples `start` to `stop`, or to the end; samples before `start` are discarded.

        It is cheap if no segment begins before the one that was requested last; otherwise the file is decoded again.

        Raises:
            AudioError: the file has become shorter or damaged since it was opened.
        """
        if start < self._first:
            self._blocks, self._first, self._held = self._new_blocks(), 0, torch.empty(0)
        stop = min(stop, self.num_samples)
        while self._first + len(self._held) < stop:
            block = next(self._blocks, None)
            if block is None:
                raise AudioError(f"cannot read {self.file}: it changed while being read.")
            num_dropped = min(max(0, start - self._first), len(self._held))
            self._held = torch.cat([self._held[num_dropped:], block])
            self._first += num_dropped
        return self._held[start - self._first : stop - self._first]

    def _count_samples(self, stated: int, row_rate: int) -> int:
        """Count the samples that the file actually contains, and check them."""
        counted, error = 0, None
        try:
            with open_audio(self.file) as sound:
                counted = checked_length(mono_blocks(sound, stated, row_rate, STREAM_SAMPLES), str(self.file))
        except AudioError as caught:
            error = caught
        if counted < stated and not _fits_memory(stated):
            raise AudioError(f"cannot use {self.file}: its header states {stated} samples, too many for memory.")
        if error:
            raise error
        return counted

    def _new_blocks(self) -> Iterator[Tensor]:
        """Yield all samples at the target rate, in blocks."""
        with open_audio(self.file) as sound:
            rate = sound.samplerate
            row_rate = self.sample_rate if self.wrong_axis else rate
            blocks = mono_blocks(sound, len(sound), row_rate, STREAM_SAMPLES)
            yield from blocks if self.wrong_axis else resampled_blocks(blocks, rate, self.sample_rate)


Sound = LoadedSound | StreamedSound


def resampled_length(num_samples: int, source_rate: int, sample_rate: int) -> int:
    """Number of samples that `audio.reading.resample` returns for `num_samples`."""
    old, new = samples_per_period(source_rate, sample_rate)
    return -(-num_samples * new // old)


def resampled_blocks(blocks: Iterable[Tensor], source_rate: int, sample_rate: int) -> Iterator[Float[Tensor, " block"]]:
    """`audio.reading.resample` for audio in blocks (S,) of any length; equal to it up to rounding.

    Each segment is resampled with more audio on both sides than the kernel spans; the excess is cut off afterwards::

        |context|  ready  |overlap|                    ready: a whole number of common periods of both rates
                 |context|  ready  |overlap|
    """
    if source_rate == sample_rate:
        yield from blocks
        return
    old, new = samples_per_period(source_rate, sample_rate)
    overlap = OVERLAP_PERIODS * old
    buffer, context, num_read, num_yielded = torch.empty(0), 0, 0, 0
    for block in blocks:
        buffer, num_read = torch.cat([buffer, block]), num_read + len(block)
        ready = (len(buffer) - context - overlap) // old * old
        if ready <= 0:
            continue
        resampled = torchaudio.functional.resample(buffer[: context + ready + overlap], old, new)
        yield resampled[context // old * new :][: ready // old * new]
        num_yielded += ready // old * new
        new_context = min(context + ready, overlap)
        buffer, context = buffer[context + ready - new_context :], new_context
    if (remaining := resampled_length(num_read, source_rate, sample_rate) - num_yielded) > 0:
        yield torchaudio.functional.resample(buffer, old, new)[context // old * new :][:remaining]


def checked_length(blocks: Iterable[Tensor], name: str) -> int:
    """Number of samples in all blocks, checked as by `audio.checks.check_samples` for the whole.

    Raises:
        AudioError: NaN, infinite or absurdly large samples.
    """
    total, num_bad, first, largest = 0, 0, 0, 0.0
    for block in blocks:
        low, high = (float(value) for value in torch.aminmax(block))  # NaN if any sample is
        if math.isfinite(low) and math.isfinite(high):
            largest = max(largest, -low, high)
        else:
            mask = ~torch.isfinite(block)
            first = first if num_bad else total + int(mask.nonzero()[0])
            num_bad += int(mask.sum())
        total += len(block)
    if num_bad:
        raise non_finite_error(name, num_bad, [first])
    if largest > MAX_AMPLITUDE:
        raise amplitude_error(name, largest)
    return total


def _fits_memory(num_samples: int) -> bool:
    """Whether `num_samples` fit into memory: damaged headers may state more."""
    try:
        torch.empty(num_samples)
    except RuntimeError:
        return False
    return True
