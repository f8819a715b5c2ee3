"""How long whoever asked for an answer waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Self

from errata.editing.errors import AbandonedError, DeadlineError


def _nobody_left() -> bool:
    return False


@dataclass(frozen=True)
class Patience:
    """Until when, by the monotonic clock, and whether somebody is still there."""

    until: float = inf
    gone: Callable[[], bool] = _nobody_left

    @classmethod
    def within(cls, seconds: float, gone: Callable[[], bool] = _nobody_left) -> Self:
        """So many seconds from now."""
        return cls(time.monotonic() + seconds, gone)

    def check(self) -> None:
        """Return while the answer is waited for.

        Raises:
            AbandonedError: whoever asked has gone.
            DeadlineError: the time is over.
        """
        if self.gone():
            raise AbandonedError("whoever asked has gone")
        if time.monotonic() >= self.until:
            raise DeadlineError("there was no answer in time")


ENDLESS = Patience()
"""Of those who wait as long as it takes."""
