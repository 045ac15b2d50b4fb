"""Benchmark of long audio: time per minute and memory above the loaded model, from a file and with HEAR's timestamps.

    OMP_NUM_THREADS=1 python benchmarks/long_audio.py 10 60 180

prints for one minute and for each given number of minutes the median seconds per minute of audio, the ratio to that of
one minute, and the peak memory above the loaded model. Each side is a process of its own, since a peak never falls, and
the sides are interleaved.

- `file`: what `asda embed --granularity frame --window-seconds S` does with a WAV file at 44.1 kHz, with S the clip
  length in training, so that one minute is processed in windows as three hours are. Input and output are on disk.
- `hear`: `get_timestamp_embeddings` of a tensor; memory without the tensors of audio and embeddings themselves.

It is first checked that streaming a file gives the same result as reading it whole.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import soundfile
import torch
from interleaved import peak_mebibytes, resident_mebibytes

from asda_core.audio.reading import read_audio
from asda_core.catalog import installed_catalog
from asda_core.checkpoint import load_encoder
from asda_core.inference.clip_encoder import ClipEncoder, EncodeOptions
from asda_core.inference.embedding import embed_files
from asda_core.inference.indexing import EmbedJob
from asda_core.official.reading import read_model
from asda_hear import get_timestamp_embeddings, load_model
from asda_hear.names import DEFAULT_WEIGHTS

MEBIBYTE = 1 << 20
FILE_RATE = 44_100
WARM_SECONDS = 20
REPEATED_MINUTES = 5
"""Shorter audio is repeated within its process, so that a minute is measured as precisely as an hour."""


def write_noise(file: Path, seconds: int) -> None:
    """Write noise, a minute at a time; mono, 16 bits."""
    generator = np.random.default_rng(0)
    with soundfile.SoundFile(file, "w", FILE_RATE, 1) as sound:
        for first in range(0, seconds, 60):
            block = 0.1 * generator.standard_normal(min(60, seconds - first) * FILE_RATE, dtype=np.float32)
            sound.write(block)


def clip_encoder_of(checkpoint: Path) -> tuple[ClipEncoder, EmbedJob]:
    model = read_model(checkpoint)
    seconds = model.config.data.clip_seconds
    options = EncodeOptions(window_seconds=seconds, clip_seconds=seconds, padding=model.config.data.padding)
    front_end, encoder = load_encoder(model, installed_catalog())
    return ClipEncoder(front_end, encoder, options), EmbedJob(str(checkpoint), "frame", "npy", asdict(options))


def measure_file(checkpoint: Path, minutes: int, audio: Path, warm: Path, out: Path) -> tuple[float, float]:
    """Seconds, and peak MiB above the loaded model before its first pass."""
    clip_encoder, job = clip_encoder_of(checkpoint)
    before = resident_with_weights(clip_encoder.encoder)
    embed_files(clip_encoder, {warm: Path("warm.npy")}, out / "warm.npy", job, progress=False)
    seconds = repeated(
        lambda: embed_files(clip_encoder, {audio: Path("a")}, out / "a.npy", job, progress=False), minutes
    )
    return seconds, peak_mebibytes() - before


def measure_hear(checkpoint: Path, minutes: int) -> tuple[float, float]:
    """Seconds, and peak MiB above the model, without the audio and the embeddings."""
    model = load_model(str(checkpoint))
    before = resident_with_weights(model)
    get_timestamp_embeddings(torch.zeros(1, WARM_SECONDS * model.sample_rate), model)
    audio = torch.randn(1, minutes * 60 * model.sample_rate, generator=torch.Generator().manual_seed(0)).mul_(0.1)
    embeddings, stamps = torch.empty(0), torch.empty(0)

    def embed() -> None:
        nonlocal embeddings, stamps
        embeddings = stamps = torch.empty(0)
        embeddings, stamps = get_timestamp_embeddings(audio, model)

    seconds = repeated(embed, minutes)
    assert float(stamps[0, -1]) == minutes * 60_000
    given = (audio.numel() + embeddings.numel() + stamps.numel()) * 4 / MEBIBYTE
    return seconds, peak_mebibytes() - before - given


def repeated(what: Callable[[], object], minutes: int) -> float:
    """Median seconds; short audio is processed several times."""
    found = []
    for _ in range(max(1, REPEATED_MINUTES // minutes)):
        start = time.perf_counter()
        what()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def resident_with_weights(model: torch.nn.Module) -> float:
    """Resident MiB with all weights loaded: weights of a file are memory-mapped and only loaded when used."""
    for weights in model.parameters():
        weights.sum()
    return resident_mebibytes()


def side(which: str, minutes: int, checkpoint: Path, folder: Path) -> tuple[float, float]:
    """Seconds per minute of audio and MiB, measured in a process of its own."""
    command = [sys.executable, __file__, str(minutes), "--one", which, "--checkpoint", str(checkpoint)]
    result = subprocess.run([*command, "--folder", str(folder)], capture_output=True, text=True, check=True)
    seconds, memory = map(float, result.stdout.split())
    return seconds / minutes, memory


def check_equal(checkpoint: Path, folder: Path) -> None:
    """Check that streaming a file gives the same result as reading it whole."""
    file = folder / "check.wav"
    write_noise(file, 45)
    clip_encoder, job = clip_encoder_of(checkpoint)
    embed_files(clip_encoder, {file: Path("x")}, folder / "check.npy", job, progress=False)
    whole = clip_encoder.encode(read_audio(file, clip_encoder.sample_rate)).tokens.numpy()
    difference = float(np.abs(np.load(folder / "check.npy") - whole).max())
    assert difference < 1e-3, difference
    print(f"streamed and whole, 45 s: largest difference {difference:.1e}, of values up to {np.abs(whole).max():.1f}")


def compare(which: str, lengths: list[int], rounds: int, checkpoint: Path, folder: Path) -> None:
    found: dict[int, list[tuple[float, float]]] = {minutes: [] for minutes in lengths}
    for _ in range(rounds):
        for minutes in lengths:
            found[minutes].append(side(which, minutes, checkpoint, folder))
    for minutes in lengths:
        seconds, memory = (statistics.median(values) for values in zip(*found[minutes], strict=True))
        pairs = zip(found[minutes], found[lengths[0]], strict=True)
        ratio = statistics.median(long[0] / short[0] for long, short in pairs)
        line = f"{which:>5} {minutes:>4} min: {seconds:.3f} s per minute of audio, {ratio:.3f} of the first"
        print(f"{line}, {memory:.0f} MiB above the model", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("minutes", type=int, nargs="*", default=[10, 60], help="lengths beside one minute")
    parser.add_argument("--checkpoint", type=Path, default=DEFAULT_WEIGHTS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["file", "hear"])
    parser.add_argument("--one", choices=["file", "hear"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.one:
        minutes, folder = parsed.minutes[0], parsed.folder
        with tempfile.TemporaryDirectory(dir=folder) as out:
            if parsed.one == "hear":
                print(*measure_hear(parsed.checkpoint, minutes))
            else:
                audio = folder / f"{minutes}.wav"
                print(*measure_file(parsed.checkpoint, minutes, audio, folder / "check.wav", Path(out)))
        return
    machine = f"{platform.machine()}, {os.cpu_count()} processors, {torch.get_num_threads()} threads"
    print(f"{machine}, {parsed.checkpoint.name}", flush=True)
    lengths = sorted({1, *parsed.minutes})
    with tempfile.TemporaryDirectory() as name:
        check_equal(parsed.checkpoint, Path(name))
        if parsed.only != "hear":
            for minutes in lengths:
                write_noise(Path(name) / f"{minutes}.wav", minutes * 60)
        for which in ("file", "hear"):
            if parsed.only in (None, which):
                compare(which, lengths, parsed.rounds, parsed.checkpoint, Path(name))


if __name__ == "__main__":
    main()
