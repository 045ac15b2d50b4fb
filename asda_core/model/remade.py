"""Steps of a network of which only the input is kept for the gradient; what lies between is made again.

Autograd keeps what each operation needs, though much of it is cheap to make from what is kept anyway. A step ends with
the operation that needs what is costly to keep; making it again stops as soon as that input is there, before the
operation. So no product is done twice, and gradients are the same to the last bit.

    step                                                    kept by autograd    kept here

    x -> [GELU] -> a -> [linear] -> y                       x, a                x
    x -> [norm] -> n -> [GELU] -> y                         x, n                x
    x -> [norm] -> n -> [linear] -> y                       x, n                x
    u, v -> u - w v -> d -> [norm] -> n -> [linear] -> y    u, v, d, n          u, v

Where a compiler is at work it decides itself what is kept, and nothing is done here.
"""

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from asda_core.model.norms import RmsNorm

PLAIN = (nn.Linear, nn.LayerNorm, RmsNorm, nn.GELU, nn.Identity)
"""Kinds of modules of which a second call changes nothing."""

Given = TypeVarTuple("Given")
Made = TypeVar("Made")


def remade(step: Callable[[*Given], Made], *given: *Given, calls: tuple[nn.Module, ...] = ()) -> Made:
    """`step(*given)`, of which only `given` is kept for the gradient.

    Args:
        step: gives the same for the same tensors, and has no other effect.
        given: tensors that are kept anyway, or None.
        calls: modules that the step calls. Where one is wrapped, parametrised, or watched by a hook, as adapters do,
            nobody knows what a second call does: the step is done once, and autograd keeps what it wants.
    """
    wanted = any(isinstance(each, Tensor) and each.requires_grad for each in given)
    if not wanted or not torch.is_grad_enabled() or torch.compiler.is_compiling() or not all(map(is_plain, calls)):
        return step(*given)
    return cast(Made, checkpoint(step, *given, use_reentrant=False, preserve_rng_state=False))


def is_plain(module: nn.Module, kinds: tuple[type[nn.Module], ...] = PLAIN) -> bool:
    """Whether a module is of these kinds, and nobody wrapped, parametrised, changed or watches it."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return type(module) in kinds and not any(hooks) and "forward" not in vars(module)
