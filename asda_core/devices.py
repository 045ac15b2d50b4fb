"""The device that a name means."""

import torch

from asda_core.errors import ConfigError


def usable_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ConfigError: there is no such device here.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise ConfigError(f"the device {name!r} cannot be used here: {reason}.") from None
