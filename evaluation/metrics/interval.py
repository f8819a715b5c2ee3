"""How sure a mean is."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Final

NORMAL_95: Final = 1.959963984540054
"""Of a two-sided interval that covers 95 %."""


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of a mean; None for fewer than two values.

    Values that all lie within 0 and 1 are shares: Wilson's interval (Wilson 1927) for as many yes-or-no questions as
    would scatter like these values, ``n p (1 - p) / variance`` (an effective sample size, as Korn and Graubard 1998
    have it). It stays within 0 and 1; of zeros and ones it is Wilson's own, which is not empty at the ends. Other
    values: mean and normal quantile times s / sqrt(n). The values may be all there are of a data set; the interval is
    for what the data set samples: no finite-population correction.
    """
    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    squares = sum((value - mean) ** 2 for value in values)
    if not all(0 <= value <= 1 for value in values):
        spread = NORMAL_95 * sqrt(squares / (n - 1) / n)
        return mean - spread, mean + spread
    if 0 < mean < 1 and squares / n < 1e-12 * mean * (1 - mean):
        return mean, mean  # all alike, and neither none nor all: no spread to go by
    alike = n if mean in (0, 1) else n * mean * (1 - mean) / (squares / n)
    spread = NORMAL_95 * sqrt(mean * (1 - mean) / alike + NORMAL_95**2 / (4 * alike**2))
    middle, scale = mean + NORMAL_95**2 / (2 * alike), 1 + NORMAL_95**2 / alike
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)
