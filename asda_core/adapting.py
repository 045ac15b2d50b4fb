"""Freeze an encoder, let an adapter wrap it, and tell what is new."""

from torch import nn

from asda_core.contracts import Adapter
from asda_core.model.encoder import Encoder


def attach(adapter: Adapter, encoder: Encoder) -> list[nn.Parameter]:
    """Freeze `encoder`, attach `adapter` in place, and return the parameters that were not there before.

    What trains is decided by identity, not by name.
    """
    before = {id(parameter) for parameter in encoder.parameters()}
    encoder.requires_grad_(False)
    adapter.attach(encoder)
    new = [parameter for parameter in encoder.parameters() if id(parameter) not in before]
    for parameter in new:
        parameter.requires_grad_(True)
    return new
