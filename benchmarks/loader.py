"""Benchmark of data loading in clips per second and core: as in the released code, and from a pack, in one run.

    OMP_NUM_THREADS=1 python benchmarks/loader.py [--data SOURCE]

Four ways, their rounds interleaved in one process, each on one thread; clips per second of CPU time are printed, with
medians over the rounds and medians of the ratio within a round:

(a) as released, for each clip: read the file, average channels, resample to 16 kHz, subtract the mean, Kaldi log-mel
    by torchaudio, pad to 1,024 frames, normalise, draw 16 masks;
(b) from a pack of 16-bit FLAC at 16 kHz, features and masks on the CPU;
(c) from the same pack, audio alone: the device computes features and masks of the whole batch;
(d) the same from a pack of 16-bit WAV.

The features are compared first: on the same file, ours may differ from the released ones by 1e-5 on average, and from
those in float64 by at most twice as much as the released ones do: both are rounding errors in bins near the floor.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from torch import Tensor

from asda_core.audio.reading import read_audio
from asda_core.audio_files.pack_options import PackFormat, PackOptions
from asda_core.audio_files.sources import find_audio
from asda_core.audio_files.tars import num_bytes
from asda_core.config import DataConfig
from asda_core.data.clip_batches import ClipBatches
from asda_core.data.packing import pack
from asda_core.log_mel import LogMel, LogMelConfig
from asda_core.pretrain.masking import MaskConfig, block_masks

RATE, FRAMES, BINS, HOP_MS = 16_000, 1_024, 128, 10
MEAN, STD = -4.268, 4.569
"""Of AudioSet, as released."""
GRID, CLONES, BLOCK, HIDDEN, ADJUST = (64, 8), 16, 5, 0.8, 0.07
"""Patches of a clip, masks per clip, and the parameters of the mask draw, as released."""
SECONDS, FILES, FILE_RATE = 10.0, 24, 32_000
"""Generated clips, at the sample rate of the balanced AudioSet that most people train on."""
BATCH = 12
FORMATS: tuple[PackFormat, ...] = ("flac", "wav")
WANTED = 340
"""Clips per second that the model consumes on an H200: half of its 790 TFLOP/s at 14.1 TFLOP for 12 clips."""
MEAN_BAR, MAX_BAR = 1e-5, 2.0
BARS = {"b": 2.0, "c": 6.0, "d": 6.0}


def make_audio(folder: Path) -> None:
    """Write FLAC files of noise whose power falls with frequency, and of amplitude-modulated tones.

    Packed, such a clip takes 173 KB; 10 s of ESC-10 take 177 KB. That matters: FLAC decoding time grows with size.
    """
    time_axis = np.arange(int(SECONDS * FILE_RATE)) / FILE_RATE
    for number in range(FILES):
        draw = np.random.default_rng(number)
        spectrum = np.fft.rfft(draw.normal(size=len(time_axis)))
        hertz = np.arange(len(spectrum)) / SECONDS
        spectrum /= np.maximum(1.0, hertz / 50) * np.sqrt(1 + (hertz / 250) ** 2)  # -6 dB an octave, then -12
        noise = np.fft.irfft(spectrum, len(time_axis))
        sound = 0.05 * noise / noise.std()
        for pitch in draw.uniform(100, 4_000, 5):
            loudness = np.clip(np.sin(2 * np.pi * draw.uniform(0.1, 2) * time_axis), 0, None)
            sound += 0.05 * loudness * np.sin(2 * np.pi * pitch * time_axis)
        soundfile.write(folder / f"{number:03d}.flac", sound / np.abs(sound).max() * 0.5, FILE_RATE)


def released_masks() -> Tensor:
    """16 masks of a clip as in the released code: blocks set cell by cell, then each mask trimmed or filled to size."""
    cells = GRID[0] * GRID[1]
    kept_share = 1 - HIDDEN
    count = int(cells * (kept_share + ADJUST) / BLOCK**2)
    mask = torch.zeros(CLONES, *GRID)
    mask.view(CLONES, -1).scatter_(1, torch.randint(0, cells, (CLONES, count)), 1)
    centres = mask.nonzero(as_tuple=True)
    rows, times, bands = [], [], []
    for across in range(BLOCK):
        for up in range(BLOCK):
            rows.append(centres[0])
            times.append(centres[1] + across - BLOCK // 2)
            bands.append(centres[2] + up - BLOCK // 2)
    mask[torch.cat(rows), torch.cat(times).clamp(0, GRID[0] - 1), torch.cat(bands).clamp(0, GRID[1] - 1)] = 1
    mask = mask.reshape(CLONES, -1)
    wanted = int(cells * kept_share)
    for row in mask:
        kept = int(row.sum())
        if kept > wanted:
            chosen = torch.multinomial(row, kept - wanted, replacement=False)
            row[chosen] = 0
        elif kept < wanted:
            chosen = torch.multinomial(1 - row, wanted - kept, replacement=False)
            row[chosen] = 1
    return 1 - mask


def kaldi(audio: Tensor) -> Tensor:
    """Log-mel (T, F) of one clip as in the released code."""
    return torchaudio.compliance.kaldi.fbank(
        audio[None] - audio.mean(), htk_compat=True, sample_frequency=RATE, use_energy=False, window_type="hanning",
        num_mel_bins=BINS, dither=0.0, frame_shift=HOP_MS,
    )  # fmt: skip


def released_item(file: Path) -> tuple[Tensor, Tensor]:
    """Features (T, F) and masks of one clip, as in the released code."""
    samples, rate = soundfile.read(str(file), dtype="float32")
    audio = torch.from_numpy(samples)
    if audio.dim() == 2:
        audio = audio.mean(dim=-1)
    if rate != RATE:
        audio = torchaudio.functional.resample(audio, rate, RATE)
    features = kaldi(audio)
    if len(features) < FRAMES:
        features = torch.nn.functional.pad(features, (0, 0, 0, FRAMES - len(features)))
    return (features[:FRAMES] - MEAN) / (2 * STD), released_masks()


@dataclass
class Ways:
    """The four ways; each method loads one batch."""

    files: list[Path]
    packed: ClipBatches
    wav: ClipBatches
    front_end: LogMel
    generator: torch.Generator

    def released(self, step: int) -> None:
        """Way (a)."""
        for number in range(step * BATCH, (step + 1) * BATCH):
            released_item(self.files[number % len(self.files)])

    def on_cpu(self, step: int) -> None:
        """Way (b)."""
        for audio in self.packed.batch(step).audio:
            self.front_end(audio[None])
        block_masks(GRID, BATCH * CLONES, MaskConfig(), self.generator)

    def on_device(self, step: int) -> None:
        """Way (c), the part that remains on the CPU."""
        self.packed.batch(step)

    def on_device_wav(self, step: int) -> None:
        """Way (d), the part that remains on the CPU."""
        self.wav.batch(step)


def compare_features(files: list[Path], front_end: LogMel) -> None:
    """Exit if our features differ from the released ones by more than the tolerances."""
    means, ours_off, released_off = [], 0.0, 0.0
    exact = LogMel(LogMelConfig(), RATE).double()
    for file in files:
        audio = read_audio(file, RATE)
        ours, double = front_end(audio[None])[0].T, exact(audio.double()[None])[0].T
        released = (kaldi(audio) - MEAN) / (2 * STD)
        means.append(float((ours - released).abs().mean()))
        ours_off = max(ours_off, float((ours - double).abs().max()))
        released_off = max(released_off, float((released - double).abs().max()))
        item = released_item(file)[0][: len(ours)]
        assert torch.allclose(item, released[:FRAMES], atol=1e-4), "the reading differs"
    print(
        f"features  mean difference {statistics.mean(means):.1e} (bar {MEAN_BAR:.0e}); largest from float64: ", end=""
    )
    print(f"ours {ours_off:.1e}, released {released_off:.1e}")
    if statistics.mean(means) > MEAN_BAR or ours_off > MAX_BAR * released_off:
        raise SystemExit("the features differ: no times are told.")


def clips_per_second(way: Callable[[int], None], step: int) -> float:
    """Clips per second of CPU time."""
    start = time.process_time()
    way(step)
    return BATCH / (time.process_time() - start)


def main() -> None:
    """Compare the features, measure the ways, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="audio to use (default: made here, 10 s at 32 kHz)")
    parser.add_argument("--rounds", type=int, default=15)
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"machine   {platform.processor() or platform.machine()}, {os.cpu_count()} cores; one thread each way")
    with tempfile.TemporaryDirectory() as made, torch.inference_mode():
        folder = Path(made)
        if parsed.data is None:
            make_audio(folder)
        files = find_audio(parsed.data or folder)
        with tempfile.TemporaryDirectory() as shards:
            packed = [pack(files, Path(shards, form), PackOptions(format=form), progress=False) for form in FORMATS]
            front_end = LogMel(LogMelConfig(), RATE)
            compare_features(files, front_end)
            config = DataConfig(batch_size=BATCH, cache_mebibytes=0)
            clips = [ClipBatches(find_audio(Path(shards, form)), config, RATE, seed=1) for form in FORMATS]
            ways = Ways(files, *clips, front_end, torch.Generator().manual_seed(0))
            measure(ways, parsed.rounds, packed[0].hours)


def measure(ways: Ways, rounds: int, hours: float) -> None:
    """Measure the ways in interleaved rounds, in an order that rotates, and print the table."""
    named = {"a": ways.released, "b": ways.on_cpu, "c": ways.on_device, "d": ways.on_device_wav}
    rates: dict[str, list[float]] = {name: [] for name in named}
    for step in range(rounds + 1):
        for name in sorted(named, key=lambda name: (ord(name) + step) % len(named)):
            rate = clips_per_second(named[name], step)
            if step:  # the first round is a warm-up
                rates[name].append(rate)
    clips = ways.packed.files
    size = statistics.mean(num_bytes(clip) for clip in clips) / 1000
    print(f"clips     {hours * 3600 / len(clips):.1f} s, {size:.0f} KB packed; {rounds} rounds of {BATCH} clips")
    print("way                              clips/s and core    ratio    bar   cores for 340 clips/s")
    for name, told in (
        ("a", "as released"),
        ("b", "packed, features on the CPU"),
        ("c", "packed, features on device"),
        ("d", "the same, packed as wav"),
    ):
        median = statistics.median(rates[name])
        ratio = statistics.median(ours / base for ours, base in zip(rates[name], rates["a"], strict=True))
        bar = f"{BARS[name]:.0f}x" if name in BARS else ""
        print(f"({name}) {told:<30} {median:>12.0f} {ratio:>13.2f}x {bar:>6} {WANTED / median:>12.2f}")


if __name__ == "__main__":
    main()
