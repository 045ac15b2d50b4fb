"""The processes that train one run together: their ranks, process group and collective operations.

A run started by hand is one process, `SINGLE_PROCESS`. `torchrun` starts several; each reads its rank with
`processes_from_environment`::

    node 0   rank 0  rank 1      each reads its rows of the global batch, runs its passes over them, and
    node 1   rank 2  rank 3      takes part in the mean of the gradients; rank 0 alone writes
"""

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from asda_core.devices import device_name, usable_device
from asda_core.errors import AsdaError, ConfigError, TrainingStopped

COLLECTIVE_TIMEOUT = timedelta(minutes=10)
"""Timeout of one collective operation, such as waiting while rank 0 saves."""
EXIT_DELAY_SECONDS = 2.0
"""Delay before a process that lost another one exits, so that torchrun first sees and names the one that failed."""
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
"""Communication backend by device. On a GPU, CPU tensors such as the stop flag still go through gloo."""
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")
RESTART_COUNT_VARIABLE = "TORCHELASTIC_RESTART_COUNT"

ValueT = TypeVar("ValueT")


@dataclass(frozen=True)
class Processes:
    """Rank of this process among those of the run.

    Attributes:
        rank: from 0.
        world_size: number of processes.
        local_rank: rank on this machine, and index of its GPU.
        has_launcher: whether a launcher started it, which sends signals of its own.
        attempt: number of times the launcher has restarted all processes (`torchrun --max-restarts`).
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    has_launcher: bool = False
    attempt: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes."""
        return self.rank == 0

    def gather(self, local_value: ValueT) -> list[ValueT]:
        """Return the values of all processes, in order of rank; all must call this."""
        if self.world_size == 1:
            return [local_value]
        values: list[ValueT] = [local_value] * self.world_size
        dist.all_gather_object(values, local_value)
        return values

    def any(self, local_value: bool) -> bool:
        """Return whether `local_value` is True in any process; all must call this."""
        if self.world_size == 1:
            return local_value
        flag = torch.tensor(int(local_value))
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    def mean(self, local_values: Mapping[str, float]) -> dict[str, float]:
        """Return the mean of each value over the processes, the same number in all; all must call this."""
        by_rank = self.gather(dict(local_values))
        return {name: sum(values[name] for values in by_rank) / self.world_size for name in local_values}

    def check_same(self, name: str, local_value: str) -> None:
        """Raise unless all processes have the same value; all must call this.

        Raises:
            ConfigError: the values differ; the message names each.
        """
        values = self.gather(local_value)
        if len(set(values)) > 1:
            listing = "; ".join(f"process {rank}: {value}" for rank, value in enumerate(values))
            raise ConfigError(f"{name} must be the same in all {self.world_size} processes. {listing}.")

    def barrier(self) -> None:
        """Wait until all processes have called this."""
        self.any(False)


SINGLE_PROCESS = Processes()
"""A run of one process."""


def processes_from_environment(environment: Mapping[str, str]) -> Processes:
    """Return the rank of this process from the variables of `torchrun` or another launcher; else `SINGLE_PROCESS`.

    Raises:
        ConfigError: a variable is not a whole number.
    """
    if any(name not in environment for name in LAUNCHER_VARIABLES):
        return SINGLE_PROCESS
    try:
        rank, world, local = (int(environment[name]) for name in LAUNCHER_VARIABLES[:3])
        attempt = int(environment.get(RESTART_COUNT_VARIABLE, 0))
    except ValueError:
        variables = ", ".join(f"{name}={environment[name]!r}" for name in LAUNCHER_VARIABLES[:3])
        raise ConfigError(f"the launcher's environment variables must be integers, not {variables}.") from None
    return Processes(rank, world, local, has_launcher=True, attempt=attempt)


def process_device(name: str, processes: Processes) -> torch.device:
    """Return the device of this process: the named one, and for several processes the GPU with its local rank.

    Raises:
        ConfigError: there is no such device, or this machine has fewer GPUs than processes.
    """
    name = device_name(name)
    if processes.world_size == 1 or name == "cpu":
        return usable_device(name)
    if not name.startswith("cuda"):
        raise ConfigError(f"device {name!r} does not support several processes; use 'cpu' or 'cuda'.")
    if name != "cuda":
        raise ConfigError(f"device {name!r}: each of {processes.world_size} processes uses its own GPU; use 'cuda'.")
    if 0 < torch.cuda.device_count() <= processes.local_rank:
        raise ConfigError(
            f"process {processes.rank} has local rank {processes.local_rank} on a machine with "
            f"{torch.cuda.device_count()} GPUs; use torchrun --nproc-per-node {torch.cuda.device_count()}."
        )
    return usable_device(f"cuda:{processes.local_rank}")


@contextmanager
def process_group(processes: Processes, device: torch.device) -> Iterator[None]:
    """Context in which the processes of a run form a process group; does nothing for a run of one process.

    Raises:
        AsdaError: another process ended within the context. The run has ended, and can be resumed.
    """
    if processes.world_size == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        _init_group(processes, BACKENDS[device.type])
        yield
    except TrainingStopped:  # raised in all processes
        dist.destroy_process_group()
        raise
    except RuntimeError as error:
        if not is_communication_error(error):
            raise
        with suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends the others with it: report this first
        time.sleep(EXIT_DELAY_SECONDS)
        raise AsdaError(
            f"process {processes.rank} of {processes.world_size} lost another process "
            f"({str(error).splitlines()[0]:.160}). torchrun reports below which one ended first, and how. The same "
            "command, with this or another number of processes, resumes from the newest saved step."
        ) from None
    dist.destroy_process_group()


def _init_group(processes: Processes, backend: str) -> None:
    """Initialise the process group, separately for each attempt: torchrun's store keeps addresses of earlier ones."""
    store, rank, world = next(rendezvous("env://", timeout=COLLECTIVE_TIMEOUT))
    attempt_store = dist.PrefixStore(f"attempt {processes.attempt}", store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=attempt_store, rank=rank, world_size=world, timeout=COLLECTIVE_TIMEOUT)


def is_communication_error(error: RuntimeError) -> bool:
    """Whether an error comes from communication between processes: gloo raises plain ones that name its own path."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()
