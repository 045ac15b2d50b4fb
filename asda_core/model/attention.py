"""What attention mixers share."""

import torch
from jaxtyping import Float
from torch import Tensor

from asda_core.layout import TokenLayout


def softmax_map(
    query: Float[Tensor, "batch heads tokens width"],
    key: Float[Tensor, "batch heads tokens width"],
    layout: TokenLayout,
) -> Float[Tensor, "batch heads tokens tokens"]:
    """`softmax(q k^T / sqrt(width))`: rows sum to 1, and padding gets nothing.

    **Source**: Vaswani et al. 2017, equation 1.
    """
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if layout.padding is not None:
        scores = scores.masked_fill(layout.padding[:, None, None, :], -torch.inf)
    softmax: Tensor = scores.softmax(dim=-1)
    return softmax
