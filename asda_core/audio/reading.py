"""Read audio files as mono float32 waveforms at one sample rate; crop and pad."""

import functools
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import soundfile
import torch
import torchaudio.functional
import torchaudio.transforms
from jaxtyping import Float
from torch import Tensor

from asda_core.audio.checks import check_samples
from asda_core.audio.mp3 import FORMAT as MP3
from asda_core.audio.mp3 import lead_samples
from asda_core.audio.opening import open_audio
from asda_core.config import ResampleAxis
from asda_core.errors import AudioError, NoSamplesError

MAX_DENOMINATOR = 1000
"""Largest denominator of a ratio of sample rates; 44.1 kHz to 16 kHz is 160 / 441."""
BLOCK_SAMPLES = 1 << 22
"""Number of samples that are read and resampled at once: 95 s at 44.1 kHz."""
OVERLAP_PERIODS = 8
"""Overlap of blocks, in common periods of both rates; the kernel spans at most 7 samples of the lower rate."""
KERNEL_CACHE_SIZE = 16
"""Number of resampling kernels that are cached, one per pair of rates."""
NEAR_SAMPLE = 1e-3
"""Distance, in samples, within which a time in seconds is that of a sample: `seconds * rate` is only almost whole."""


def read_audio(
    file: str | Path,
    sample_rate: int,
    start_seconds: float = 0.0,
    seconds: float | None = None,
    resample_along: ResampleAxis = "time",
) -> Float[Tensor, " samples"]:
    """Read an audio file, or a segment of it, as mono at a given sample rate.

    Channels are averaged first, then the mean is resampled with torchaudio's windowed sinc.

    Args:
        file: anything that libsndfile reads.
        sample_rate: target sample rate in Hz.
        start_seconds: start of the segment; between two samples, it starts with the former.
        seconds: maximal length of the segment, rounded up to whole samples; None reads to the end.
        resample_along: "channels" resamples files of several channels as the release does (see below).

    Returns:
        float32 samples, in [-1, 1] for integer formats.

    Raises:
        AudioError: the file is missing, empty, not audio, damaged, or holds NaN, infinite or absurdly large samples.

    **Differs** from the released code, which resamples a two-channel file along the channel axis, so that 44.1 kHz
    stereo plays 2.76 times slower; `resample_along` "channels" does the same.
    """
    with open_audio(file) as sound:
        return read_samples(sound, str(file), sample_rate, start_seconds, seconds, resample_along)


def read_samples(
    sound: soundfile.SoundFile,
    name: str,
    sample_rate: int,
    start_seconds: float = 0.0,
    seconds: float | None = None,
    resample_along: ResampleAxis = "time",
) -> Float[Tensor, " samples"]:
    """`read_audio` for an open file, called `name` in errors.

    Raises:
        AudioError: the segment has no samples, or some are NaN, infinite or absurdly large.
    """
    rate = sound.samplerate
    first = min(math.floor(start_seconds * rate + NEAR_SAMPLE), len(sound))
    if first:  # it starts at 0, and libsndfile decodes a block of FLAC for every seek
        _seek(sound, first)
    remaining = len(sound) - first
    num_frames = remaining if seconds is None else min(remaining, math.ceil(seconds * rate - NEAR_SAMPLE))
    wrong_axis = resample_along == "channels" and sound.channels > 1 and rate != sample_rate
    mono = _read_mono(sound, name, num_frames, sample_rate if wrong_axis else rate)
    if len(mono) == 0:
        raise NoSamplesError(f"cannot use {name}: it holds no samples from {start_seconds:g} s onwards.")
    if not sound.subtype.startswith("PCM"):  # integers are finite
        check_samples(mono, name)
    return mono if wrong_axis else resample(mono, rate, sample_rate)


def _seek(sound: soundfile.SoundFile, first: int) -> None:
    """Go from sample 0 to `first`; by decoding what is before it where libsndfile cannot seek (GSM 6.10, G.721)."""
    if sound.seekable():
        sound.seek(first)
        return
    for done in range(0, first, BLOCK_SAMPLES):
        sound.read(min(BLOCK_SAMPLES, first - done), dtype="float32")


def _read_mono(sound: soundfile.SoundFile, name: str, num_frames: int, row_rate: int) -> Tensor:
    """Mean over the channels, read in blocks; with another `row_rate`, rows are resampled to it first, as released."""
    try:
        mono = torch.empty(num_frames)
    except RuntimeError:  # damaged header
        raise AudioError(f"cannot use {name}: its header states {num_frames} samples, too many for memory.") from None
    if sound.channels == 1 and sound.format != MP3:  # samples are decoded directly into `mono`
        return mono[: len(sound.read(out=mono.numpy()))]
    done = 0
    for block in mono_blocks(sound, num_frames, row_rate, BLOCK_SAMPLES):
        mono[done : done + len(block)] = block
        done += len(block)
    return mono[:done]


def mono_blocks(sound: soundfile.SoundFile, num_frames: int, row_rate: int, size: int) -> Iterator[Tensor]:
    """Yield means over the channels, `size` samples at a time; another `row_rate` resamples rows first, as released.

    The blocks end with the file if it is shorter than its header says.
    """
    done, first = 0, sound.tell() if sound.format == MP3 else 0
    while done < num_frames:
        if num_lead := lead_samples(sound, first + done):
            sound.seek(first + done - num_lead)
        rows = sound.read(num_lead + min(size, num_frames - done), dtype="float32", always_2d=True)
        block = torch.from_numpy(rows[num_lead:])
        if not len(block):
            break
        yield resample(block, sound.samplerate, row_rate).mean(dim=1)
        done += len(block)


def resample(audio: Float[Tensor, "*batch samples"], source_rate: int, sample_rate: int) -> Float[Tensor, "*batch new"]:
    """Resample with torchaudio's defaults (windowed sinc, Hann, width 6, roll-off 0.99).

    A rate that has no ratio of small integers to the target rate (16,001 Hz) is replaced by the nearest one that has:
    its kernel would exhaust the memory. Long audio is processed in blocks that overlap by more than the kernel.

    Returns:
        ceil(samples x sample_rate / source_rate) samples.

    **Source**: `torchaudio.functional.resample`; the released data path uses the same. **Differs**: it computes the
    number of samples in float32, which gives one too few for some lengths, as for 441,102 samples at 44.1 kHz.
    """
    if source_rate == sample_rate:
        return audio
    old, new = samples_per_period(source_rate, sample_rate)
    resampler = _resampler(old, new, audio.dtype, audio.device)
    block = BLOCK_SAMPLES // old * old
    num_samples, num_resampled = audio.shape[-1], -(-audio.shape[-1] * new // old)
    resampled = audio.new_empty(*audio.shape[:-1], num_resampled)
    for first in range(0, num_samples, block):
        context = min(first, OVERLAP_PERIODS * old)
        segment = audio[..., first - context : first + block + OVERLAP_PERIODS * old]
        start, skipped = first // old * new, context // old * new
        stop = min(start + block // old * new, num_resampled)
        new_samples = resampler(segment)[..., skipped:]
        if new_samples.shape[-1] < stop - start:  # a period of silence more, as the filter assumes anyway
            new_samples = resampler(torch.nn.functional.pad(segment, (0, old)))[..., skipped:]
        resampled[..., start:stop] = new_samples[..., : stop - start]
    return resampled


@functools.lru_cache(maxsize=KERNEL_CACHE_SIZE)
def _resampler(old: int, new: int, dtype: torch.dtype, device: torch.device) -> torchaudio.transforms.Resample:
    """torchaudio's resampler, cached; its kernel has the audio's dtype, as in torchaudio's function without a cache."""
    return torchaudio.transforms.Resample(old, new, dtype=dtype).to(device)


def samples_per_period(source_rate: int, sample_rate: int) -> tuple[int, int]:
    """Numbers of samples at the two rates that span the same time: 441 and 160 from 44.1 to 16 kHz."""
    ratio = Fraction(sample_rate, source_rate).limit_denominator(MAX_DENOMINATOR)
    return ratio.denominator, ratio.numerator


def crop_or_pad(audio: Float[Tensor, " samples"], num_samples: int, offset: int = 0) -> Float[Tensor, " num_samples"]:
    """Return exactly `num_samples` samples from `offset` on, padded with silence if the audio is shorter.

    **Differs** from the released code, which pads the spectrogram with 0 before normalisation: the padding is then
    +0.467, louder than most audio, while silence is -1.278. `fill_features` does the same.
    """
    segment = audio[offset : offset + num_samples]
    return torch.nn.functional.pad(segment, (0, num_samples - len(segment)))
