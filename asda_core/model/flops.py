"""Count of the floating-point operations of an encoder."""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from asda_core.model.encoder import Encoder

GIGA = 1e9
"""Operations in a GFLOP."""


def encoder_flops(encoder: Encoder, num_bins: int, num_frames: int) -> int:
    """Return the operations of one forward pass over one clip: two per multiply-add, products and convolutions only.

    Mixers with a literal form of their formula (`by_formula`) are counted in that form, as in papers: fused
    differential attention takes 4 N^2 D multiply-adds, the formula 3.

    Args:
        encoder: with any mixer; left unchanged.
        num_bins, num_frames: size of the features.

    **Source**: the convention of the published figures (97.05 GFLOPs EAT base, 109.16 ASDA base, 1,024 frames).
    """
    literal: list[Any] = [module for module in encoder.modules() if hasattr(module, "by_formula")]
    before = [module.by_formula for module in literal]
    device = next(encoder.parameters()).device
    try:
        for module in literal:
            module.by_formula = True
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            encoder(torch.zeros(1, num_bins, num_frames, device=device))
    finally:
        for module, value in zip(literal, before, strict=True):
            module.by_formula = value
    return int(counter.get_total_flops())
