"""Measures of an attention map: entropy, distance, and the share that falls on chosen tokens.

All take maps (B, H, N, N), whose rows are queries, and return one number per clip, head and query.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from asda_core.layout import TokenLayout

MIN_TOTAL = 1e-6
"""Sum of a row at or below which its share is NaN; softmax rows sum to 1."""


def entropy(attention: Float[Tensor, "batch heads tokens tokens"]) -> Float[Tensor, "batch heads tokens"]:
    """Shannon entropy of each row, in bits: 0 if all mass is on one token, `log2 N` if it is even.

    Only for maps whose rows are probabilities: the entropy of a signed difference is undefined.
    """
    return -torch.xlogy(attention, attention).sum(dim=-1) / math.log(2)


def distance(
    attention: Float[Tensor, "batch heads tokens tokens"], layout: TokenLayout
) -> tuple[Float[Tensor, "batch heads tokens"], Float[Tensor, "batch heads tokens"]]:
    """Mean distance from a query to the keys it attends to: in time steps, and in frequency bands.

    Class tokens have no position: as keys they are excluded and the rest is rescaled to sum to 1, as queries they give
    NaN. A signed map is weighted by its absolute values.

    **Source**: Dosovitskiy et al. 2021, figure 7, there in pixels.
    """
    patches = ~layout.is_class & layout.valid
    mass = attention.abs() * patches[:, None, None, :]
    mass = mass / mass.sum(dim=-1, keepdim=True)
    steps = (layout.time[:, :, None] - layout.time[:, None, :]).abs()[:, None]
    bands = (layout.band[:, :, None] - layout.band[:, None, :]).abs()[:, None]
    no_position = ~patches[:, None]
    along_time, along_frequency = (mass * steps).sum(dim=-1), (mass * bands).sum(dim=-1)
    return along_time.masked_fill(no_position, torch.nan), along_frequency.masked_fill(no_position, torch.nan)


def attention_share(
    attention: Float[Tensor, "batch heads tokens tokens"],
    chosen: Bool[Tensor, "batch tokens"],
    counted: Bool[Tensor, "batch tokens"] | None = None,
) -> Float[Tensor, "batch heads tokens"]:
    """Share of each row that falls on chosen tokens.

    Args:
        attention: a map; a signed one gives the net share, its absolute values the share of the total magnitude.
        chosen: the chosen tokens.
        counted: tokens that make up the total; None for all.

    Returns:
        the sum over tokens both chosen and counted, divided by the sum over all counted ones; NaN if that is nearly 0.
    """
    counted = torch.ones_like(chosen) if counted is None else counted
    part = (attention * (chosen & counted)[:, None, None, :]).sum(dim=-1)
    total = (attention * counted[:, None, None, :]).sum(dim=-1)
    return torch.where(total.abs() > MIN_TOTAL, part / total, torch.nan)


def query_mean(values: Float[Tensor, "batch heads tokens"], queries: Bool[Tensor, "batch tokens"]) -> float:
    """Mean over clips, heads and chosen queries, ignoring NaN; NaN if all values are NaN."""
    return float(values.masked_fill(~queries[:, None], torch.nan).double().nanmean())


def token_mask(layout: TokenLayout, patch_mask: Bool[Tensor, " patches"], class_tokens: bool) -> Bool[Tensor, "b n"]:
    """Map a mask over patches in raster order to a mask over tokens; class tokens get the value `class_tokens`."""
    on_patches = patch_mask.to(layout.index.device)[layout.index.clamp(min=0)]
    return on_patches.masked_fill(layout.is_class, class_tokens)
