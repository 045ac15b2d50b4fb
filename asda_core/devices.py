"""The device that a name means, what is sent there, and what is drawn there."""

import torch
from torch import Tensor

from asda_core.errors import ConfigError
from asda_core.settings.compute import AUTO


def usable_device(name: str) -> torch.device:
    """The device of that name; `AUTO` is one too.

    Raises:
        ConfigError: there is no such device here.
    """
    try:
        return torch.empty(0, device=named_device(name)).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise ConfigError(f"the device {name!r} cannot be used here: {reason}.") from None


def named_device(name: str) -> str:
    """The name itself, or what `AUTO` stands for here."""
    if name != AUTO:
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Values on a device; what a GPU has still to do is not waited for, which takes pinned memory on the way."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def generator_on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """A generator for draws on a device, where many numbers are drawn at once.

    Args:
        device: where the numbers are wanted.
        generator: of the CPU; on the CPU it is what is returned.

    Returns:
        elsewhere a generator of the device, seeded by a number that is drawn: the same in every run, though not the
        numbers that the CPU would draw.
    """
    if device.type == "cpu":
        return generator
    seed = int(torch.randint(torch.iinfo(torch.int64).max, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)
