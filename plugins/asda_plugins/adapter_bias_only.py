"""Bias-only tuning (BitFit): only the biases of the encoder are adapted."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from asda_core.adapting import blocks_to_adapt
from asda_core.contracts import AdapterContext, AdapterSpec, hookimpl
from asda_core.model.encoder import Encoder


@dataclass(frozen=True)
class BiasOnlyConfig:
    """No options: every bias of the encoder is adapted."""


class BiasOffset(nn.Module):
    """Parametrization of a bias b as `b + difference`; the difference starts at zero."""

    def __init__(self, bias: Float[Tensor, "*shape"]) -> None:
        super().__init__()
        self.difference = nn.Parameter(torch.zeros_like(bias))

    def forward(self, bias: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the adapted bias."""
        return bias + self.difference


class BiasOnlyAdapter:
    """Adds a learned difference to every parameter named `bias` below the encoder: linear, norm and convolution.

    The biases are parametrized: the frozen one remains the same object, as `parametrizations.bias.original`.
    `torch.nn.utils.parametrize.remove_parametrizations(layer, "bias")` adds the difference to it after training. A copy
    of the encoder (`copy.deepcopy`) shares the classes of such layers with the original, so that merging one breaks the
    other; and only the state dict can be pickled.

    **Source**: BitFit (Ben Zaken et al. 2021), section 3.
    **Differs**: there the biases themselves are trained. A difference gives the same outputs and, with plain gradient
    steps, the same training; but the encoder stays bit-identical, so that one encoder serves many adapters, the
    trained parameters are new objects, as for every adapter, and weight decay pulls towards the encoder, not to zero.
    """

    def attach(self, encoder: Encoder) -> None:
        """Parametrize the biases.

        Raises:
            ConfigError: the adapter is already attached.
        """
        modules = list(encoder.modules())
        blocks_to_adapt(encoder, "bias_only", BiasOffset)
        by_module = {module: dict(module.named_parameters(recurse=False)).get("bias") for module in modules}
        biases = {module: bias for module, bias in by_module.items() if bias is not None}
        for module, bias in biases.items():
            register_parametrization(module, "bias", BiasOffset(bias))


def build(config: BiasOnlyConfig, context: AdapterContext) -> BiasOnlyAdapter:
    """Build the adapter; its widths are those of the biases that it finds."""
    return BiasOnlyAdapter()


@hookimpl
def asda_adapters() -> Iterable[AdapterSpec[BiasOnlyConfig]]:
    """Offer `bias_only`."""
    return [
        AdapterSpec(
            name="bias_only",
            config=BiasOnlyConfig,
            build=build,
            summary="a learned difference added to every bias; no other parameter of the encoder is trained",
            source="BitFit (Ben Zaken et al. 2021), section 3",
        )
    ]
