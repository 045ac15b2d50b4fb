"""Learning-rate factor and drop-path probability of each layer."""

import re

BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")
EMBEDDINGS = ("encoder.patches.", "encoder.class_token", "encoder.input_norm.")
"""Name prefixes of the parameters below the first block."""


def rate_scale(name: str, depth: int, decay: float, embeddings: bool = False) -> float:
    """Factor on the learning rate of a parameter.

    Block i (from 0) has `decay ** (depth - i)`; head and final norm have 1.

    Args:
        name: name of the parameter, as in "encoder.blocks.3.norm1.weight".
        depth: number of blocks of the encoder.
        decay: layer decay, 0.65 in the released recipes.
        embeddings: whether patches, class token, positions and input norm count as the layer below the first block.

    **Source**: BEiT (Bao et al. 2022), appendix; released fine-tuning, where patches, class token and input norm learn
    at the full rate (`embeddings` False).
    """
    match = BLOCK.search(name)
    if embeddings and name.startswith(EMBEDDINGS):
        return float(decay ** (depth + 1))
    return decay ** (depth - int(match.group(1))) if match else 1.0


def drop_path_rates(depth: int, last: float) -> list[float]:
    """Probability of dropping each block's branches: 0 for the first, `last` for the last, linear between.

    **Source**: released fine-tuning (0.1).
    """
    return [last * layer / max(1, depth - 1) for layer in range(depth)]
