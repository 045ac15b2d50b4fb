"""Device names, transfer of tensors to a device, random generators on it, and torch's modes and default dtype."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from asda_core.errors import ConfigError
from asda_core.settings.compute import AUTO

_BUILDING = threading.RLock()
"""Held while modules are built."""


def usable_device(name: str) -> torch.device:
    """Return the device of that name, which may be `AUTO`.

    Raises:
        ConfigError: the device cannot be used on this machine.
    """
    try:
        return torch.empty(0, device=device_name(name)).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise ConfigError(f"the device {name!r} cannot be used here: {reason}.") from None


def device_name(name: str) -> str:
    """Return the name itself, or the name of the device that `AUTO` selects on this machine."""
    if name != AUTO:
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Move values to a device, to a GPU through pinned memory so that its pending work is not waited for."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def generator_on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """Return a generator for drawing many numbers at once on a device.

    Args:
        device: where the numbers are needed.
        generator: a generator of the CPU.

    Returns:
        on the CPU, `generator` itself; otherwise a generator of the device, seeded with a number drawn from it: the
        same in every run, though its numbers are not those of the CPU.
    """
    if device.type == "cpu":
        return generator
    seed = int(torch.randint(torch.iinfo(torch.int64).max, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Set torch's default dtype for the block, and restore it afterwards, whatever is imported in the block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def own_modes() -> Iterator[None]:
    """Run the block in torch's initial modes, whatever the caller's are, so that the same call has the same result.

    New tensors are float32 and on the CPU, autocast is off, gradients are on and no tensor is an inference tensor.
    """
    moved = torch.get_default_device().type != "cpu"
    with ExitStack() as modes:
        if moved:  # costs time in every call of torch
            modes.enter_context(torch.device("cpu"))
        modes.enter_context(default_dtype(torch.float32))
        modes.enter_context(torch.inference_mode(False))  # which turns gradients on
        for kind in filter(torch.is_autocast_enabled, ("cpu", "cuda")):
            modes.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def building(seed: int | None = None) -> Iterator[None]:
    """Build modules in the block, in float32, leaving torch's global generators, also those of GPUs, as they were.

    One thread is in such a block at a time: the generator and the default dtype are those of the process.

    Args:
        seed: of the CPU's generator in the block; by default the weights are drawn with the caller's.
    """
    with _BUILDING, default_dtype(torch.float32), torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed every GPU too
        yield


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's global generators of the CPU and of one device for the block.

    On exit those of the CPU and of GPUs are as before; those of other GPUs never change.
    """
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed every GPU too
        if gpus:
            torch.cuda.default_generators[device.index].manual_seed(seed)
        elif device.type != "cpu":
            torch.get_device_module(device).manual_seed(seed)
        yield
