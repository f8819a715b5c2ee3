"""The external memory as an actor: embeds questions, searches, adds and forgets statements."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray

from errata.actors.connection import LOST, raise_if_init_failed, unwrap
from errata.actors.runtime import kill, make_actor
from errata.actors.settings import RayConfig
from errata.actors.workers.retrieval import RetrievalWorker
from errata.editing.errors import ErrataError
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

    def search(self, questions: Sequence[str], k: int) -> list[list[Hit]]:
        return self._worker.search(questions, k)

    def route(self, questions: Sequence[str], k: int) -> Routing:
        return self._worker.route(questions, k)

    def resolved(self, turns: Sequence[str]) -> str:
        return self._worker.resolved(turns)

    def router(self) -> FittedRouter:
        return self._worker.router()

    def search_seconds(self, questions: Sequence[str], k: int) -> float:
        return self._worker.search_seconds(questions, k)

    def digest(self) -> str:
        return self._worker.digest()


class MemoryClient:
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
        self._config, self._entries = config, entries
        self._arguments = (embedder_config, index_config, kept_in, router)
        self._revivals = 0
        self._reviving = threading.Lock()
        self._actor: Any = self._make()

    def _make(self) -> Any:
        return make_actor(RetrievalActor, self._config.retrieval, *self._arguments)

    @property
    def actor(self) -> Any:
        """The handle, for fault tests."""
        return self._actor

    def restore(self) -> int:
        """Add everything the journal says it should hold."""
        return int(self._guarded(lambda: self._actor.add.remote(list(self._entries()))))

    def add(self, entries: Sequence[MemoryEntry]) -> int:
        """Add statements; adding one twice changes nothing."""
        return int(self._guarded(lambda: self._actor.add.remote(list(entries))))

    def remove(self, ids: Sequence[int]) -> int:
        """Forget statements by id."""
        return int(self._guarded(lambda: self._actor.remove.remote(list(ids))))

    def search(self, questions: Sequence[str], k: int) -> list[list[Hit]]:
        """The k nearest active statements of each question, best first."""
        hits: list[list[Hit]] = self._guarded(lambda: self._actor.search.remote(list(questions), k))
        return hits

    def route(self, questions: Sequence[str], k: int) -> Routing:
        """The router in force and each question's candidates."""
        found: Routing = self._guarded(lambda: self._actor.route.remote(list(questions), k))
        return found

    def resolved(self, turns: Sequence[str]) -> str:
        """The last turn of a conversation, with what it refers to."""
        return str(self._guarded(lambda: self._actor.resolved.remote(list(turns))))

    def router(self) -> FittedRouter:
        """The router in force."""
        found: FittedRouter = self._guarded(lambda: self._actor.router.remote())
        return found

    def search_seconds(self, questions: Sequence[str], k: int) -> float:
        """Mean wall seconds of embedding and searching one question alone."""
        return float(self._guarded(lambda: self._actor.search_seconds.remote(list(questions), k)))

    def digest(self) -> str:
        """Digest of the active content."""
        return str(self._guarded(lambda: self._actor.digest.remote()))

    def close(self) -> None:
        """End the actor."""
        kill(self._actor)

    def _guarded(self, call: Callable[[], Any]) -> Any:
        while True:
            actor = self._actor
            try:
                return ray.get(call(), timeout=self._config.call_timeout_seconds)
            except LOST as error:
                raise_if_init_failed(error)
                self._revive(actor, error)
            except ray.exceptions.RayTaskError as error:
                raise unwrap(error) from error

    def _revive(self, dead: Any, error: Exception) -> None:
        with self._reviving:
            if self._actor is not dead:
                return  # somebody else met the same death and has replaced it
            self._revivals += 1
            if self._revivals > self._config.max_revivals:
                raise ErrataError(
                    f"the memory died {self._revivals} times; allowed: ray.max_revivals {self._config.max_revivals}"
                ) from error
            logger.warning("the memory died (%s); filling a new one from the journal", type(error).__name__)
            kill(dead)
            actor = self._make()
            actor.add.remote(list(self._entries()))  # calls run in order: this one comes first
            self._actor = actor
