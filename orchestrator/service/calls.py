"""What the routes share: the service behind them, and how a call waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from fastapi import Query

from errata.orchestrator.journal import Journal
from errata.orchestrator.service.access import Tokens
from errata.orchestrator.service.asking import Asking
from errata.orchestrator.service.core import ServiceCore
from errata.orchestrator.service.metrics import Metrics
from errata.orchestrator.service.publishing import Publishing
from errata.orchestrator.service.traces import Traces

T = TypeVar("T")
Note = Annotated[str | None, Query(min_length=1, max_length=300, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
_LOOK_SECONDS = 0.2
"""How often it is looked whether the service ends."""


@dataclass
class Service:
    """Everything the routes need."""

    core: ServiceCore
    asking: Asking
    tokens: Tokens
    reader: Journal
    """Opened for reading only, so that reads and the writer do not wait for each other."""
    metrics: Metrics
    model: str = ""
    version: str = ""
    guard: Callable[[], Any] | None = None
    publishing: Publishing | None = None
    """Publication on request; None where there is none."""
    stream: Callable[[], str | None] = lambda: None
    """Why the stream beside the API has stopped, or None."""
    progress: Callable[[], list[dict[str, Any]]] = list
    """What the process is at: stages with ``name``, ``done``, ``total`` and ``note``."""
    traces: Traces | None = None
    started: float = field(default_factory=time.time)


async def wait(future: Future[T]) -> T:
    return await asyncio.shield(asyncio.wrap_future(future))


async def until(core: ServiceCore, future: Future[T], seconds: float) -> T:
    """What comes of a command within a time; it goes on whether it is waited for or not.

    Raises:
        TimeoutError: it takes longer, or the service has begun to end.
    """
    waited, until = asyncio.wrap_future(future), time.monotonic() + seconds
    waited.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # whether it is heard or not
    while True:
        left = until - time.monotonic()
        if (await asyncio.wait({waited}, timeout=max(0.0, min(_LOOK_SECONDS, left))))[0]:
            return waited.result()
        if left <= 0 or core.stopping:
            raise TimeoutError
