"""`(softmax(q1 k1^T) - lambda softmax(q2 k2^T)) v` by the method that suits the machine; results agree to rounding.

=========  =====================================================  ==========  =========================================
method     computation                                            memory      chosen
=========  =====================================================  ==========  =========================================
fused      each map goes through a fused kernel, which never      N           by default, wherever there is padding, and
           materialises it; twice the products with values                    on a GPU
blocks     a block of queries at a time, both maps explicit       N           without gradients, on processors with wide
                                                                              vectors: float32 up to 1,023 tokens,
                                                                              bfloat16 at any length
kept       both maps explicit and kept, hand-written gradients    N^2         with gradients, on those processors:
                                                                              float32 up to 256 tokens, bfloat16 up to
                                                                              1,024
formula    both maps explicit, gradients by autograd              N^2         never: the reference for tests
=========  =====================================================  ==========  =========================================

**Source** of the bounds: prototypes on a processor with AVX-512, before this module; the methods of this module have
been timed only without AVX-512 (docs/performance.md), where fused speeds up inference but not training on short inputs.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from asda_core.layout import TokenLayout
from asda_core.model.attention import softmax_map
from asda_core.model.processor import processor

Method = Literal["fused", "blocks", "kept", "formula"]
BLOCK_ROWS = 1024
"""Rows of both maps (heads x queries) computed at once: they fit into the second-level cache, and calls stay few."""
FUSED_MIN_TOKENS, KEPT_MAX_TOKENS, KEPT_MAX_TOKENS_BFLOAT16 = 1024, 256, 1024
"""Numbers of tokens at which the method changes; see the table above."""

HeadTensor = Float[Tensor, "batch heads tokens width"]


def attention_terms(
    query1: HeadTensor,
    query2: HeadTensor,
    key1: HeadTensor,
    key2: HeadTensor,
    value: Float[Tensor, "batch heads tokens values"],
    weight: Tensor,
    layout: TokenLayout,
    method: Method | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return two terms that `difference` combines to `(A1 - lambda A2) v`; the fused kernel keeps them for backward.

    Args:
        query1, query2, key1, key2: of the first map and of the one that is subtracted.
        value: shared by both maps.
        weight: lambda, (heads, 1, 1).
        layout: gives the padding.
        method: name of the method; None chooses it.

    Returns:
        `A1 v` and `A2 v`, (batch, heads, tokens, values); or `(A1 - lambda A2) v` and None, where the method does not
        compute them separately.
    """
    method = method or choose_method((query1, query2, key1, key2, value, weight), layout)
    if method == "formula":
        first, second = softmax_map(query1, key1, layout), softmax_map(query2, key2, layout)
        return (first - weight * second) @ value, None
    if method == "blocks":
        return _in_blocks(query1, query2, key1, key2, value, weight), None
    if method == "kept":
        return _Kept.apply(query1, query2, key1, key2, value, weight), None  # type: ignore[no-untyped-call]
    allowed = None if layout.padding is None else layout.valid[:, None, None, :]
    signal: Tensor = scaled_dot_product_attention(query1, key1, value, attn_mask=allowed)
    noise: Tensor = scaled_dot_product_attention(query2, key2, value, attn_mask=allowed)
    return signal, noise


def difference(signal: Tensor, noise: Tensor | None, weight: Tensor) -> Tensor:
    """Return `signal - weight * noise` for the output of `attention_terms`."""
    return signal if noise is None else signal - weight * noise


def choose_method(inputs: Sequence[Tensor], layout: TokenLayout) -> Method:
    """Return the fastest method for these inputs, of which the first is a query; see the table above."""
    query = inputs[0]
    wide = processor().bfloat16 if query.dtype == torch.bfloat16 else processor().wide_vectors
    if query.device.type != "cpu" or layout.padding is not None or not wide:
        return "fused"
    num_tokens, half = query.shape[2], query.dtype == torch.bfloat16
    if torch.is_grad_enabled() and any(values.requires_grad for values in inputs):
        return "kept" if num_tokens <= (KEPT_MAX_TOKENS_BFLOAT16 if half else KEPT_MAX_TOKENS) else "fused"
    return "blocks" if half or num_tokens < FUSED_MIN_TOKENS else "fused"


def _in_blocks(query1: Tensor, query2: Tensor, key1: Tensor, key2: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    """Compute a few heads of a clip, or some queries of a head, at a time."""
    num_heads, num_tokens, width = query1.shape[1:]
    heads_at_once = max(1, min(num_heads, BLOCK_ROWS // num_tokens))
    scale = width**-0.5
    query1, query2 = query1 * scale, query2 * scale
    key1, key2 = key1.transpose(-2, -1), key2.transpose(-2, -1)
    mixed = torch.empty_like(value)
    for clip in range(len(query1)):
        for head in range(0, num_heads, heads_at_once):
            heads = slice(head, head + heads_at_once)
            for first in range(0, num_tokens, BLOCK_ROWS):
                rows = slice(first, first + BLOCK_ROWS)
                maps = (query1[clip, heads, rows] @ key1[clip, heads]).softmax(dim=-1)
                noise = (query2[clip, heads, rows] @ key2[clip, heads]).softmax(dim=-1)
                maps -= weight[heads].to(noise) * noise
                mixed[clip, heads, rows] = maps @ value[clip, heads]
    return mixed


class _Kept(torch.autograd.Function):
    """Keep both maps for the backward pass, which computes the product of gradient and values once for both.

    With `D = A1 - lambda A2` and the gradient G of `D v`, the gradients are: `D^T G` for the values, `G v^T` for A1,
    `-lambda G v^T` for A2, and for lambda the negative sum of `A2 * G v^T`.
    """

    @staticmethod
    def forward(
        ctx: Any, query1: Tensor, query2: Tensor, key1: Tensor, key2: Tensor, value: Tensor, weight: Tensor
    ) -> Tensor:
        scale = query1.shape[-1] ** -0.5
        first = ((query1 * scale) @ key1.transpose(-2, -1)).softmax(dim=-1)
        second = ((query2 * scale) @ key2.transpose(-2, -1)).softmax(dim=-1)
        ctx.save_for_backward(query1, query2, key1, key2, value, weight, first, second)
        mixed: Tensor = (first - weight.to(second) * second) @ value
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        query1, query2, key1, key2, value, weight, first, second = ctx.saved_tensors
        scale = query1.shape[-1] ** -0.5
        share = weight.to(second)
        of_value = (first - share * second).transpose(-2, -1) @ gradient
        of_maps = gradient @ value.transpose(-2, -1)
        of_weight = None
        if ctx.needs_input_grad[5]:
            of_weight = -(of_maps * second).sum(dim=(0, 2, 3)).reshape(weight.shape).to(weight)
        of_first = _through_softmax(of_maps, first)
        of_second = _through_softmax(of_maps, second)
        of_query1, of_key1 = (of_first @ key1) * scale, of_first.transpose(-2, -1) @ (query1 * scale)
        of_query2 = (of_second @ key2) * (-scale * share)
        of_key2 = of_second.transpose(-2, -1) @ (query2 * (-scale * share))
        return of_query1, of_query2, of_key1, of_key2, of_value, of_weight


def _through_softmax(gradient: Tensor, softmax: Tensor) -> Tensor:
    """Return the gradient of the scores from that of their softmax over the last axis."""
    scores: Tensor = torch._softmax_backward_data(gradient, softmax, -1, softmax.dtype)
    return scores
