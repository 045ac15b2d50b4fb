"""Benchmark on an accelerator: matrix products, attention at several lengths, and whole pre-training updates.

    python benchmarks/gpu.py [--clips 12 24 48] [--set compute.precision=bfloat16 ...]

One call does all: (1) the rate of large products, the reference for the rest; (2) differential attention as it runs,
by its formula, and standard attention, forward and with gradients; (3) updates of ASDA base from waveforms, ours
against a naive twin that repeats clips for their clones and holds maps: clips per second, share of the rate, memory;
(4) a profile of one of our updates. Results are compared first. `--device cpu` runs it anywhere, slowly.
"""

import argparse
import gc
from collections.abc import Callable
from contextlib import nullcontext

import torch
from asda_plugins.mixer_differential import DifferentialAttention, DifferentialConfig
from asda_plugins.mixer_standard import StandardAttention, StandardConfig
from interleaved import MILLISECONDS, error, machine, medians
from torch.utils.flop_counter import FlopCounterMode
from twins import set_by_formula, step_loss

from asda_core.assemble import build_parts
from asda_core.catalog import installed_catalog
from asda_core.commands.config_arguments import apply_changes
from asda_core.config import RunConfig
from asda_core.devices import device_name, to_device
from asda_core.layout import TokenLayout
from asda_core.pretrain.masking import block_masks
from asda_core.pretrain.schedule import make_optimizer
from asda_core.pretrain.step import Step

SIZE = 8192
"""Width of the square product whose rate is the reference."""
WIDTH, HEADS = 768, 12
"""Of ASDA base."""
TOKENS = (103, 513, 2049, 8193)
ROWS_OF_TOKENS = 98_304
"""Tokens in a batch of attention at any number of tokens per clip: 192 clones of 512."""
HALF_ERROR, LOSS_ERROR = 3e-2, 1e-2
"""Tolerances: of attention in bfloat16 against float32, and of the loss of an update against the twin's."""
TERA, GIBIBYTE = 1e12, 1 << 30


class Device:
    """The device, with helpers to synchronise and to measure memory."""

    def __init__(self, name: str) -> None:
        self.device = torch.device(name)
        self.is_gpu = self.device.type == "cuda"

    def waited(self, work: Callable[[], object]) -> Callable[[], None]:
        """Wrap `work` so that it returns only when the device has finished."""

        def done() -> None:
            work()
            if self.is_gpu:
                torch.cuda.synchronize()

        return done

    def told(self) -> str:
        """The name of the device."""
        return torch.cuda.get_device_name(self.device) if self.is_gpu else "the CPU"

    def half(self, on: bool = True) -> torch.autocast:
        """Autocast to bfloat16 if `on`."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=on)

    def peak(self, work: Callable[[], object]) -> float:
        """Peak of allocated memory during `work` in GiB; 0 if it is not a GPU."""
        if not self.is_gpu:
            return 0.0
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        self.waited(work)()
        return torch.cuda.max_memory_allocated() / GIBIBYTE


def product_rate(on: Device, size: int, dtype: torch.dtype, rounds: int) -> float:
    """FLOP/s of a square product."""
    left, right = (torch.randn(size, size, device=on.device).to(dtype) for _ in range(2))
    return 2 * size**3 / medians({"product": on.waited(lambda: left @ right)}, rounds)["product"]


def attention(on: Device, tokens: int, train: bool, rate: float, rounds: int) -> None:
    """Compare differential attention with its formula and with standard attention at one length."""
    clips = max(1, ROWS_OF_TOKENS // tokens) if on.is_gpu else 1
    torch.manual_seed(0)
    differential = DifferentialAttention(DifferentialConfig(), WIDTH, HEADS).to(on.device)
    standard = StandardAttention(StandardConfig(), WIDTH, HEADS).to(on.device)
    given = torch.randn(clips, tokens, WIDTH, device=on.device, requires_grad=train)
    layout = TokenLayout.full(clips, (tokens, 1), on.device)

    def run(mixer: torch.nn.Module, by_formula: bool = False, half: bool = True) -> torch.Tensor:
        differential.by_formula = by_formula
        with on.half(half), nullcontext() if train else torch.no_grad():
            mixed: torch.Tensor = mixer(given, layout)
        if train:
            mixed.float().square().mean().backward()
            given.grad = None
            mixer.zero_grad(set_to_none=True)
        return mixed.detach()

    exact = run(differential, by_formula=tokens <= max(TOKENS[:3]), half=False)
    wrong = error(run(differential), exact)
    assert wrong < HALF_ERROR, f"differential attention in bfloat16 is off by {wrong:.1e} at {tokens} tokens"
    sides: dict[str, Callable[[], object]] = {
        "ours": on.waited(lambda: run(differential)),
        "standard": on.waited(lambda: run(standard)),
    }
    if tokens <= max(TOKENS[:3]):  # for longer clips the maps alone would take hundreds of GiB
        sides["formula"] = on.waited(lambda: run(differential, by_formula=True))
    with FlopCounterMode(display=False) as counter:
        run(differential)
    taken = medians(sides, rounds)
    share = counter.get_total_flops() / taken["ours"] / rate
    formula = f"{taken['formula'] / taken['ours']:.2f} x the formula" if "formula" in taken else "formula not run"
    print(
        f"  {clips:>4} x {tokens:<5} {'training' if train else 'forward':<9} {taken['ours'] * MILLISECONDS:>9.2f} ms  "
        f"{formula}   {taken['ours'] / taken['standard']:.2f} of standard's time   {share:.0%} of the products' rate"
    )


class Update:
    """An update of a model from waveforms, ours or the twin's."""

    def __init__(self, on: Device, config: RunConfig, clips: int, ours: bool) -> None:
        self.on, self.config, self.ours, self.number = on, config, ours, 0
        parts = build_parts(installed_catalog(), config)
        self.front_end, self.encoder, self.objective = (
            module.to(on.device) for module in (parts.front_end, parts.encoder, parts.objective)
        )
        self.step = Step(self.encoder, self.objective, config.compute.precision)
        set_by_formula(self.encoder, not ours)
        set_by_formula(self.objective.teacher.encoder, not ours)
        every = [*self.encoder.parameters(), *self.objective.parameters()]
        self.trained = [parameter for parameter in every if parameter.requires_grad]
        usual = torch.optim.AdamW(self.trained, foreach=False)
        self.optimizer = make_optimizer(self.trained, config.optimizer) if ours else usual
        samples = round(config.data.clip_seconds * self.front_end.sample_rate)
        self.audio = torch.randn(clips, samples, generator=torch.Generator().manual_seed(0)) * 0.1

    def loss(self) -> torch.Tensor:
        """Loss with masks that depend on the number of the update."""
        with torch.no_grad():
            features = self.front_end(to_device(self.audio, self.on.device))
        if self.ours:
            return self.step(features, self.number)[0]
        settings, grid = self.objective.config, self.encoder.config.grid(*features.shape[1:])
        generator = torch.Generator().manual_seed(self.number)
        hidden = block_masks(grid, len(features) * settings.clones, settings.mask, generator).to(self.on.device)
        noise = torch.randn(*hidden.shape, self.encoder.config.dim, device=self.on.device) * settings.noise_std
        with self.on.half(self.config.compute.precision == "bfloat16"):
            return step_loss(self.objective, self.encoder, features, hidden, noise)

    def gradients(self) -> torch.Tensor:
        """Return the loss and leave its gradients in the parameters."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        return loss.detach()

    def update(self) -> None:
        """Run gradients, clipping, the optimiser and the teacher's update."""
        self.gradients()
        torch.nn.utils.clip_grad_norm_(self.trained, self.config.optimizer.clip_norm)
        self.optimizer.step()
        self.number += 1
        if self.ours:
            self.objective.after_step(self.encoder, self.number)
            return
        with torch.no_grad():
            pairs = zip(self.objective.teacher.encoder.parameters(), self.encoder.parameters(), strict=True)
            for mine, theirs in pairs:
                mine.mul_(0.9998).add_(theirs, alpha=0.0002)


def updates(on: Device, config: RunConfig, clips: int, rate: float, rounds: int) -> None:
    """Compare updates with `clips` clips, ours and the twin's."""
    ways = {name: Update(on, config, clips, name == "ours") for name in ("twin", "ours")}
    losses = {name: way.gradients() for name, way in ways.items()}  # same masks, different noise
    assert error(losses["ours"], losses["twin"]) < LOSS_ERROR, losses
    with FlopCounterMode(display=False) as counter:
        ways["ours"].gradients()
    memory = {name: on.peak(way.update) for name, way in ways.items()}
    taken = medians({name: on.waited(way.update) for name, way in ways.items()}, rounds)
    print(f"  {clips} clips x {ways['ours'].objective.config.clones} clones, {config.compute.precision}:")
    for name, seconds in taken.items():
        print(
            f"    {name:<5} {seconds * MILLISECONDS:>9.1f} ms   {clips / seconds:>7.1f} clips/s   "
            f"{counter.get_total_flops() / seconds / rate:>4.0%} of the products' rate   {memory[name]:>5.1f} GiB   "
            f"{taken['twin'] / seconds:.2f} x"
        )


def profile(on: Device, config: RunConfig, clips: int, rows: int) -> None:
    """Print the operations in which one of our updates spends most time."""
    way = Update(on, config, clips, ours=True)
    way.update()
    kinds = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * on.is_gpu
    with torch.profiler.profile(activities=kinds) as found:
        on.waited(way.update)()
    order = "self_device_time_total" if on.is_gpu else "self_cpu_time_total"
    print(found.key_averages().table(sort_by=order, row_limit=rows, max_name_column_width=70))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--clips", type=int, nargs="+", default=[12, 24, 48])
    parser.add_argument("--tokens", type=int, nargs="*", default=list(TOKENS))
    parser.add_argument("--size", type=int, default=SIZE, help="of the product whose rate is the measure")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--profile", type=int, default=25, help="rows of the profile")
    parser.add_argument("--set", nargs="+", default=["compute.precision=bfloat16"], help="keys of the config")
    parsed = parser.parse_args()
    on, config = Device(device_name(parsed.device)), apply_changes(RunConfig(), parsed.set)
    print(f"{on.told()}; {machine()}")
    rates = {dtype: product_rate(on, parsed.size, dtype, parsed.rounds) for dtype in (torch.float32, torch.bfloat16)}
    for dtype, rate in rates.items():
        print(f"products of {parsed.size}: {rate / TERA:.1f} TFLOP/s in {dtype}")
    print("differential attention in bfloat16:")
    for tokens in parsed.tokens:
        for train in (False, True):
            attention(on, tokens, train, rates[torch.bfloat16], parsed.rounds)
    print("updates:")
    half = config.compute.precision == "bfloat16"
    for clips in parsed.clips:
        updates(on, config, clips, rates[torch.bfloat16 if half else torch.float32], parsed.rounds)
    if parsed.profile:
        profile(on, config, parsed.clips[0], parsed.profile)


if __name__ == "__main__":
    main()
