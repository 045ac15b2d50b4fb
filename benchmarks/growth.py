"""Growth of time and memory with file length, number of files, batch, depth and tokens, in one figure.

    OMP_NUM_THREADS=1 python benchmarks/growth.py docs/growth

measures each point in a process of its own, since a peak never falls, writes `docs/growth.csv` along the way (points
already in it are not measured again; delete the file to start afresh) and draws `docs/growth.svg`:

- `length`: `asda embed` of one WAV file at 44.1 kHz, frame by frame, in windows, with the package's model;
- `files`: `asda embed` of several WAV files of 2 s; `batch`, `depth`: clips of 10 s through encoders of width 192;
- `tokens`: differential attention of ASDA base on a sequence, with this machine's fast path and by its formula;
- `pairs`: frequency-time attention on 12 bands, by lines and as a dense map.

Memory is the peak above the loaded model. The legend gives the exponent of each curve, fitted to the upper half of its
points: 1 is linear, 2 quadratic.
"""

import argparse
import csv
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from asda_plugins.mixer_differential import DifferentialAttention, DifferentialConfig
from asda_plugins.mixer_frequency_time import FrequencyTimeAttention, FrequencyTimeConfig
from frequency_time import dense
from interleaved import machine, peak_mebibytes
from long_audio import clip_encoder_of, resident_with_weights, write_noise
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm import tqdm

from asda_core.assemble import build_encoder
from asda_core.catalog import installed_catalog
from asda_core.config_io import load_run_config
from asda_core.inference.embedding import embed_files
from asda_core.layout import TokenLayout
from asda_core.model.processor import exact_matmul
from asda_hear.names import DEFAULT_WEIGHTS

FIELDS = ("axis", "side", "size", "seconds", "mebibytes")
SIZES: dict[tuple[str, str], tuple[int, ...]] = {
    ("length", "asda embed"): (1, 4, 15, 60, 240, 900, 3_600, 10_800),
    ("files", "asda embed"): (10, 30, 100, 300, 1_000),
    ("batch", "10 s each"): (1, 2, 4, 8, 16, 32),
    ("depth", "10 s"): (1, 2, 4, 8, 16),
    ("tokens", "this machine's way"): (128, 256, 512, 1_024, 2_048, 4_096, 8_192),
    ("tokens", "by formula"): (128, 256, 512, 1_024, 2_048, 4_096),
    ("pairs", "lines"): (300, 600, 1_200, 2_400, 4_800, 9_600),
    ("pairs", "dense map"): (300, 600, 1_200, 2_400, 4_800),
}
LABELS = {
    "length": "seconds of audio in one file",
    "files": "files of 2 s",
    "batch": "clips in a batch",
    "depth": "blocks",
    "tokens": "tokens, differential attention",
    "pairs": "tokens, frequency-time attention",
}
WIDTH, HEADS, BANDS = 768, 12, 12
"""Width and heads of ASDA base; bands of AST's overlapping patches."""
TEN_SECONDS = 1024
"""Frames."""
REPEATED_SECONDS = 3.0
"""A measurement is repeated until it has taken so long in total; the median is taken."""


def embedding(files: int, seconds: int, folder: Path) -> tuple[Callable[[], object], torch.nn.Module]:
    """`asda embed` on files of noise, as a function to time, and its model."""
    for number in range(files):
        write_noise(folder / f"{number:05d}.wav", seconds)
    names = {file: Path(f"{file.stem}.npy") for file in sorted(folder.glob("*.wav"))}
    clip_encoder, job = clip_encoder_of(DEFAULT_WEIGHTS)
    runs = iter(range(1_000_000))
    return lambda: embed_files(
        clip_encoder, names, folder / f"out{next(runs)}", job, progress=False
    ), clip_encoder.encoder


def encoding(batch: int, depth: int) -> tuple[Callable[[], object], torch.nn.Module]:
    """Clips of 10 s through an encoder like the package's, as a function to time, and its model."""
    config = replace(load_run_config("asda_small").encoder, depth=depth, patch_frames=16, patch_bins=16)
    encoder = build_encoder(installed_catalog(), config).eval()
    features = torch.randn(batch, 128, TEN_SECONDS)
    return lambda: encoder(features), encoder


def attending(side: str, tokens: int) -> tuple[Callable[[], object], torch.nn.Module]:
    """One mixer of the size of ASDA base, as a function to time, and the mixer."""
    layout, sequence = TokenLayout.full(1, (tokens // BANDS, BANDS)), torch.randn(1, tokens, WIDTH)
    if side in ("lines", "dense map"):
        lines = FrequencyTimeAttention(FrequencyTimeConfig(), WIDTH, HEADS).eval()
        return (lambda: lines(sequence, layout)) if side == "lines" else lambda: dense(lines, sequence, layout), lines
    layout = TokenLayout.full(1, (tokens, 1))
    mixer = DifferentialAttention(DifferentialConfig(), WIDTH, HEADS).eval()
    mixer.by_formula = side == "by formula"
    return lambda: mixer(sequence, layout), mixer


def point(axis: str, side: str, size: int, folder: Path) -> tuple[float, float]:
    """Median seconds, and peak memory in MiB above that of the loaded model."""
    torch.manual_seed(0)
    if axis in ("length", "files"):
        run, model = embedding(1, size, folder) if axis == "length" else embedding(size, 2, folder)
    elif axis in ("batch", "depth"):
        run, model = encoding(size, 4) if axis == "batch" else encoding(4, size)
    else:
        run, model = attending(side, size)
    before, taken = resident_with_weights(model), []
    with torch.no_grad(), exact_matmul():
        while not taken or sum(taken) < REPEATED_SECONDS:
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:] or taken), peak_mebibytes() - before


def measured(axis: str, side: str, size: int) -> tuple[float, float]:
    """Run `point` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, folder, "--point", axis, side, str(size)]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, mebibytes = map(float, result.stdout.split())
    return seconds, mebibytes


def measure_all(file: Path) -> list[dict[str, str]]:
    """Return all rows, those already in the file first; missing points are measured and appended one by one."""
    rows = list(csv.DictReader(file.open(encoding="utf-8"))) if file.exists() else []
    if not rows:
        file.write_text(",".join(FIELDS) + "\n", encoding="utf-8")
    there = {(row["axis"], row["side"], row["size"]) for row in rows}
    missing = [(*pair, size) for pair, sizes in SIZES.items() for size in sizes if (*pair, str(size)) not in there]
    for axis, side, size in tqdm(missing, unit="point"):
        seconds, mebibytes = measured(axis, side, size)
        values = (axis, side, str(size), f"{seconds:.4g}", f"{mebibytes:.1f}")
        with file.open("a", encoding="utf-8") as opened:
            opened.write(",".join(values) + "\n")
        rows.append(dict(zip(FIELDS, values, strict=True)))
    return rows


def curves(rows: Iterable[dict[str, str]], axis: str, what: str) -> dict[str, tuple[list[float], list[float]]]:
    """Return side -> (sizes, values), sorted by size."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["axis"] == axis:
            found.setdefault(row["side"], []).append((float(row["size"]), float(row[what])))
    return {side: tuple(map(list, zip(*sorted(pairs), strict=True))) for side, pairs in found.items()}  # type: ignore[misc]


def draw(axes: Axes, rows: list[dict[str, str]], axis: str, what: str) -> None:
    """Draw one panel with logarithmic axes, the exponent of each curve and, for time, a line of slope 1."""
    for side, (sizes, values) in curves(rows, axis, what).items():
        half = len(sizes) // 2
        slope = statistics.linear_regression(
            list(map(math.log, sizes[half:])), list(map(math.log, values[half:]))
        ).slope
        (line,) = axes.loglog(sizes, values, marker="o", markersize=3, label=f"{side} (exponent {slope:.2f})")
        print(f"{axis:>6} {what:>9} {side:<18} {sizes[half]:>6,.0f} to {sizes[-1]:>6,.0f}: exponent {slope:.2f}")
        if what == "seconds":
            straight = [values[-1] * size / sizes[-1] for size in sizes]
            axes.loglog(sizes, straight, linestyle=":", linewidth=0.8, color=line.get_color())
    axes.set_xlabel(LABELS[axis])
    axes.set_ylabel("seconds" if what == "seconds" else "MiB above the model")
    if what == "mebibytes":
        axes.set_ylim(bottom=1)
    axes.legend(fontsize=7, frameon=False)
    axes.grid(alpha=0.3, linewidth=0.5)


def picture(rows: list[dict[str, str]], file: Path) -> None:
    """Draw all panels: time above, memory below."""
    figure = Figure(figsize=(3.1 * len(LABELS), 6), layout="constrained")
    FigureCanvasAgg(figure)
    table = figure.subplots(2, len(LABELS), squeeze=False)
    for column, axis in enumerate(LABELS):
        for row, what in enumerate(("seconds", "mebibytes")):
            draw(table[row][column], rows, axis, what)
    figure.suptitle(f"{machine()}\ndotted: straight lines through the last point", fontsize=8)
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Measure missing points and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="name without ending, as in docs/growth")
    parser.add_argument("--point", nargs=3, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.point:
        axis, side, size = parsed.point
        print(*point(axis, side, int(size), parsed.out))
        return
    print(machine(), f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS')}")
    picture(measure_all(parsed.out.with_suffix(".csv")), parsed.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
