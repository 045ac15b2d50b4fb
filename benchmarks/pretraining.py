"""Benchmark of a pre-training step of ASDA base, 1 clip x 16 clones: ours against a naive twin, same masks and noise.

    OMP_NUM_THREADS=2 python benchmarks/pretraining.py [--bfloat16] [--layers 12]

The peak memory of a forward and backward pass, above weights and gradients, is measured first, each side in a process
of its own, since a peak never falls. Then losses and gradients are compared (float32: 1e-5 and 1e-4 of the largest
magnitude), and updates are timed.
"""

import argparse
import copy
import os
import subprocess
import sys
from dataclasses import replace

import torch
from interleaved import error, machine, medians, peak_mebibytes, resident_mebibytes
from twins import set_by_formula, step_loss

from asda_core.assemble import build_parts
from asda_core.catalog import installed_catalog
from asda_core.config import OptimizerConfig, RunConfig
from asda_core.model.processor import exact_matmul
from asda_core.pretrain.masking import block_masks
from asda_core.pretrain.schedule import make_optimizer

FRAMES, BINS = 1024, 128
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072"}
"""Makes glibc return memory as soon as it is freed; otherwise the numbers of one side vary by a tenth or more."""
SIDES = ("twin", "ours")


class Way:
    """One implementation of an update, ours or the twin's, with a model and an optimiser of its own."""

    def __init__(self, depth: int, ours: bool, half: bool) -> None:
        config = RunConfig()
        config = replace(config, encoder=replace(config.encoder, depth=depth))
        self.parts, self.ours, self.half = build_parts(installed_catalog(), config), ours, half
        set_by_formula(self.parts.encoder, not ours)
        set_by_formula(self.parts.objective.teacher.encoder, not ours)
        trained = [*self.parts.encoder.parameters(), *self.parts.objective.parameters()]
        self.trained = [parameter for parameter in trained if parameter.requires_grad]
        self.optimizer = (
            make_optimizer(self.trained, OptimizerConfig()) if ours else torch.optim.AdamW(self.trained, foreach=False)
        )
        generator = torch.Generator().manual_seed(0)
        self.features = torch.randn(1, BINS, FRAMES, generator=generator)
        settings = self.parts.objective.config
        grid = config.encoder.grid(BINS, FRAMES)
        self.hidden = block_masks(grid, settings.clones, settings.mask, generator)
        shape = (settings.clones, grid[0] * grid[1], config.encoder.dim)
        self.noise = torch.randn(shape, generator=generator) * settings.noise_std

    def gradients(self, anew: bool = True) -> torch.Tensor:
        """Return the loss and leave its gradients in the parameters, added to existing ones unless `anew`."""
        given = (self.features, self.hidden, self.noise)
        encoder, objective = self.parts.encoder, self.parts.objective
        if anew:
            self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            loss = objective.loss_for(encoder, *given).total if self.ours else step_loss(objective, encoder, *given)
        loss.backward()
        return loss.detach()

    def update(self) -> None:
        """Run gradients, clipping, the optimiser and the teacher's update."""
        if self.ours:
            with exact_matmul():
                self.gradients()
        else:
            self.gradients()
        torch.nn.utils.clip_grad_norm_(self.trained, 4.0)
        self.optimizer.step()
        self.parts.objective.after_step(self.parts.encoder, 1)


def activations(way: Way) -> float:
    """Peak MiB of a forward and backward pass, above the weights and their gradients, which are allocated before."""
    for parameter in way.trained:
        parameter.grad = torch.ones_like(parameter)  # zeros take no memory until they are written
    before = resident_mebibytes()
    with exact_matmul():
        way.gradients(anew=False)
    return peak_mebibytes() - before


def compare_memory(layers: int) -> None:
    """Measure and print the memory of both sides, each in a process of its own."""
    found = {}
    for side in SIDES:
        command = [sys.executable, __file__, "--layers", str(layers), "--memory-of", side]
        run = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | GIVES_BACK)
        found[side] = float(run.stdout)
    for side, mebibytes in found.items():
        print(f"{side:<16} {mebibytes:>7.0f} MiB of activations   {mebibytes / found['twin']:.2f} of the twin's")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--memory-of", choices=SIDES, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.memory_of:
        print(activations(Way(parsed.layers, parsed.memory_of == "ours", False)))
        return
    print(machine())
    compare_memory(parsed.layers)
    ways = {"twin": Way(parsed.layers, False, False), "ours": Way(parsed.layers, True, False)}
    ways["ours"].parts.encoder.load_state_dict(copy.deepcopy(ways["twin"].parts.encoder.state_dict()))
    losses = {name: way.gradients() for name, way in ways.items()}
    pairs = zip(ways["ours"].trained, ways["twin"].trained, strict=True)
    largest = max(float(twin.grad.abs().max()) for twin in ways["twin"].trained)
    wrong = max(float((mine.grad - twin.grad).abs().max()) for mine, twin in pairs) / largest
    print(f"loss {losses['ours']:.6f} and {losses['twin']:.6f}; gradients differ by {wrong:.0e} of the largest")
    assert error(losses["ours"], losses["twin"]) < 1e-5
    assert wrong < 1e-4
    if parsed.bfloat16:
        ways |= {"twin, bfloat16": Way(parsed.layers, False, True), "ours, bfloat16": Way(parsed.layers, True, True)}
    taken = medians({name: way.update for name, way in ways.items()}, parsed.rounds)
    for name, seconds in taken.items():
        print(f"{name:<16} {seconds:>7.3f} s per update   {taken['twin'] / seconds:.2f} x")


if __name__ == "__main__":
    main()
