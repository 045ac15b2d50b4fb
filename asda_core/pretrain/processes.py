"""The processes that train one run together: who they are, how they meet, and what they agree on.

Started by hand a run is one process, `ALONE`. `torchrun` starts several; each asks `launched` who it is::

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

from asda_core.devices import named_device, usable_device
from asda_core.errors import AsdaError, ConfigError, TrainingStopped

PATIENCE = timedelta(minutes=10)
"""How long a process waits for the others in one exchange, such as while the first saves, before it gives up."""
FAREWELL_SECONDS = 2.0
"""How long a process that lost another stays, so that torchrun sees first who went first, and names that one."""
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
"""What carries the exchange, by device. Beside a GPU what stands on the CPU, such as a wish to stop, goes by gloo."""
TOLD_BY_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")
ATTEMPT = "TORCHELASTIC_RESTART_COUNT"

ValueT = TypeVar("ValueT")


@dataclass(frozen=True)
class Processes:
    """Who this process is among those of the run.

    Attributes:
        rank: its number, from 0.
        world: how many there are.
        local: its number on this machine; that of its GPU.
        by_launcher: whether a launcher started it, which sends signals of its own.
        attempt: how often the launcher has begun all of them again (`torchrun --max-restarts`).
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    by_launcher: bool = False
    attempt: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def gather(self, mine: ValueT) -> list[ValueT]:
        """The values of all processes, by rank; all must ask."""
        if self.world == 1:
            return [mine]
        found: list[ValueT] = [mine] * self.world
        dist.all_gather_object(found, mine)
        return found

    def any(self, mine: bool) -> bool:
        """Whether it holds for one of the processes; all must ask."""
        if self.world == 1:
            return mine
        flag = torch.tensor(int(mine))
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    def mean(self, mine: Mapping[str, float]) -> dict[str, float]:
        """The mean of each value over the processes, the same number in all; all must ask."""
        found = self.gather(dict(mine))
        return {name: sum(each[name] for each in found) / self.world for name in mine}

    def check_same(self, what: str, mine: str) -> None:
        """Refuse to go on where processes differ in a fact; all must ask.

        Raises:
            ConfigError: naming what each has.
        """
        found = self.gather(mine)
        if len(set(found)) > 1:
            each = "; ".join(f"process {rank}: {value}" for rank, value in enumerate(found))
            raise ConfigError(f"the {self.world} processes must have {what} in common. {each}.")

    def wait(self) -> None:
        """Until all are here."""
        self.any(False)


ALONE = Processes()
"""A run of one process."""


def launched(environment: Mapping[str, str]) -> Processes:
    """Who this process is by what `torchrun` (or another launcher) put into its environment; else `ALONE`.

    Raises:
        ConfigError: what is there is no number.
    """
    if any(name not in environment for name in TOLD_BY_LAUNCHER):
        return ALONE
    try:
        rank, world, local = (int(environment[name]) for name in TOLD_BY_LAUNCHER[:3])
        attempt = int(environment.get(ATTEMPT, 0))
    except ValueError:
        told = ", ".join(f"{name}={environment[name]!r}" for name in TOLD_BY_LAUNCHER[:3])
        raise ConfigError(f"the launcher's environment must hold whole numbers, not {told}.") from None
    return Processes(rank, world, local, by_launcher=True, attempt=attempt)


def own_device(name: str, processes: Processes) -> torch.device:
    """The device of this process: the one of that name, and of GPUs the one with its number on the machine.

    Raises:
        ConfigError: there is no such device, or there are fewer GPUs than processes here.
    """
    name = named_device(name)
    if processes.world == 1 or name == "cpu":
        return usable_device(name)
    if not name.startswith("cuda"):
        raise ConfigError(f"device {name!r}: several processes train on 'cpu' or 'cuda'.")
    if name != "cuda":
        raise ConfigError(f"device {name!r}: each of {processes.world} processes takes a GPU of its own; give 'cuda'.")
    if 0 < torch.cuda.device_count() <= processes.local:
        raise ConfigError(
            f"process {processes.rank} is number {processes.local} (from 0) on its machine, which has "
            f"{torch.cuda.device_count()} GPUs: torchrun --nproc-per-node {torch.cuda.device_count()}."
        )
    return usable_device(f"cuda:{processes.local}")


@contextmanager
def joined(processes: Processes, device: torch.device) -> Iterator[None]:
    """Let the processes of a run talk to each other; nothing happens in a run of one.

    Raises:
        AsdaError: within it, another process has gone. The run is over, and can be gone on with.
    """
    if processes.world == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        _meet(processes, BACKENDS[device.type])
        yield
    except TrainingStopped:  # in all of them
        dist.destroy_process_group()
        raise
    except RuntimeError as error:
        if not of_exchange(error):
            raise
        with suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # by which torchrun ends the others: first this is told
        time.sleep(FAREWELL_SECONDS)
        raise AsdaError(
            f"process {processes.rank} of {processes.world} lost another one ({str(error).splitlines()[0]:.160}). "
            "torchrun tells below which one ended first, and how. The same command, with this or another number of "
            "processes, resumes from the newest saved step."
        ) from None
    dist.destroy_process_group()


def _meet(processes: Processes, backend: str) -> None:
    """Processes of one attempt find each other: torchrun's store keeps the addresses of those of earlier attempts."""
    store, rank, world = next(rendezvous("env://", timeout=PATIENCE))
    of_attempt = dist.PrefixStore(f"attempt {processes.attempt}", store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=of_attempt, rank=rank, world_size=world, timeout=PATIENCE)


def of_exchange(error: RuntimeError) -> bool:
    """Whether an error came of the exchange between processes: gloo raises plain ones that begin with its own path."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()
