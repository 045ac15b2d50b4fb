"""Mean and confidence interval over seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval, `mean - half_width` to `mean + half_width`; `half_width` is NaN for one value."""

    mean: float
    half_width: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if math.isnan(self.half_width) else f"{self.mean:.3f} ± {self.half_width:.3f}"


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Mean and half width of Student's t interval, `t s / sqrt(n)` with n - 1 degrees of freedom.

    Args:
        values: one per seed, at least one.
        confidence: share of such intervals that contain the true mean.
    """
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return Estimate(mean, math.nan, count)
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    quantile = float(stdtrit(count - 1, (1 + confidence) / 2))
    return Estimate(mean, quantile * math.sqrt(variance / count), count)
