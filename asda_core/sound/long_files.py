"""Read hours-long audio files from beginning to end, in memory that does not depend on their length."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import torchaudio.functional
from jaxtyping import Float
from torch import Tensor

from asda_core.audio import MAX_AMPLITUDE, OVERLAP_PERIODS, absurd, mono_blocks, not_finite, opened, periods
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

    def between(self, start: int, stop: int) -> Float[Tensor, " stretch"]:
        """Samples `start` to `stop`, or to the end."""
        return self.audio[start:stop]


class StreamedSound:
    """An audio file as mono at a given sample rate, of which only the requested segment is in memory.

    It is decoded twice: on construction, to count and check its samples, so that a file that is damaged in its last
    minute is rejected before its first one is processed; and as its segments are requested.

    Args:
        file: anything that libsndfile reads.
        sample_rate: target sample rate in Hz.
        resample_along: as in `audio.read_audio`, whose samples these equal up to rounding.

    Attributes:
        num_samples: number of samples at the target rate.

    Raises:
        AudioError: as in `audio.read_audio`, with the same messages.
    """

    def __init__(self, file: str | Path, sample_rate: int, resample_along: ResampleAxis = "time") -> None:
        self.file, self.sample_rate = Path(file), sample_rate
        with opened(file) as sound:
            promised, rate = len(sound), sound.samplerate
            self.wrong_axis = resample_along == "channels" and sound.channels > 1 and rate != sample_rate
        found = self._counted(promised, sample_rate if self.wrong_axis else rate)
        if not found:
            raise AudioError(f"cannot use {file}: it holds no samples from 0 s on.")
        same = self.wrong_axis or rate == sample_rate
        self.num_samples = found if same else resampled_length(found, rate, sample_rate)
        self._blocks, self._first, self._held = self._new_blocks(), 0, torch.empty(0)

    def mean(self) -> float:
        """Mean of all samples; decodes the file once more."""
        return sum(float(block.double().sum()) for block in self._new_blocks()) / self.num_samples

    def between(self, start: int, stop: int) -> Float[Tensor, " stretch"]:
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
                raise AudioError(f"cannot read {self.file}: it has changed while it was read.")
            behind = min(max(0, start - self._first), len(self._held))
            self._held = torch.cat([self._held[behind:], block])
            self._first += behind
        return self._held[start - self._first : stop - self._first]

    def _counted(self, promised: int, row_rate: int) -> int:
        """Count the samples that the file really holds, and check them."""
        found, error = 0, None
        try:
            with opened(self.file) as sound:
                found = checked_length(mono_blocks(sound, promised, row_rate, STREAM_SAMPLES), str(self.file))
        except AudioError as raised:
            error = raised
        if found < promised and not _fits(promised):
            raise AudioError(f"cannot use {self.file}: its header tells of {promised} samples.")
        if error:
            raise error
        return found

    def _new_blocks(self) -> Iterator[Tensor]:
        """Yield all samples at the target rate, in blocks."""
        with opened(self.file) as sound:
            rate = sound.samplerate
            row_rate = self.sample_rate if self.wrong_axis else rate
            blocks = mono_blocks(sound, len(sound), row_rate, STREAM_SAMPLES)
            yield from blocks if self.wrong_axis else resampled_blocks(blocks, rate, self.sample_rate)


Sound = LoadedSound | StreamedSound


def resampled_length(num_samples: int, rate: int, sample_rate: int) -> int:
    """Number of samples that `audio.resample` returns for `num_samples`."""
    old, new = periods(rate, sample_rate)
    return -(-num_samples * new // old)


def resampled_blocks(blocks: Iterable[Tensor], rate: int, sample_rate: int) -> Iterator[Float[Tensor, " block"]]:
    """`audio.resample` for audio in blocks (S,) of any length; equal to it up to rounding.

    Each segment is resampled with more audio on both sides than the kernel spans; the excess is cut off afterwards::

        |context|  ready  |overlap|                    ready: a whole number of common periods of both rates
                 |context|  ready  |overlap|
    """
    if rate == sample_rate:
        yield from blocks
        return
    old, new = periods(rate, sample_rate)
    overlap = OVERLAP_PERIODS * old
    held, context, taken, given = torch.empty(0), 0, 0, 0
    for block in blocks:
        held, taken = torch.cat([held, block]), taken + len(block)
        ready = (len(held) - context - overlap) // old * old
        if ready <= 0:
            continue
        made = torchaudio.functional.resample(held[: context + ready + overlap], old, new)
        yield made[context // old * new :][: ready // old * new]
        given += ready // old * new
        kept = min(context + ready, overlap)
        held, context = held[context + ready - kept :], kept
    if (left := resampled_length(taken, rate, sample_rate) - given) > 0:
        yield torchaudio.functional.resample(held, old, new)[context // old * new :][:left]


def checked_length(blocks: Iterable[Tensor], name: str) -> int:
    """Number of samples in all blocks, checked as by `audio.check_samples` for the whole.

    Raises:
        AudioError: NaN, infinite or absurdly large samples.
    """
    total, bad, first, largest = 0, 0, 0, 0.0
    for block in blocks:
        low, high = (float(edge) for edge in torch.aminmax(block))  # NaN if any sample is
        if math.isfinite(low) and math.isfinite(high):
            largest = max(largest, -low, high)
        else:
            wrong = ~torch.isfinite(block)
            first = first if bad else total + int(wrong.nonzero()[0])
            bad += int(wrong.sum())
        total += len(block)
    if bad:
        raise not_finite(name, bad, [first])
    if largest > MAX_AMPLITUDE:
        raise absurd(name, largest)
    return total


def _fits(num_samples: int) -> bool:
    """Whether `num_samples` fit into memory: damaged headers may state more."""
    try:
        torch.empty(num_samples)
    except RuntimeError:
        return False
    return True
