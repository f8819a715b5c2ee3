"""How sure a mean is."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Final

NORMAL_95: Final = 1.959963984540054
"""Of a two-sided interval that covers 95 %."""


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of a mean; None for fewer than two values.

    Shares of zeros and ones: Wilson's interval, which stays within 0 and 1 and is not empty at the ends. Other
    values: mean and normal quantile times s / sqrt(n). The values may be all there are of a data set; the interval is
    for what the data set samples: no finite-population correction.
    """
    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    if all(value in (0, 1) for value in values):
        spread = NORMAL_95 * sqrt(mean * (1 - mean) / n + NORMAL_95**2 / (4 * n * n))
        middle, scale = mean + NORMAL_95**2 / (2 * n), 1 + NORMAL_95**2 / n
        return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)
    spread = NORMAL_95 * sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)
    return mean - spread, mean + spread
