"""One update: the global batch is split into passes, shared by the processes; gradients are of the mean loss.

::

    global batch of 8 clips, micro_batch 2     pass   0     1     2     3        each with a seed of its own
    1 process                                       rank 0 ..................
    2 processes                                     rank 0 .... rank 1 ......    the same passes, the same numbers

An objective's random draws depend on seed, step and number of the pass, so the number of processes changes a result
only by rounding.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from asda_core.config import DataConfig
from asda_core.contracts import Losses
from asda_core.data.clip_batches import Clips
from asda_core.devices import seeded
from asda_core.errors import AsdaError, ConfigError, PluginError
from asda_core.model.encoder import Encoder
from asda_core.pretrain.processes import Processes
from asda_core.pretrain.resuming import step_seed
from asda_core.settings.compute import Precision, divisors
from asda_core.system.paths import newest_step

DROPOUT_SEED_MASK = 0x9E3779B9
"""XORed with the seed of the objective's generator to seed dropout, so that dropout does not repeat the draw of masks.

**Source**: 2^32 over the golden ratio, as in Knuth's multiplicative hashing.
"""
DIVERGENCE_ADVICE = "A lower optimizer.peak_lr or a longer warm-up may help."
"""What to do where a training diverged."""
LOG_KEYS = ("step", "loss", "lr", "grad_norm", "time")
"""Keys in every line of a log."""


class Step(nn.Module):
    """Encoder and objective as one module, so that wrappers see all trainable parameters.

    With "bfloat16" it runs under autocast: products in bfloat16; weights, norms of the targets and losses in float32.
    """

    def __init__(self, encoder: Encoder, objective: Any, precision: Precision = "float32") -> None:
        super().__init__()
        self.encoder = encoder
        self.objective = objective
        self.precision = precision

    def forward(self, features: Float[Tensor, "batch bins frames"], seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a pass and the values logged with it; torch's global generators are left unchanged."""
        generator = torch.Generator().manual_seed(seed)
        device = features.device
        with seeded(device, seed ^ DROPOUT_SEED_MASK):  # dropout draws from the global generators
            torch.clear_autocast_cache()  # an outer autocast keeps casts of weights that an update has changed
            with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                losses = self.objective.loss(self.encoder, features, generator)
        check_losses(losses)
        return losses.total, dict(losses.parts)


def check_losses(losses: Any) -> None:
    """Check that an objective's losses can be minimised and logged.

    Raises:
        PluginError: they cannot.
    """
    if not isinstance(losses, Losses):
        raise PluginError(f"the objective's loss must return Losses, not {type(losses).__name__}.")
    if not isinstance(losses.total, Tensor) or losses.total.ndim or not isinstance(losses.parts, Mapping):
        raise PluginError("the objective's loss must return a scalar tensor as total and a mapping as parts.")
    for name, value in losses.parts.items():
        if not isinstance(name, str):
            raise PluginError(f"the parts of the objective's loss must have strings as names, not {name!r}.")
        if name in LOG_KEYS:
            raise PluginError(f"the objective names a part of its loss {name!r}, which is a reserved log key.")
        if not isinstance(value, Tensor | float | int) or (isinstance(value, Tensor) and value.numel() != 1):
            raise PluginError(f"part {name!r} of the objective's loss must be a single number.")


def check_finite(values: Mapping[str, float], step: int, folder: Path, updated: bool = False) -> None:
    """Check that losses, gradient norms or sums of weights are finite.

    Args:
        values: the values of an update.
        step: its number, from 1.
        folder: folder of the run.
        updated: whether the values were computed after the update, as those of weights are.

    Raises:
        AsdaError: one is not; with the last saved step in the message.
    """
    name = next((name for name, value in values.items() if not math.isfinite(value)), None)
    if name is None:
        return
    finite, hint = "no longer finite", DIVERGENCE_ADVICE
    if step == 1 and not updated:
        finite, hint = "not finite", "This is the first update, so the cause is in the model or its input."
    where = f"at step {step} ({values[name]}); last saved step: {newest_step(folder) or 'none'}"
    raise AsdaError(f"{name} is {finite} {where}. {hint}")


@dataclass(frozen=True)
class Passes:
    """How a process splits its share of a global batch into passes.

    Attributes:
        size: clips in a pass.
        count: passes of this process in an update.
        first: number of its first pass in the global batch.
    """

    size: int
    count: int
    first: int

    def split(self, clips: Clips) -> Iterator[tuple[int, Clips]]:
        """Yield (number of the pass in the global batch, its clips) from this process's clips."""
        for index in range(self.count):
            rows = slice(index * self.size, (index + 1) * self.size)
            yield self.first + index, Clips(clips.audio[rows], clips.num_samples[rows], clips.source_indices[rows])

    def sync_context(self, number: int, wrapped: nn.Module) -> AbstractContextManager[None]:
        """Context that skips the exchange of gradients in all passes but the last; they accumulate locally.

        Sharded gradients are exchanged in every pass, since keeping them unsharded would take the memory that sharding
        saves.
        """
        last = number == self.first + self.count - 1
        return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) and not last else nullcontext()


def plan_passes(config: DataConfig, processes: Processes, initial_size: int | None = None) -> Passes:
    """Return how this process splits its share of a batch.

    Args:
        config: gives `batch_size` and `micro_batch`; null takes `initial_size`, or without it one pass per process.
        processes: the processes that share the batch.
        initial_size: number of clips in a pass when the run began.

    Raises:
        ConfigError: the numbers do not fit; the message lists those that do.
    """
    batch, world = config.batch_size, processes.world_size
    size = config.micro_batch or initial_size
    if size is None:
        if batch % world:
            possible = _joined_by_or(divisors(batch))
            raise ConfigError(
                f"data.batch_size {batch} cannot be divided among {world} processes; their number must be {possible}."
            )
        size = batch // world
    if batch % (size * world):
        origin = "" if config.micro_batch else " (the pass size of this run; only a new run can set data.micro_batch)"
        sizes = _joined_by_or(divisors(batch // world)) if batch % world == 0 else "none"
        raise ConfigError(
            f"data.batch_size {batch} is not a multiple of {world} processes x passes of {size} clips{origin}. "
            f"Possible: {_joined_by_or(divisors(batch // size))} processes with passes of {size}; "
            f"data.micro_batch {sizes} with {world} processes."
        )
    count = batch // (size * world)
    return Passes(size, count, processes.rank * count)


def _joined_by_or(numbers: list[int]) -> str:
    *rest, last = map(str, numbers)
    return f"{', '.join(rest)} or {last}" if rest else last


def pass_seed(seed: int, step: int, number: int) -> int:
    """Seed of all random draws in pass `number` (from 0) of update `step`; that of pass 0 is the seed of the update."""
    if number == 0:
        return step_seed(seed, step)
    return int(np.random.SeedSequence([seed, step, number]).generate_state(1, np.uint64)[0] >> np.uint64(1))
