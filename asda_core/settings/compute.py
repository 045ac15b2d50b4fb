"""How an update is computed: the section `compute` of a run."""

import math
from dataclasses import dataclass
from typing import Literal

AUTO = "auto"
"""Device name for a GPU if there is one, otherwise for the CPU."""
Precision = Literal["float32", "bfloat16"]
Sharding = Literal["none", "full"]


@dataclass(frozen=True)
class ComputeConfig:
    """How an update is computed.

    Attributes:
        precision: "bfloat16" multiplies in bfloat16; weights, their averages and losses stay in float32.
        recompute: activations of blocks are recomputed in the backward pass instead of kept, to save memory.
        compile: blocks are compiled by `torch.compile`, which needs a compiler on the machine of the run.
        sharding: what several processes hold: "none", each the whole model; "full", each a part of every tensor.
    """

    precision: Precision = "float32"
    recompute: bool = False
    compile: bool = False
    sharding: Sharding = "none"


ROUNDING_ONLY_KEYS = ("compute.recompute", "compute.compile", "compute.sharding")
"""Keys that change a result by rounding at most, as another machine does: a run can be resumed with other values."""


def divisors(number: int) -> list[int]:
    """The divisors of a number in ascending order."""
    low = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    return sorted({*low, *(number // divisor for divisor in low)})
