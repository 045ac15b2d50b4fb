"""Numbers that say what a map is like: entropy, distance, and the share that falls on chosen tokens.

All take maps (B, H, N, N), of which rows are queries, and give one number per clip, head and query.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from asda_core.layout import TokenLayout

SMALLEST_TOTAL = 1e-6
"""Mass of a row below which no share of it is told; softmax rows have 1."""


def entropy(attention: Float[Tensor, "batch heads tokens tokens"]) -> Float[Tensor, "batch heads tokens"]:
    """Shannon entropy of each row, in bits: 0 where all falls on one token, `log2 N` where it is even.

    Only for maps whose rows are probabilities: a signed difference has no entropy.
    """
    return -torch.xlogy(attention, attention).sum(dim=-1) / math.log(2)


def distance(
    attention: Float[Tensor, "batch heads tokens tokens"], layout: TokenLayout
) -> tuple[Float[Tensor, "batch heads tokens"], Float[Tensor, "batch heads tokens"]]:
    """Mean distance from a query to what it attends: in time steps, and in frequency bands.

    Class tokens sit nowhere: as keys they are left out and the rest is scaled to 1, as queries they give NaN. The mass
    of a signed map is its absolute values.

    **Source**: Dosovitskiy et al. 2021, figure 7, there in pixels.
    """
    patches = ~layout.is_class & layout.valid
    mass = attention.abs() * patches[:, None, None, :]
    mass = mass / mass.sum(dim=-1, keepdim=True)
    steps = (layout.time[:, :, None] - layout.time[:, None, :]).abs()[:, None]
    bands = (layout.band[:, :, None] - layout.band[:, None, :]).abs()[:, None]
    nowhere = ~patches[:, None]
    along_time, along_frequency = (mass * steps).sum(dim=-1), (mass * bands).sum(dim=-1)
    return along_time.masked_fill(nowhere, torch.nan), along_frequency.masked_fill(nowhere, torch.nan)


def share_on(
    attention: Float[Tensor, "batch heads tokens tokens"],
    chosen: Bool[Tensor, "batch tokens"],
    counted: Bool[Tensor, "batch tokens"] | None = None,
) -> Float[Tensor, "batch heads tokens"]:
    """Share of each row that falls on chosen tokens.

    Args:
        attention: a map; a signed one gives the net share, its absolute values the share of what is moved at all.
        chosen: the tokens.
        counted: tokens of which the share is told; None for all.

    Returns:
        the sum over `chosen` (and counted) tokens over the sum over all counted ones; NaN where that is nearly 0.
    """
    counted = torch.ones_like(chosen) if counted is None else counted
    part = (attention * (chosen & counted)[:, None, None, :]).sum(dim=-1)
    total = (attention * counted[:, None, None, :]).sum(dim=-1)
    return torch.where(total.abs() > SMALLEST_TOTAL, part / total, torch.nan)


def mean_over(values: Float[Tensor, "batch heads tokens"], queries: Bool[Tensor, "batch tokens"]) -> float:
    """Mean over clips, heads and chosen queries, without those that have no number; NaN if none has."""
    return float(values.masked_fill(~queries[:, None], torch.nan).double().nanmean())


def on_tokens(layout: TokenLayout, patches: Bool[Tensor, " patches"], class_tokens: bool) -> Bool[Tensor, "b n"]:
    """What is said of patches in raster order, said of tokens; class tokens get their own answer."""
    there = patches.to(layout.index.device)[layout.index.clamp(min=0)]
    return there.masked_fill(layout.is_class, class_tokens)
