"""Number of tokens from which a Mamba encoder is cheaper than a transformer on this CPU, in time and in memory.

    OMP_NUM_THREADS=1 python benchmarks/mamba.py

SSAMBA tiny (24 bidirectional blocks of width 192) against SSAST tiny (12 transformer blocks of that width, 3 heads):
one clip, forward only, random weights. Mamba is measured in plain PyTorch and, where Numba is installed, with the loops
that it compiles; attention with the fused kernel, and by the formula that holds N x N maps, as in the released SSAST.
Rounds are interleaved; the output is medians of CPU time, peak memory beyond the model, and the crossing points. First
the scans are compared in results and time, with gradients too, with two loops over steps: that of the released code
(all decays and inputs of a sequence at once, channels first), and our readable one.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from asda_plugins.mixer_mamba.compiled import compiled_loops, compiled_scan
from asda_plugins.mixer_mamba.scan import chunked_scan, sequential_scan
from asda_plugins.mixer_standard import StandardAttention, StandardConfig
from torch import Tensor

from asda_core.assemble import build_encoder
from asda_core.catalog import installed_catalog
from asda_core.config import PositionConfig
from asda_core.config_io import load_run_config
from asda_core.layout import TokenLayout
from asda_core.model.attention import split_heads
from asda_core.model.encoder import Encoder
from asda_core.system.resources import ResourceUsage

TOKENS = (512, 2_048, 8_192, 22_528)
"""Tokens of 10 s, 41 s, 164 s and 451 s of audio in patches of 16 x 16 without overlap."""
BANDS = 8
MAPS_UP_TO = 8_192
"""Tokens up to which the formula is measured: two maps of 3 heads take 12 GB at 22,528."""
SCAN_TOKENS, SCAN_ROWS, SCAN_CHANNELS, SCAN_STATES = 8_192, 2, 384, 16
"""Both directions of one mixer of SSAMBA tiny."""
TOLERANCE = 1e-5


class ByFormula(StandardAttention):
    """Standard attention that materialises its map, as timm 0.4.5 does in the released SSAST."""

    def forward(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        """Compute the softmax map, then its product with the values."""
        (softmax,) = self.maps(tokens, layout)
        value = split_heads(self.qkv(tokens), 3, self.num_heads)[2]
        mixed: Tensor = self.proj((softmax @ value).transpose(1, 2).flatten(2))
        return mixed


def encoders() -> dict[str, Encoder]:
    """The three encoders; positions are computed, so that any length works."""
    catalog = installed_catalog()
    mamba = load_run_config("ssamba_tiny").encoder
    ssast = load_run_config("ssast_base").encoder
    tiny = replace(ssast, dim=mamba.dim, num_heads=3, positions=PositionConfig())
    torch.manual_seed(0)
    fused = build_encoder(catalog, tiny).eval()
    formula = Encoder(tiny, [ByFormula(StandardConfig(), tiny.dim, 3) for _ in range(tiny.depth)]).eval()
    formula.load_state_dict(fused.state_dict())
    ours = {}
    for name, scan in (("Mamba", "auto"), ("Mamba, PyTorch", "chunked")):
        mixer = replace(mamba.mixer, options={**mamba.mixer.options, "scan": scan})
        ours[name] = build_encoder(catalog, replace(mamba, mixer=mixer, positions=PositionConfig())).eval()
    if compiled_loops() is None:
        del ours["Mamba"]
    for encoder in ours.values():
        encoder.load_state_dict(ours["Mamba, PyTorch"].state_dict())
    return {**ours, "attention, fused": fused, "attention, formula": formula}


def passes(models: dict[str, Encoder], num_tokens: int) -> dict[str, Callable[[], Tensor]]:
    """What is timed: encoding the tokens of one clip."""
    layout = TokenLayout.full(1, (num_tokens // BANDS, BANDS))
    tokens = torch.randn(1, num_tokens, models["attention, fused"].config.dim)
    return {
        name: lambda model=model: model.encode(tokens, layout).tokens
        for name, model in models.items()
        if num_tokens <= MAPS_UP_TO or "formula" not in name
    }


def measure(runs: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, tuple[float, float]]:
    """Median CPU seconds and peak MiB of each, rounds interleaved; the first round is a warm-up."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            with ResourceUsage() as cost, torch.no_grad():
                run()
            if number or rounds == 0:
                taken[name].append((cost.cpu_seconds, cost.mebibytes))
    return {name: (statistics.median(s for s, _ in each), max(m for _, m in each)) for name, each in taken.items()}


def as_released(u: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The recurrence as in the reference of the released code: decays and inputs of all steps, time last."""
    first, steps, entering, reading = (each.permute(1, 2, 0) for each in (u, step, b, c))  # (R, E or n, N)
    decays = torch.einsum("ren,rse->rens", steps, a).exp()
    inputs = torch.einsum("ren,rsn,ren->rens", steps, entering, first)
    state, outputs = torch.zeros_like(decays[:, :, 0]), []
    for now in range(len(u)):
        state = decays[:, :, now] * state + inputs[:, :, now]
        outputs.append(torch.einsum("res,rs->re", state, reading[:, :, now]))
    return torch.stack(outputs)


def compare_scans(rounds: int) -> None:
    """Check that the scans equal the loops over steps, and print their times, alone and with all gradients."""
    torch.manual_seed(0)
    u, step = torch.randn(SCAN_TOKENS, SCAN_ROWS, SCAN_CHANNELS), torch.rand(SCAN_TOKENS, SCAN_ROWS, SCAN_CHANNELS)
    a = -torch.arange(1.0, SCAN_STATES + 1).view(1, -1, 1).expand(SCAN_ROWS, -1, SCAN_CHANNELS).contiguous()
    b, c = (torch.randn(SCAN_TOKENS, SCAN_ROWS, SCAN_STATES) for _ in range(2))
    given = [u, step, a, b, c]
    scans = {"as released": as_released, "step by step": sequential_scan, "chunked, plain PyTorch": chunked_scan}
    loops = compiled_loops()
    if loops is not None:
        scans["compiled by Numba"] = partial(compiled_scan, loops)
    for runs, what in (
        (dict.fromkeys(scans, False), "alone"),
        (dict.fromkeys(list(scans)[2:], True), "with gradients"),
    ):
        times = time_scans(scans, runs, given, rounds)
        slowest = statistics.median(next(iter(times.values())))
        for name, taken in times.items():
            fast = statistics.median(taken)
            print(f"scan of {SCAN_TOKENS:,} tokens {what}: {name:<23} {fast:.3f} s, 1 / {slowest / fast:.1f}")


def time_scans(
    scans: dict[str, Callable[..., Tensor]], runs: dict[str, bool], given: list[Tensor], rounds: int
) -> dict[str, list[float]]:
    """Seconds of each of the runs, with gradients or without, round by round, after a comparison of the results."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    wanted: list[Tensor] = []
    for _ in range(rounds + 1):  # the first is a warm-up
        for name, with_gradients in runs.items():
            start = time.process_time()
            leaves = [each.detach().requires_grad_(with_gradients) for each in given]
            output = scans[name](*leaves)
            results = [output.detach(), *(torch.autograd.grad(output.sum(), leaves) if with_gradients else ())]
            times[name].append(time.process_time() - start)
            wanted = wanted or results
            for one, other in zip(results, wanted, strict=True):
                error = float((one - other).abs().max() / other.abs().max())
                assert error < TOLERANCE, f"{name} differs by {error:.1e}"
    return {name: taken[1:] for name, taken in times.items()}


def crossing(results: dict[int, dict[str, tuple[float, float]]], name: str, column: int) -> str:
    """The number of tokens at which an encoder becomes cheaper than fused attention, interpolated on logarithms."""
    sizes = sorted(results)
    gains = [math.log(results[size]["attention, fused"][column] / results[size][name][column]) for size in sizes]
    for (low, before), (high, after) in zip(
        zip(sizes, gains, strict=True), zip(sizes[1:], gains[1:], strict=True), strict=False
    ):
        if before < 0 <= after:
            share = -before / (after - before)
            return f"about {math.exp(math.log(low) + share * math.log(high / low)):,.0f} tokens"
    return "never" if gains[-1] < 0 else f"below {sizes[0]:,} tokens"


def main() -> None:
    """Print tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parsed = parser.parse_args()
    compare_scans(parsed.rounds)
    models = encoders()
    results = {}
    print("tokens   encoder              CPU s   attention fused / this   MiB beyond the model")
    for num_tokens in parsed.tokens:
        results[num_tokens] = measure(passes(models, num_tokens), parsed.rounds)
        reference = results[num_tokens]["attention, fused"][0]
        for name, (seconds, mebibytes) in results[num_tokens].items():
            print(f"{num_tokens:>6,}   {name:<18} {seconds:>8.2f}   {reference / seconds:>22.2f}   {mebibytes:>21,.0f}")
    for name in models:
        if name.startswith("Mamba"):
            print(f"{name}: faster than fused attention from: {crossing(results, name, 0)}; takes less memory from: "
                  f"{crossing(results, name, 1)}.")  # fmt: skip


if __name__ == "__main__":
    main()
