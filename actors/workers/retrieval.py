"""The external memory of one process: embeds questions, searches, adds and forgets statements."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errata.editing.errors import ErrataError
from errata.retrieval.embedder import build_embedder
from errata.retrieval.evidence import EvidenceFinder
from errata.retrieval.ike import Asked, DemonstrationPool, InContext, NearestDemonstrations, Shown
from errata.retrieval.index import IndexConfig
from errata.retrieval.memory import FactMemory, Hit, MemoryEntry
from errata.retrieval.router import FittedRouter, RouterConfig, Routing
from errata.retrieval.router_fit import router_for
from errata.retrieval.vectors import KeptVectors

logger = logging.getLogger(__name__)

Mark = tuple[int, str]
"""Number and digest of the version that a memory is of."""
_MOST_QUESTIONS = 20_000
"""Questions whose vectors are kept."""


class RetrievalWorker:
    """A `FactMemory` with its embedder. Plain class; `RetrievalActor` is its shell."""

    def __init__(
        self,
        embedder_config: Any,
        index_config: IndexConfig,
        kept_in: Path | None = None,
        router_config: RouterConfig | None = None,
    ) -> None:
        """``kept_in`` is where the memory is kept, so that a restart embeds nothing: as it was when it was saved last
        (`save`), and the vectors of statements that came since."""
        self._embedder = build_embedder(embedder_config)
        self._state = None if kept_in is None else kept_in / "state"
        self._mark: Mark | None = None
        self._memory = self._saved(index_config) or FactMemory(self._embedder, index_config)
        self._statements = KeptVectors(self._embedder, kept_in) if kept_in is not None else None
        self._questions: dict[str, Any] = {}
        self._evidence = EvidenceFinder(self._memory)
        self._router_config = router_config or RouterConfig()
        self._router: FittedRouter | None = None
        self._demonstrations: NearestDemonstrations | None = None

    def add(self, entries: Sequence[MemoryEntry]) -> int:
        """Add statements that are not there yet; returns how many are active.

        What a newer statement of the same fact has superseded is dropped: a revert takes the fact back with all its
        values, so nothing would ever ask for it, and a memory of updates would grow for ever.
        """
        new = [entry for entry in entries if self._memory.get(entry.id) is None]
        embed = self._embedder.embed if self._statements is None else self._statements.embed
        self._memory.add(new, embed([entry.statement for entry in new]))
        facts = dict.fromkeys(entry.fact_key for entry in new)
        old = [entry.id for fact in facts for entry in self._memory.history(fact)[:-1]]
        self._memory.remove(old)
        return len(self._memory)

    def remove(self, ids: Sequence[int]) -> int:
        """Forget statements; one that is not there is passed over."""
        self._memory.remove(ids, missing_ok=True)
        return len(self._memory)

    def sync(self, entries: Sequence[MemoryEntry]) -> int:
        """Hold these statements and no others; what is held already is not embedded again. Returns how many."""
        wanted = {entry.id: entry for entry in entries}
        self._memory.remove([held.id for held in self._memory.entries() if wanted.get(held.id) != held])
        return self.add(list(entries))

    def mark(self) -> Mark | None:
        """Which version the memory that was found saved is of; None where it began empty."""
        return self._mark

    def save(self, mark: Mark) -> None:
        """Keep the memory as it stands, as that of a version; a restart goes on from here."""
        if self._state is None:
            return
        try:
            self._memory.save(self._state, {"sequence": mark[0], "version": mark[1]})
        except OSError as error:  # a convenience: without it a restart fills the memory from the journal
            logger.warning("the memory could not be saved: %s", error)
            return
        if self._statements is not None:
            self._statements.forget()

    def _saved(self, config: IndexConfig) -> FactMemory | None:
        if self._state is None or not self._state.is_dir():
            return None
        try:
            memory = FactMemory.load(self._state, self._embedder, config)
            note = FactMemory.note_of(self._state)
            self._mark = int(note["sequence"]), str(note["version"])
        except (ErrataError, KeyError, ValueError) as error:
            logger.warning("the saved memory is passed over, and filled from the journal: %s", error)
            return None
        return memory

    def search(self, questions: Sequence[str], k: int) -> list[list[Hit]]:
        """The k nearest active statements of each question, best first. Questions are embedded once."""
        return self._memory.search_vectors(self._embedded(questions), k) if questions else []

    def route(self, questions: Sequence[str], k: int) -> Routing:
        """The router in force and each question's candidates, the ``k`` nearest and those that it names."""
        distinct = list(dict.fromkeys(questions))
        candidates = self._evidence.candidates(distinct, self._embedded(distinct), k) if distinct else []
        return Routing(self.router(), dict(zip(distinct, candidates, strict=True)))

    def in_context(self, pool: DemonstrationPool, asked: Sequence[Asked], without: Sequence[str]) -> InContext:
        """Facts and demonstrations for questions; none of these names a subject of ``without``."""
        if not asked:
            return InContext()
        if self._demonstrations is None or self._demonstrations.pool != pool:
            self._demonstrations = NearestDemonstrations(pool, self._embedder)
        vectors = self._embedded([one.question for one in asked])
        found = self._memory.search_vectors(vectors, 1)
        facts = [self._memory.history(one.fact_key) for one in asked]
        right = [self._memory.hits(v, [kept[-1].id]) if kept else [] for v, kept in zip(vectors, facts, strict=True)]
        wanted = [
            (hits[0].statement, one.question)
            for of in (found, right)
            for hits, one in zip(of, asked, strict=True)
            if hits
        ]
        distinct = list(dict.fromkeys(wanted))
        chosen = dict(zip(distinct, self._demonstrations.nearest(distinct, without), strict=True))

        def shown(hits: Sequence[Hit], one: Asked) -> Shown:
            return Shown(hits[0], chosen[hits[0].statement, one.question])

        return InContext(
            {one.question: shown(hits, one) for hits, one in zip(found, asked, strict=True) if hits},
            {(one.request_id, one.question): shown(hits, one) for hits, one in zip(right, asked, strict=True) if hits},
        )

    def resolved(self, turns: Sequence[str]) -> str:
        """The last turn of a conversation, with what it refers to."""
        return self._memory.resolved(turns)

    def router(self) -> FittedRouter:
        """The router in force: what was set, else the configuration's, found or fitted when it is first needed."""
        if self._router is None:
            self._router = router_for(self._router_config, self._memory)
        return self._router

    def _embedded(self, questions: Sequence[str]) -> Any:
        """Vectors (n, dim) of at least one question; each is embedded once."""
        if len(self._questions) > _MOST_QUESTIONS:  # a service is asked new ones for months
            self._questions.clear()
        unknown = [q for q in dict.fromkeys(questions) if q not in self._questions]
        if unknown:
            self._questions.update(zip(unknown, self._embedder.embed(unknown), strict=True))
        import numpy as np

        return np.stack([self._questions[q] for q in questions])

    def search_seconds(self, questions: Sequence[str], k: int) -> float:
        """Mean wall seconds of embedding and searching one question alone, after one to warm up."""
        self._memory.search(questions[:1], k)
        started = time.perf_counter()
        for question in questions:
            self._memory.search([question], k)
        return (time.perf_counter() - started) / max(1, len(questions))

    def digest(self) -> str:
        """Digest of the active content."""
        return self._memory.digest
