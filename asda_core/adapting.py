"""Freeze an encoder, attach an adapter and find the new parameters; helpers that adapters share."""

from jaxtyping import Float
from torch import Tensor, nn

from asda_core.contracts import Adapter
from asda_core.errors import ConfigError, PluginError
from asda_core.layout import TokenLayout
from asda_core.model.block import Block
from asda_core.model.encoder import Encoder


def attach(adapter: Adapter, encoder: Encoder) -> list[nn.Parameter]:
    """Freeze `encoder`, attach `adapter` in place, and return the new parameters.

    Which parameters train is decided by identity, not by name: the new ones, and none of the existing ones.

    Raises:
        PluginError: the adapter adds no parameters, or removes parameters of the encoder.
    """
    names = {id(parameter): name for name, parameter in encoder.named_parameters()}
    encoder.requires_grad_(False)
    adapter.attach(encoder)
    new = [parameter for parameter in encoder.parameters() if id(parameter) not in names]
    if not new:
        raise PluginError("the adapter adds no parameters, so there is nothing to train.")
    if removed := names.keys() - {id(parameter) for parameter in encoder.parameters()}:
        raise PluginError(
            f"the adapter replaces or removes encoder parameters: {', '.join(sorted(names[key] for key in removed))}."
        )
    for parameter in encoder.parameters():
        parameter.requires_grad_(id(parameter) not in names)
    return new


def set_train_mode(encoder: nn.Module) -> None:
    """Put an encoder with an adapter into training mode, except frozen modules with buffers.

    Such modules, for example batch norms, would otherwise update their statistics although they are not trained.
    """
    encoder.train()
    for module in encoder.modules():
        own = (
            parameter
            for name, parameter in module.named_parameters()
            if not name.startswith("parametrizations.") or name.endswith(".original")  # what an adapter adds to it
        )
        if any(True for _ in module.buffers(recurse=False)) and not any(parameter.requires_grad for parameter in own):
            module.eval()


def blocks_to_adapt(encoder: Encoder, name: str, wrapper: type[nn.Module]) -> list[Block]:
    """Return the blocks of an encoder, which must not have this adapter yet.

    Args:
        encoder: the encoder to adapt.
        name: name of the adapter, for the error message.
        wrapper: a module class that only this adapter puts into an encoder.

    Raises:
        ConfigError: the adapter is already attached.
    """
    if any(isinstance(module, wrapper) for module in encoder.modules()):
        raise ConfigError(f"{name} is already attached.")
    return encoder.typed_blocks


class ParallelAdapter(nn.Module):
    """`inner(u) + adapter(u)`: an adapter in parallel with a mixer or an MLP; both take tokens and layout."""

    def __init__(self, inner: nn.Module, adapter: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.adapter = adapter

    def forward(
        self, tokens: Float[Tensor, "batch tokens dim"], layout: TokenLayout
    ) -> Float[Tensor, "batch tokens dim"]:
        """Add the outputs of both modules for the same tokens."""
        added: Tensor = self.inner(tokens, layout) + self.adapter(tokens, layout)
        return added
