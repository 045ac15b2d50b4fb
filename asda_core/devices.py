"""The device that a name means."""

import torch

from asda_core.compute import AUTO
from asda_core.errors import ConfigError


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
