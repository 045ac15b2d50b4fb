"""Benchmark of differential attention: the fast path for this machine against the formula, in time and memory.

    OMP_NUM_THREADS=2 python benchmarks/attention.py

Both sides are timed in one run and checked for equality. Memory is measured in a process for each side, since a peak
never falls.
"""

import argparse
import subprocess
import sys

import torch
from asda_plugins.mixer_differential import DifferentialAttention, DifferentialConfig
from interleaved import MILLISECONDS, error, machine, medians, peak_mebibytes, resident_mebibytes

from asda_core.layout import TokenLayout
from asda_core.model.processor import exact_matmul

WIDTH, HEADS = 768, 12
"""Of ASDA base."""
SIZES = ((16, 103), (1, 513), (8, 513), (1, 2049))
"""Clips and tokens: 16 masked clones of a clip of 10 s, the clip as given to the teacher, eight of these, and 40 s."""
LONG = (513, 2049, 4097)
WIDEST_ERROR = 1e-5


def prepared(clips: int, tokens: int) -> tuple[DifferentialAttention, torch.Tensor, TokenLayout]:
    torch.manual_seed(0)
    mixer = DifferentialAttention(DifferentialConfig(), WIDTH, HEADS)
    return mixer, torch.randn(clips, tokens, WIDTH), TokenLayout.full(clips, (tokens, 1))


def compare(clips: int, tokens: int, train: bool, rounds: int) -> tuple[float, float, float]:
    """Median seconds of the formula and of the fast path, and the error of the fast path."""
    mixer, given, layout = prepared(clips, tokens)
    kept: dict[str, torch.Tensor] = {}

    def side(name: str) -> None:
        mixer.by_formula = name == "formula"
        mixer.zero_grad(set_to_none=True)
        with torch.set_grad_enabled(train):
            mixed = mixer(given, layout)
            if train:
                mixed.square().mean().backward()
        kept[name] = mixer.qk.weight.grad.clone() if train else mixed

    def fast() -> None:
        with exact_matmul():
            side("fast")

    taken = medians({"formula": lambda: side("formula"), "fast": fast}, rounds)
    return taken["formula"], taken["fast"], error(kept["fast"], kept["formula"])


def peak(tokens: int, by_formula: bool) -> None:
    """Print the peak memory of one pass in MiB, above what was in use before."""
    mixer, given, layout = prepared(1, tokens)
    small, short = given[:, :8], TokenLayout.full(1, (8, 1))
    with torch.inference_mode(), exact_matmul():
        mixer(small, short)
        mixer.by_formula = by_formula
        before = resident_mebibytes()
        mixer(given, layout)
    print(peak_mebibytes() - before)


def peak_of(tokens: int, side: str) -> float:
    command = [sys.executable, __file__, "--peak", str(tokens), side]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.peak:
        peak(int(parsed.peak[0]), parsed.peak[1] == "formula")
        return
    print(machine())
    print("clips x tokens   pass       by formula      fast     ratio   error")
    for clips, tokens in SIZES:
        for train in (False, True):
            formula, fast, wrong = compare(clips, tokens, train, parsed.rounds)
            assert wrong < WIDEST_ERROR, f"{clips} x {tokens}: not equal ({wrong:.1e})"
            name = "training" if train else "inference"
            times = f"{formula * MILLISECONDS:>8.1f} ms {fast * MILLISECONDS:>8.1f} ms"
            print(f"{clips:>4} x {tokens:<8} {name:<10} {times}   {formula / fast:>5.2f}   {wrong:.0e}")
    print("tokens   by formula      fast     ratio  (peak memory of one pass)")
    for tokens in LONG:
        formula, fast = peak_of(tokens, "formula"), peak_of(tokens, "fast")
        print(f"{tokens:>6} {formula:>8.0f} MiB {fast:>6.0f} MiB   {formula / fast:>5.1f}")


if __name__ == "__main__":
    main()
