"""How often actors have died of late: what ends a run is deaths that come fast, not a life that is long."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable


class Deaths:
    """Counts deaths within a sliding time. Not thread-safe: its owner holds a lock.

    Args:
        most: deaths that are borne.
        seconds: the time within which they are counted together; by a clock that nobody can set.
    """

    def __init__(self, most: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self.seconds = most, seconds
        self._clock = clock
        self._times: deque[float] = deque()

    def note(self) -> int:
        """One more death; how many there were of late, this one among them."""
        self._times.append(self._clock())
        return self.of_late

    @property
    def of_late(self) -> int:
        """Deaths within the time."""
        while self._times and self._clock() - self._times[0] > self.seconds:
            self._times.popleft()
        return len(self._times)

    @property
    def too_many(self) -> bool:
        """Whether there were more of late than are borne."""
        return self.of_late > self.most
