"""How an update is computed: the section `compute` of a run."""

import math
from dataclasses import dataclass
from typing import Literal

AUTO = "auto"
"""The device that is a GPU where there is one, else the CPU."""
Precision = Literal["float32", "bfloat16"]
Sharding = Literal["none", "full"]


@dataclass(frozen=True)
class ComputeConfig:
    """How an update is computed.

    Attributes:
        precision: "bfloat16" multiplies in bfloat16; weights, their averages and losses stay in float32.
        recompute: what blocks keep for the backward pass is computed again instead, for less memory.
        compile: blocks go through `torch.compile`, which needs a compiler where the run is.
        sharding: what several processes hold: "none", each the whole model; "full", each a part of every tensor.
    """

    precision: Precision = "float32"
    recompute: bool = False
    compile: bool = False
    sharding: Sharding = "none"


COMPUTE_ALONE = ("compute.recompute", "compute.compile", "compute.sharding")
"""Keys that change a result by rounding at most, as another machine does: a run can be gone on with under others."""


def divisors(number: int) -> list[int]:
    """What divides a number, smallest first."""
    low = [each for each in range(1, math.isqrt(number) + 1) if number % each == 0]
    return sorted({*low, *(number // each for each in low)})
