"""Benchmark of frequency-time attention along lines against the same attention as a dense masked map, in one run.

    OMP_NUM_THREADS=1 python benchmarks/frequency_time.py

Both compute the same function, which is checked first. The dense side is PyTorch's fused attention with a boolean mask,
the way to compute it without lines. Rounds are interleaved; the output is medians of CPU time, their ratio, peak
memory, and the share of query-key pairs that are computed. Both sides have the same linear maps (queries, keys, values
and output): these are also measured alone, and the ratio is printed a second time without them.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from asda_plugins.mixer_frequency_time import FrequencyTimeAttention, FrequencyTimeConfig
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from asda_core.layout import TokenLayout
from asda_core.model.attention import split_heads
from asda_core.system.resources import ResourceUsage

WIDTH, HEADS = 768, 12
BANDS = 12
GRIDS = (9, 49, 100, 400)
"""Time steps, of 12 bands each: 1 s, 5 s, 10 s (1,200 tokens) and 40 s (4,800 tokens) of AST's overlapping patches."""
KEPT = (400, 80)
"""A masked grid of 400 time steps of 12 bands, of which as many patches as in 80 steps are kept, a fifth."""
TOLERANCE = 1e-4


def allowed(layout: TokenLayout) -> Tensor:
    """(B, 1, N, N) mask, True where a token may attend."""
    band, time = layout.band, layout.time
    return ((band[:, :, None] == band[:, None]) | (time[:, :, None] == time[:, None])).unsqueeze(1)


def dense(mixer: FrequencyTimeAttention, tokens: Tensor, layout: TokenLayout) -> Tensor:
    """Compute the same mixer with an N x N mask."""
    query, key, value = split_heads(mixer.qkv(tokens), 3, mixer.num_heads)
    mixed = scaled_dot_product_attention(query, key, value, attn_mask=allowed(layout))
    projected: Tensor = mixer.proj(mixed.transpose(1, 2).flatten(2))
    return projected


def compare(name: str, layout: TokenLayout, rounds: int) -> None:
    """Measure one layout and print a row."""
    torch.manual_seed(0)
    mixer = FrequencyTimeAttention(FrequencyTimeConfig(), WIDTH, HEADS).eval()
    tokens = torch.randn(*layout.index.shape, WIDTH)
    sides: dict[str, Callable[[], Tensor]] = {
        "dense": lambda: dense(mixer, tokens, layout),
        "lines": lambda: mixer(tokens, layout),
        "maps": lambda: mixer._joined(split_heads(mixer.qkv(tokens), 3, mixer.num_heads)[0]),
    }
    with torch.no_grad():
        wanted, given = sides["dense"](), sides["lines"]()
    error = float((given - wanted).abs().max() / wanted.abs().max())
    assert error < TOLERANCE, f"they differ by {error:.1e}"
    taken: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, run in sides.items():
            with ResourceUsage() as cost, torch.no_grad():
                run()
            taken[side].append((cost.cpu_seconds, cost.mebibytes))
    slow, fast, maps = (statistics.median(seconds for seconds, _ in taken[side]) for side in sides)
    much, little = (max(mebibytes for _, mebibytes in taken[side]) for side in ("dense", "lines"))
    pairs = float(allowed(layout).float().mean())
    number = layout.index.shape[1]
    print(f"{name:<22} {number:>6,}   {pairs:>6.1%}   {slow:>7.3f} s {fast:>7.3f} s {slow / fast:>6.2f}   "
          f"{(slow - maps) / (fast - maps):>6.2f}   "
          f"{much:>7,.0f} {little:>7,.0f}   {fast / number * 1e6:>7.1f}")  # fmt: skip


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print(
        "grid                   tokens    pairs       dense     lines  ratio   no maps   MiB: dense, lines   us a token"
    )
    for times in GRIDS:
        compare(f"{times} x {BANDS}", TokenLayout.full(1, (times, BANDS)), rounds)
    times, kept = KEPT
    torch.manual_seed(0)
    columns = torch.randperm(times * BANDS)[: kept * BANDS].sort().values[None]
    masked = TokenLayout.full(1, (times, BANDS)).select(torch.arange(1), columns)
    compare(f"{times} x {BANDS}, a fifth kept", masked, rounds)


if __name__ == "__main__":
    main()
