"""Long audio: time per minute and memory above the loaded model, beside the first minute. Sides are interleaved.

    OMP_NUM_THREADS=1 python benchmarks/long_audio.py 120

prints, for one minute and for so many minutes, the median seconds per minute of audio and the largest memory in use
above the loaded model, less the audio and the embeddings themselves.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time

import torch

from asda_hear import get_timestamp_embeddings, load_model

MEBIBYTE = 1 << 20
ROUNDS = 3


def peak_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(minutes: int) -> None:
    """One side, in a process of its own, since the peak never falls: seconds per minute, MiB."""
    model = load_model()
    audio = torch.randn(1, minutes * 60 * model.sample_rate, generator=torch.Generator().manual_seed(0)).mul_(0.1)
    get_timestamp_embeddings(audio[:, : model.sample_rate], model)
    before, start = peak_mebibytes(), time.perf_counter()
    embeddings, stamps = get_timestamp_embeddings(audio, model)
    seconds = time.perf_counter() - start
    assert float(stamps[0, -1]) == minutes * 60_000
    output = (embeddings.numel() + stamps.numel()) * 4 / MEBIBYTE
    print(seconds / minutes, max(0.0, peak_mebibytes() - before - output))


def side(minutes: int) -> tuple[float, float]:
    result = subprocess.run(
        [sys.executable, __file__, str(minutes), "--one"], capture_output=True, text=True, check=True
    )
    seconds, memory = map(float, result.stdout.split())
    return seconds, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("minutes", type=int, nargs="?", default=120)
    parser.add_argument("--one", action="store_true", help="measure one side and print it")
    parsed = parser.parse_args()
    if parsed.one:
        measure(parsed.minutes)
        return
    short, long = zip(*[(side(1), side(parsed.minutes)) for _ in range(ROUNDS)], strict=True)
    for minutes, sides in ((1, short), (parsed.minutes, long)):
        seconds, memory = (statistics.median(values) for values in zip(*sides, strict=True))
        print(f"{minutes:>4} min: {seconds:.3f} s per minute of audio, {memory:.0f} MiB above the model and its output")
    ratio = statistics.median(b[0] / a[0] for a, b in zip(short, long, strict=True))
    print(f"ratio of the time per minute: {ratio:.3f}")


if __name__ == "__main__":
    main()
