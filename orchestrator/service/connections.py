"""What a connection may cost: how many there are, how long one may take to say what it wants, how loud a refusal is.

A socket that sends half a header and stays holds a descriptor; with enough of them a service can accept nobody, read no
file and write no log but of that. So there is a cap below the process's limit of descriptors, and a time within which
the head of a request has to be there. Bodies have a time of their own (`limits`).
"""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from typing import Any, Final

logger = logging.getLogger(__name__)

RESERVE: Final = 96
"""Descriptors that stay free: the journal, files of the run, Ray's sockets, answers that are being written."""
_SAY_EVERY: Final = 10.0
"""Seconds between two lines about refused connections."""


class ConnectionGuard:
    """Counts connections, and says at a rate what was refused.

    Args:
        most: connections at one moment; never more than the process's limit of descriptors leaves beside `RESERVE`.
        head_seconds: time within which the head of a request has to be complete.
        descriptors: the process's limit; its own by default.
    """

    def __init__(self, most: int, head_seconds: float, *, descriptors: int | None = None) -> None:
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if descriptors is None else descriptors
        self.most = max(1, min(most, soft - RESERVE))
        self.head_seconds = head_seconds
        self.open = 0
        self.refused = 0
        self.late = 0
        self._said_at = float("-inf")

    def take(self) -> bool:
        """Whether one more connection may be served; if so it is counted until `give_back`."""
        if self.open >= self.most:
            self.refused += 1
            self._say()
            return False
        self.open += 1
        return True

    def give_back(self) -> None:
        """A counted connection has ended."""
        self.open -= 1

    def too_late(self) -> None:
        """A connection was closed because no whole request came."""
        self.late += 1
        self._say()

    def _say(self) -> None:
        now = time.monotonic()
        if now - self._said_at < _SAY_EVERY:
            return
        logger.warning(
            "%d of %d connections in use; %d refused and %d given up for sending no whole request since the start",
            self.open, self.most, self.refused, self.late,
        )  # fmt: skip
        self._said_at = now


def protocol(guard: ConnectionGuard) -> type[asyncio.Protocol]:
    """uvicorn's own protocol of HTTP with the guard around it."""
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    base: Any = AutoHTTPProtocol

    class GuardedProtocol(base):
        """One connection."""

        _counted = False
        _head_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            if not guard.take():
                transport.abort()
                return
            self._counted = True
            super().connection_made(transport)
            self._arm()

        def connection_lost(self, exc: Exception | None) -> None:
            if not self._counted:
                return
            self._counted = False
            guard.give_back()
            self._disarm()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if not self._counted:
                return
            super().data_received(data)
            # between two requests uvicorn's own time for idle connections runs, and ends with the first byte
            if self.cycle is None or self.cycle.response_complete:
                self._arm()
            else:
                self._disarm()

        def eof_received(self) -> None:
            if self._counted:
                super().eof_received()

        def _arm(self) -> None:
            if self._head_timer is None:
                self._head_timer = asyncio.get_running_loop().call_later(guard.head_seconds, self._give_up)

        def _disarm(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _give_up(self) -> None:
            self._head_timer = None
            if self._counted and (self.cycle is None or self.cycle.response_complete):
                guard.too_late()
                self.transport.abort()

    return GuardedProtocol


class Buckets:
    """A token bucket for each caller: ``rate`` calls a second, and ``burst`` at once.

    Callers that were idle long enough to have a full bucket are forgotten, so that this does not grow with them.
    """

    def __init__(self, rate: float, burst: int) -> None:
        self._rate, self._burst = rate, float(burst)
        self._levels: dict[str, tuple[float, float]] = {}
        self._swept_at = 0.0

    def wait(self, caller: str, now: float | None = None) -> float:
        """0 where the call may go on, else the seconds after which it may be tried again."""
        now = time.monotonic() if now is None else now
        self._sweep(now)
        level, at = self._levels.get(caller, (self._burst, now))
        level = min(self._burst, level + (now - at) * self._rate)
        if level < 1.0:
            self._levels[caller] = (level, now)
            return (1.0 - level) / self._rate
        self._levels[caller] = (level - 1.0, now)
        return 0.0

    def __len__(self) -> int:
        return len(self._levels)

    def _sweep(self, now: float) -> None:
        full_after = self._burst / self._rate
        if now - self._swept_at < full_after:
            return
        self._swept_at = now
        self._levels = {name: (lv, at) for name, (lv, at) in self._levels.items() if now - at < full_after}
