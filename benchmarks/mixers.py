"""Cost of a training step of each mixer at equal parameters: time and memory, each mixer in a process of its own.

    OMP_NUM_THREADS=1 python benchmarks/mixers.py

The cells are those of `configs/ablations/mixers.yaml`: encoders of 0.893 M parameters, 8 clips of 2.6 s, 4 clones. A
process takes a few steps on random features; rounds over all mixers are interleaved. The output is medians of CPU
seconds per step and of peak memory beyond the built model, and the ratio to standard attention.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from asda_core.assemble import build_parts
from asda_core.catalog import installed_catalog
from asda_core.config import RunConfig
from asda_core.config_io import load_run_config, parse, to_plain, with_change
from asda_core.settings.strict_yaml import read_yaml
from asda_core.system.resources import ResourceUsage
from asda_hear.ablation.plan import PlanConfig
from asda_hear.ablation.size import model_size

PLAN = Path(__file__).parents[1] / "configs" / "ablations" / "mixers.yaml"
STEPS = 6
"""Steps per process; the first two are a warm-up."""
FRAMES = 256
REFERENCE = "standard"


def configs() -> dict[str, RunConfig]:
    """Return label -> run config for every mixer of the plan."""
    plan = parse(PlanConfig, read_yaml(PLAN))
    base = to_plain(load_run_config(PLAN.parent / plan.base))
    found = {}
    for label, changes in plan.axes["mixer"].items():
        plain = base
        for key, value in {**plan.set, **changes}.items():
            plain = with_change(plain, key, value)
        found[label] = parse(RunConfig, plain)
    return found


def one(config: RunConfig) -> dict[str, float]:
    """Median CPU seconds of a step and peak MiB, in this process."""
    parts = build_parts(installed_catalog(), config)
    features = torch.randn(config.data.batch_size, parts.front_end.num_bins, FRAMES)
    taken = []
    with ResourceUsage() as cost:
        for step in range(STEPS):
            start = time.process_time()
            losses = parts.objective.loss(parts.encoder, features, torch.Generator().manual_seed(step))
            losses.total.backward()
            parts.encoder.zero_grad(set_to_none=True)
            parts.objective.zero_grad(set_to_none=True)
            taken.append(time.process_time() - start)
    return {"seconds": statistics.median(taken[2:]), "mebibytes": cost.mebibytes}


def main() -> None:
    """Print a table, or with `--one` the numbers of one mixer as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", help="a mixer of the plan")
    parsed = parser.parse_args()
    runs = configs()
    if parsed.one:
        print(json.dumps(one(runs[parsed.one])))
        return
    taken: dict[str, list[dict[str, float]]] = {label: [] for label in runs}
    for _ in range(parsed.rounds):
        for label in runs:
            command = [sys.executable, __file__, "--one", label]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            taken[label].append(json.loads(printed))
    medians = {
        label: [statistics.median(each[key] for each in found) for key in ("seconds", "mebibytes")]
        for label, found in taken.items()
    }
    print("mixer                  parameters   GFLOPs a clip   step, CPU s   ratio   MiB")
    for label, (seconds, mebibytes) in medians.items():
        size = model_size(installed_catalog(), runs[label])
        ratio = seconds / medians[REFERENCE][0]
        print(f"{label:<22} {size['parameters']:>10,}   {size['gflops']:>13.3f}   {seconds:>11.3f}   {ratio:>5.2f}   "
              f"{mebibytes:>3,.0f}")  # fmt: skip


if __name__ == "__main__":
    main()
