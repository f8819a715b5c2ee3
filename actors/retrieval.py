"""The external memory as an actor: embeds questions, searches, adds and forgets statements."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray

from errata.actors.reviving import RevivingClient
from errata.actors.runtime import make_actor
from errata.actors.settings import RayConfig
from errata.actors.workers.retrieval import Mark, RetrievalWorker
from errata.retrieval.ike import Asked, DemonstrationPool, InContext
from errata.retrieval.index import IndexConfig
from errata.retrieval.memory import Hit, MemoryEntry
from errata.retrieval.router import FittedRouter, RouterConfig, Routing

logger = logging.getLogger(__name__)


@ray.remote
class RetrievalActor:
    """Shell of `RetrievalWorker`."""

    def __init__(
        self, embedder_config: Any, index_config: IndexConfig, kept_in: Path | None, router_config: RouterConfig | None
    ) -> None:
        self._worker = RetrievalWorker(embedder_config, index_config, kept_in, router_config)

    def add(self, entries: Sequence[MemoryEntry]) -> int:
        return self._worker.add(entries)

    def remove(self, ids: Sequence[int]) -> int:
        return self._worker.remove(ids)

    def sync(self, entries: Sequence[MemoryEntry]) -> int:
        return self._worker.sync(entries)

    def mark(self) -> Mark | None:
        return self._worker.mark()

    def save(self, mark: Mark) -> None:
        self._worker.save(mark)

    def search(self, questions: Sequence[str], k: int) -> list[list[Hit]]:
        return self._worker.search(questions, k)

    def route(self, questions: Sequence[str], k: int) -> Routing:
        return self._worker.route(questions, k)

    def in_context(self, pool: DemonstrationPool, asked: Sequence[Asked], without: Sequence[str]) -> InContext:
        return self._worker.in_context(pool, asked, without)

    def resolved(self, turns: Sequence[str]) -> str:
        return self._worker.resolved(turns)

    def router(self) -> FittedRouter:
        return self._worker.router()

    def search_seconds(self, questions: Sequence[str], k: int) -> float:
        return self._worker.search_seconds(questions, k)

    def digest(self) -> str:
        return self._worker.digest()


class MemoryClient(RevivingClient):
    """What the orchestrator calls. A memory that died is filled again from the journal."""

    def __init__(
        self,
        config: RayConfig,
        embedder_config: Any,
        index_config: IndexConfig,
        entries: Callable[[], Sequence[MemoryEntry]],
        kept_in: Path | None = None,
        router: RouterConfig | None = None,
    ) -> None:
        """``entries`` gives everything the memory should hold, in order of acceptance.

        ``kept_in`` is a directory for vectors of statements, which the memory's machine sees too.
        """
        self._entries = entries
        arguments = (embedder_config, index_config, kept_in, router)
        super().__init__(config, "the memory", lambda: make_actor(RetrievalActor, config.retrieval, *arguments))

    def restore(self) -> int:
        """Hold what the journal says, and nothing else."""
        return self.sync(self._entries())

    def sync(self, entries: Sequence[MemoryEntry]) -> int:
        """Hold these statements and no others."""
        return int(self._call(lambda actor: actor.sync.remote(list(entries))))

    def mark(self) -> Mark | None:
        """Which version the memory was found saved at, when its actor was made; None where it began empty."""
        saved: Mark | None = self._call(lambda actor: actor.mark.remote())
        return saved

    def save(self, mark: Mark) -> None:
        """Keep the memory as it stands, as that of a version."""
        self._call(lambda actor: actor.save.remote(mark))

    def add(self, entries: Sequence[MemoryEntry]) -> int:
        """Add statements; adding one twice changes nothing."""
        return int(self._call(lambda actor: actor.add.remote(list(entries))))

    def remove(self, ids: Sequence[int]) -> int:
        """Forget statements by id."""
        return int(self._call(lambda actor: actor.remove.remote(list(ids))))

    def search(self, questions: Sequence[str], k: int) -> list[list[Hit]]:
        """The k nearest active statements of each question, best first."""
        hits: list[list[Hit]] = self._call(lambda actor: actor.search.remote(list(questions), k))
        return hits

    def route(self, questions: Sequence[str], k: int) -> Routing:
        """The router in force and each question's candidates."""
        routing: Routing = self._call(lambda actor: actor.route.remote(list(questions), k))
        return routing

    def in_context(self, pool: DemonstrationPool, asked: Sequence[Asked], without: Sequence[str]) -> InContext:
        """Facts and demonstrations for questions of an evaluation."""
        shown: InContext = self._call(lambda actor: actor.in_context.remote(pool, list(asked), list(without)))
        return shown

    def resolved(self, turns: Sequence[str]) -> str:
        """The last turn of a conversation, with what it refers to."""
        return str(self._call(lambda actor: actor.resolved.remote(list(turns))))

    def router(self) -> FittedRouter:
        """The router in force."""
        fitted: FittedRouter = self._call(lambda actor: actor.router.remote())
        return fitted

    def search_seconds(self, questions: Sequence[str], k: int) -> float:
        """Mean wall seconds of embedding and searching one question alone."""
        return float(self._call(lambda actor: actor.search_seconds.remote(list(questions), k)))

    def digest(self) -> str:
        """Digest of the active content."""
        return str(self._call(lambda actor: actor.digest.remote()))

    def _fill(self, actor: Any) -> None:
        actor.sync.remote(list(self._entries()))
