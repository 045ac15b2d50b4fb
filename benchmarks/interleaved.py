"""Shared helpers of the benchmarks: interleaved timing, memory, the machine, the rate of products, errors."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from asda_core.model.processor import exact_matmul, processor

MILLISECONDS = 1000
Side = Callable[[], object]


def machine() -> str:
    """Describe processor, threads, and the features that decide which code path is used."""
    name, cpuinfo = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = [
            line.split(":")[1].strip()
            for line in cpuinfo.read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ]
        name = found[0] if found else name
    kind = processor()
    return (
        f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s), torch {torch.__version__}; "
        f"products through oneDNN: {'yes' if kind.wide_vectors else 'no'}; bfloat16: {'yes' if kind.bfloat16 else 'no'}"
    )


def medians(sides: Mapping[str, Side], rounds: int) -> dict[str, float]:
    """Median seconds of each side; the order is reversed every other round, and the first round is a warm-up."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name in list(sides) if number % 2 else list(sides)[::-1]:
            start = time.perf_counter()
            sides[name]()
            if number:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


def product_rate(dtype: torch.dtype, rounds: int = 5) -> float:
    """FLOP/s of one large product, the faster of PyTorch's default and `exact_matmul`."""
    left, right = torch.randn(4104, 768, dtype=dtype), torch.randn(768, 3840, dtype=dtype)

    def exact() -> None:
        with exact_matmul():
            left @ right

    best = min(medians({"plain": lambda: left @ right, "exact": exact}, rounds).values())
    return 2 * left.shape[0] * left.shape[1] * right.shape[1] / best


def resident_mebibytes() -> float:
    """Return the resident memory in MiB and reset the peak, which a process otherwise inherits from its parent."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak_mebibytes() -> float:
    """Peak resident memory in MiB since the last call of `resident_mebibytes`."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference, relative to the largest magnitude."""
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())
