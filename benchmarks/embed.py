"""Benchmark of `asda embed` on many files against the bare encoder on the same audio in memory. Sides are interleaved.

    OMP_NUM_THREADS=1 python benchmarks/embed.py --data ../shared/data/esc10 ../shared/data/fsdd --files 500

prints the median seconds of each side and the ratio of each to the bare encoder:

- `bare`: front end and encoder, clip by clip, audio in memory, no reading or writing;
- `bare, together`: the same in the batches that `asda embed` forms;
- `asda embed`: from files to files and an index, as the command does, in this process;
- `reading`: decoding and resampling alone, in one thread: the time that reading ahead can hide.

The embeddings are first checked against those of the bare encoder. `processor` is the CPU time of all threads together:
with one CPU core no work can overlap.
"""

import argparse
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from asda_core.audio.reading import read_audio
from asda_core.audio_files.sources import find_audio
from asda_core.catalog import installed_catalog
from asda_core.checkpoint import load_encoder
from asda_core.inference.clip_encoder import ClipEncoder, EncodeOptions
from asda_core.inference.embedding import embed_files
from asda_core.inference.indexing import EmbedJob
from asda_core.inference.reading_ahead import READERS, LengthBatcher
from asda_core.official.reading import read_model
from asda_hear.names import DEFAULT_WEIGHTS

ATOL = 1e-4


def write_clips(folder: Path, count: int) -> list[Path]:
    """Write clips of noise of 1 to 5 s at 44.1 kHz, used if no data is given."""
    for number in range(count):
        audio = 0.1 * np.random.default_rng(number).standard_normal(44_100 * (1 + number % 5))
        soundfile.write(folder / f"{number:04d}.wav", audio, 44_100)
    return find_audio(folder)


def encode_together(clip_encoder: ClipEncoder, clips: list[Tensor]) -> None:
    batcher: LengthBatcher[Tensor] = LengthBatcher()
    for audio in clips:
        plan = clip_encoder.plan_windows(len(audio))
        if group := batcher.add(audio, plan.steps, len(audio), clip_encoder.windows_per_pass(plan)):
            clip_encoder.encode_batch(group)
    for group in batcher.flush():
        clip_encoder.encode_batch(group)


def check_equal(clip_encoder: ClipEncoder, names: dict[Path, Path], out: Path) -> None:
    largest = 0.0
    for file, name in list(names.items())[:: max(1, len(names) // 50)]:
        alone = clip_encoder.encode(read_audio(file, clip_encoder.sample_rate)).tokens.numpy()
        largest = max(largest, float(np.abs(np.load(out / name) - alone).max()))
    assert largest < ATOL, largest
    print(f"50 of the embeddings beside each file alone: largest difference {largest:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", help="folders (default: noise)")
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--checkpoint", type=Path, default=DEFAULT_WEIGHTS)
    parser.add_argument("--rounds", type=int, default=3)
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "audio").mkdir()
        found = [file for folder in parsed.data or [] for file in find_audio(folder)][: parsed.files]
        files = found or write_clips(work / "audio", parsed.files)
        names = {file: Path(f"{number}.npy") for number, file in enumerate(files)}
        model = read_model(parsed.checkpoint)
        options = EncodeOptions(clip_seconds=model.config.data.clip_seconds, padding=model.config.data.padding)
        front_end, encoder = load_encoder(model, installed_catalog())
        clip_encoder = ClipEncoder(front_end, encoder, options)
        job = EmbedJob(str(parsed.checkpoint), "frame", "npy", asdict(options))
        clips = [read_audio(file, clip_encoder.sample_rate) for file in files]

        def embed() -> None:
            shutil.rmtree(work / "out", ignore_errors=True)
            embed_files(clip_encoder, names, work / "out", job, progress=False)

        sides: dict[str, Callable[[], object]] = {
            "bare": lambda: [clip_encoder.encode(audio) for audio in clips],
            "bare, together": lambda: encode_together(clip_encoder, clips),
            "asda embed": embed,
            "reading": lambda: [read_audio(file, clip_encoder.sample_rate) for file in files],
        }
        minutes = sum(map(len, clips)) / clip_encoder.sample_rate / 60
        print(
            f"{platform.machine()}, {os.cpu_count()} processors, {torch.get_num_threads()} threads, {READERS} readers"
        )
        print(f"{parsed.checkpoint.name}, {len(files)} files, {minutes:.1f} minutes of audio")
        embed()
        check_equal(clip_encoder, names, work / "out")
        took: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
        for _ in range(parsed.rounds):
            for side, run in sides.items():
                wall, processor = time.perf_counter(), time.process_time()
                run()
                took[side].append((time.perf_counter() - wall, time.process_time() - processor))
        for side, values in took.items():
            wall, processor = (statistics.median(column) for column in zip(*values, strict=True))
            ratio = statistics.median(own[0] / bare[0] for own, bare in zip(values, took["bare"], strict=True))
            print(f"{side:>15}: {wall:7.2f} s, {processor:7.2f} s of processor, {ratio:.3f} of the bare encoder")


if __name__ == "__main__":
    main()
