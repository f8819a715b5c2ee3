"""The HTTP server around the application: how it takes connections in, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Final

import uvicorn

logger = logging.getLogger(__name__)

BACKLOG: Final = 32
"""Connections that are taken in at one go, before any of them can be refused: well below the descriptors in reserve."""
GRACE_SECONDS: Final = 15
"""What answers under way get when the service ends; the routes themselves end theirs sooner."""
_WAITING: Final = 1024
_SAY_EVERY: Final = 10.0


class Quiet:
    """Says what goes wrong with taking connections in at most every ten seconds, and how often it has.

    Without descriptors every try fails, and there are many in a second: the log of it filled disks.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said_at = float("-inf")
        self.failures = 0

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """For ``loop.set_exception_handler``."""
        error = context.get("exception")
        if not isinstance(error, OSError) or "accept" not in str(context.get("message", "")):
            loop.default_exception_handler(context)
            return
        self.failures += 1
        now = self._clock()
        if now - self._said_at >= _SAY_EVERY:
            self._said_at = now
            logger.error("connections cannot be taken in (%s); %d times since the start", error, self.failures)


class Server(uvicorn.Server):
    """uvicorn's server, which says so before it waits for what is under way.

    Args:
        draining: called once, when the end begins: whoever waits for something long is to be answered now.
    """

    def __init__(self, config: uvicorn.Config, draining: Callable[[], None]) -> None:
        super().__init__(config)
        self._draining = draining

    async def startup(self, sockets: Any = None) -> None:
        """As the original."""
        asyncio.get_running_loop().set_exception_handler(Quiet())
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(_WAITING)  # how many wait in the kernel is another thing than how many are taken at one go

    async def shutdown(self, sockets: Any = None) -> None:
        """As the original."""
        self._draining()
        await super().shutdown(sockets)
