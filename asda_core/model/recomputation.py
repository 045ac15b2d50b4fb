"""Steps of a network that keep only their input for the backward pass and recompute the intermediates.

Autograd keeps what each operation needs, though much of it is cheap to recompute from what is kept anyway. A step ends
with the operation whose input is costly to keep; recomputation stops as soon as that input is available, before the
operation itself. So no matrix product is computed twice, and gradients are bit-identical.

    step                                                    kept by autograd    kept here

    x -> [GELU] -> a -> [linear] -> y                       x, a                x
    x -> [norm] -> n -> [GELU] -> y                         x, n                x
    x -> [norm] -> n -> [linear] -> y                       x, n                x
    u, v -> u - w v -> d -> [norm] -> n -> [linear] -> y    u, v, d, n          u, v

Under `torch.compile` the compiler decides what is kept, and nothing is done here.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, TypeVarTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules import module as every_module
from torch.utils.checkpoint import checkpoint

from asda_core.model.norms import RmsNorm

PLAIN_MODULES = (nn.Linear, nn.LayerNorm, RmsNorm, nn.GELU, nn.Identity)
"""Module types whose second call has no side effects."""
MIN_VALUES = 2**18
"""Minimum size of the first tensor, 1 MiB of float32: below it the bookkeeping costs more than is saved. Measured: with
an eighth of it, training a small encoder took a tenth longer."""

InputTs = TypeVarTuple("InputTs")
OutputT = TypeVar("OutputT")


def with_recomputation(
    step: Callable[[*InputTs], OutputT], *inputs: *InputTs, modules: tuple[nn.Module, ...] = ()
) -> OutputT:
    """Compute `step(*inputs)`, keeping only `inputs` for the backward pass.

    Args:
        step: deterministic function of its tensors and weights, without side effects.
        inputs: tensors of which most are kept anyway, or None.
        modules: all modules that the step calls. If one is wrapped, parametrised or has a hook, as adapters do, the
            effect of a second call is unknown: the step is computed once, and autograd keeps what it needs.

    Raises:
        RuntimeError: in the backward pass, if a tensor or weight was changed in place after the forward pass; autograd
            raises the same for the tensors that it keeps.
    """
    if torch.compiler.is_compiling():  # first: the compiler cannot trace all of what follows
        return step(*inputs)
    tensors = [tensor for tensor in inputs if isinstance(tensor, Tensor)]
    needs_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    large = bool(tensors) and tensors[0].numel() >= MIN_VALUES
    if not (needs_gradient and large and all(map(is_plain, modules))):
        return step(*inputs)
    weights = WeightSnapshot(modules)
    versions = [(tensor, tensor._version) for tensor in (*tensors, *weights)]

    def recompute(*given: *InputTs) -> OutputT:
        if any(tensor._version != version for tensor, version in versions):
            raise RuntimeError("A tensor that the gradient needs was modified by an inplace operation.")
        with weights.swapped_in():
            return step(*given)

    return cast(OutputT, checkpoint(recompute, *inputs, use_reentrant=False, preserve_rng_state=False))


class WeightSnapshot:
    """Weights of some modules at this time; they may differ in the backward pass (`torch.func.functional_call`)."""

    def __init__(self, modules: tuple[nn.Module, ...]) -> None:
        self.weights = [(module, dict(module._parameters)) for module in modules]

    def __iter__(self) -> Iterator[Tensor]:
        return (weight for _, weights in self.weights for weight in weights.values() if weight is not None)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Context in which the modules have these weights; their own are restored afterwards."""
        later = [(module, dict(module._parameters)) for module, _ in self.weights]
        for module, weights in self.weights:
            module._parameters.update(weights)
        try:
            yield
        finally:
            for module, weights in later:
                module._parameters.update(weights)


def is_plain(module: nn.Module, kinds: tuple[type[nn.Module], ...] = PLAIN_MODULES) -> bool:
    """Whether a module is exactly of one of these types, and not wrapped, parametrised, patched or hooked."""
    hooks = (
        *(module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks),
        *(every_module._global_forward_hooks, every_module._global_forward_pre_hooks),
        *(every_module._global_backward_hooks, every_module._global_backward_pre_hooks),
    )
    return type(module) in kinds and not any(hooks) and "forward" not in vars(module)
