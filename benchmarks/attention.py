"""How much faster is differential attention through the fused kernel than by its formula? Both in one run.

    OMP_NUM_THREADS=1 python benchmarks/attention.py

Rounds of both are interleaved; the medians and their ratio are printed, for inference and for a training step.
"""

import argparse
import statistics
import time

import torch
from asda_plugins.mixer_differential import DifferentialAttention, DifferentialConfig

from asda_core.layout import TokenLayout

WIDTH, HEADS = 768, 12
"""Of ASDA base."""
SIZES = ((1, 513), (16, 103), (4, 257))
"""Clips and tokens: a clip of 10 s as the teacher hears it, its 16 masked clones, four clips of 5 s."""
MILLISECONDS = 1000


def seconds(mixer: DifferentialAttention, tokens: torch.Tensor, layout: TokenLayout, train: bool) -> float:
    """One pass, with gradients if it trains."""
    start = time.perf_counter()
    with torch.set_grad_enabled(train):
        mixed = mixer(tokens, layout)
    if train:
        mixed.sum().backward()
    return time.perf_counter() - start


def compare(clips: int, num_tokens: int, train: bool, rounds: int) -> tuple[float, float]:
    """Median seconds (by formula, fused) of interleaved rounds, after one round to warm up."""
    torch.manual_seed(0)
    mixer = DifferentialAttention(DifferentialConfig(), WIDTH, HEADS)
    layout = TokenLayout.full(clips, (num_tokens, 1))
    tokens = torch.randn(clips, num_tokens, WIDTH)
    taken: dict[bool, list[float]] = {True: [], False: []}
    for number in range(rounds + 1):
        for by_formula in (True, False):
            mixer.by_formula = by_formula
            spent = seconds(mixer, tokens, layout, train)
            if number:
                taken[by_formula].append(spent)
    return statistics.median(taken[True]), statistics.median(taken[False])


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    print("clips x tokens   pass       by formula   fused     ratio")
    for clips, num_tokens in SIZES:
        for train in (False, True):
            formula, fused = (value * MILLISECONDS for value in compare(clips, num_tokens, train, rounds))
            name = "training" if train else "inference"
            print(
                f"{clips:>4} x {num_tokens:<8} {name:<10} {formula:>8.1f} ms {fused:>6.1f} ms   {formula / fused:.2f}"
            )


if __name__ == "__main__":
    main()
