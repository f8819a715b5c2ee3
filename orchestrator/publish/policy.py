"""Publication as a run goes on: after every n commits, if the guard holds, in the background."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from errata.orchestrator.config.publish import PublishConfig
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.rows import Version
from errata.orchestrator.publish.rollout import EVENT, ServerResult

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)

Publish = Callable[[Version], Sequence[ServerResult]]


class PublishPolicy:
    """Decides at every commit; publishes in a thread of its own, one version at a time.

    Args:
        publish: sends a version to all servers; may raise, which is journaled and ends nothing.
        holds: whether the guard has nothing against the newest version.
        say: one line for whoever watches.
    """

    def __init__(
        self,
        config: PublishConfig,
        journal: Journal,
        publish: Publish,
        *,
        holds: Callable[[], bool] = lambda: True,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._config, self._journal, self._publish, self._holds, self._say = config, journal, publish, holds, say
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="publish")
        self._running: Future[None] | None = None
        self._last = max((e.data["sequence"] for e in journal.events(EVENT) if "sequence" in e.data), default=0)

    def after_commit(self, version: Version) -> None:
        """Begin a publication if one is due; one that is due while another runs waits for the next commit."""
        every = self._config.every
        if every is None or version.sequence - self._last < every:
            return
        if self._running is not None and not self._running.done():
            return
        if not self._holds():
            logger.info("v%d is not published: the guard does not hold", version.sequence)
            return
        self._last = version.sequence
        self._running = self._thread.submit(self._work, version)

    def wait(self) -> None:
        """Return when nothing is being published."""
        if self._running is not None:
            self._running.result()

    def close(self) -> None:
        """Finish the publication under way: half of one would be left to the next."""
        self._thread.shutdown(wait=True)

    def _work(self, version: Version) -> None:
        try:
            results = self._publish(version)
        except Exception as error:
            # whatever keeps a version from being published must not keep edits from being written
            logger.error("v%d was not published: %s", version.sequence, error)
            data = {"what": "failed", "sequence": version.sequence, "version": version.digest, "reason": str(error)}
            self._journal.record_event(EVENT, data)
            self._say(f"publication of v{version.sequence} failed: {error}")
            return
        for result in results:
            why = f": {result.reason}" if result.reason else ""
            self._say(f"publication of v{version.sequence} to {result.url}: {result.state}{why}")
