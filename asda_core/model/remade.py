"""Two steps of a network that keep their input alone for the gradient, and make what lies between again.

Autograd keeps the output of an activation for the linear layer behind it, and that of a norm for the activation behind
it. Both are cheap to make again from what is kept anyway; the gradients are the same to the last bit.

    kept by autograd                                 kept here

    x -> [GELU] -> a -> [linear] -> y   x, a         x
    x -> [norm] -> n -> [GELU] -> y     x, n         x

Where a compiler is at work it decides itself what is kept, and nothing is done here.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm

GELU_BACKWARD = torch.ops.aten.gelu_backward
NORM_BACKWARD = torch.ops.aten.native_layer_norm_backward


def linear_of_gelu(bent: Float[Tensor, "*rows hidden"], linear: nn.Linear) -> Float[Tensor, "*rows dim"]:
    """`linear(gelu(bent))`."""
    if not _keeps(bent):
        through: Tensor = linear(gelu(bent))
        return through
    made: Tensor = _LinearOfGelu.apply(bent, linear.weight, linear.bias)  # type: ignore[no-untyped-call]
    return made


def gelu_of_norm(new: Float[Tensor, "*rows dim"], eps: float) -> Float[Tensor, "*rows dim"]:
    """`gelu(layer_norm(new))`, the norm without weights."""
    if not _keeps(new):
        return gelu(layer_norm(new, new.shape[-1:], eps=eps))
    made: Tensor = _GeluOfNorm.apply(new, eps)  # type: ignore[no-untyped-call]
    return made


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is as it was made: not wrapped by an adapter or parametrised, and watched by no hook."""
    return type(module) is kind and not (module._forward_hooks or module._forward_pre_hooks)


def _keeps(values: Tensor) -> bool:
    return torch.is_grad_enabled() and values.requires_grad and not torch.compiler.is_compiling()


class _LinearOfGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, bent: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(bent, weight)
        return nn.functional.linear(gelu(bent), weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients  # of the type in which autocast multiplied
        bent, weight = ctx.saved_tensors
        of_bent = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_bent = GELU_BACKWARD((gradient @ weight.to(gradient.dtype)).to(bent.dtype), bent)
        rows = gradient.flatten(0, -2)
        if ctx.needs_input_grad[1]:
            of_weight = (rows.t() @ gelu(bent).to(gradient.dtype).flatten(0, -2)).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            of_bias = rows.sum(dim=0).to(weight.dtype)
        return of_bent, of_weight, of_bias


class _GeluOfNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, new: Tensor, eps: float) -> Tensor:
        normed = layer_norm(new, new.shape[-1:], eps=eps)
        ctx.save_for_backward(new)
        ctx.eps, ctx.dtype = eps, normed.dtype  # autocast may have widened it
        return gelu(normed)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        (new,) = ctx.saved_tensors
        widened, shape = new.to(ctx.dtype), new.shape[-1:]
        normed, mean, root = torch.native_layer_norm(widened, shape, None, None, ctx.eps)
        of_normed = GELU_BACKWARD(gradient.to(ctx.dtype), normed)
        of_new = NORM_BACKWARD(of_normed, widened, shape, mean, root, None, None, [True, False, False])[0]
        return of_new.to(new.dtype), None
