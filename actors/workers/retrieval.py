"""The external memory of one process: embeds questions, searches, adds and forgets statements."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from errata.editing.errors import ErrataError
from errata.retrieval.embedder import build_embedder
from errata.retrieval.evidence import EvidenceFinder
from errata.retrieval.ike import Asked, DemonstrationPool, InContext, NearestDemonstrations, Shown
from errata.retrieval.index import IndexConfig
from errata.retrieval.memory import FactMemory, Hit, MemoryEntry
from errata.retrieval.router import Findings, FittedRouter, RouterConfig, Routing
from errata.retrieval.router_fit import router_for
from errata.retrieval.vectors import KeptVectors

logger = logging.getLogger(__name__)

Mark = tuple[int, str]
"""Number and digest of the version that a memory is of."""


class RetrievalWorker:
    """A `FactMemory` with its embedder, filled and saved, and its router. Plain class; `RetrievalActor` is its shell.

    Attributes:
        memory: learns and is searched; what takes more than the memory goes through the worker.
    """

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
        self.memory = self._saved(index_config) or FactMemory(self._embedder, index_config)
        self._statements = None if kept_in is None else KeptVectors(self._embedder, kept_in)
        if self._statements is not None:
            self.memory.statements = self._statements
        self._evidence = EvidenceFinder(self.memory)
        self._router_config = router_config or RouterConfig()
        self._router: FittedRouter | None = None
        self._demonstrations: NearestDemonstrations | None = None

    def remove(self, ids: Sequence[int]) -> int:
        """Forget statements; one that is not there is passed over."""
        self.memory.remove(ids, missing_ok=True)
        return len(self.memory)

    def sync(self, entries: Iterable[MemoryEntry]) -> int:
        """Hold these statements and no others; what is held already is not embedded again. Returns how many."""
        told = list(entries)
        wanted = {entry.id: entry for entry in told}
        self.memory.remove([held.id for held in self.memory.entries() if wanted.get(held.id) != held])
        return self.memory.learn(told)

    def mark(self) -> Mark | None:
        """Which version the memory that was found saved is of; None where it began empty."""
        return self._mark

    def save(self, mark: Mark) -> None:
        """Keep the memory as it stands, as that of a version; a restart goes on from here."""
        if self._state is None:
            return
        try:
            self.memory.save(self._state, {"sequence": mark[0], "version": mark[1]})
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

    def route(self, questions: Sequence[str], k: int) -> Routing:
        """The router in force and each question's candidates, the ``k`` nearest and those that it names."""
        distinct = list(dict.fromkeys(questions))
        candidates = self._evidence.candidates(distinct, self.memory.embedded(distinct), k) if distinct else []
        return Routing(self.router(), dict(zip(distinct, candidates, strict=True)))

    def among(self, questions: Sequence[str], entries: Sequence[MemoryEntry], k: int) -> Findings:
        """What a memory that holds these statements alone finds: the nearest of each question, and its candidates for
        the router in force. At most one of each fact."""
        distinct = list(dict.fromkeys(questions))
        held = FactMemory(self._embedder)
        known = [entry for entry in entries if (own := self.memory.get(entry.id)) and own.statement == entry.statement]
        held.add(known, self.memory.vectors([entry.id for entry in known]))
        held.add([entry for entry in entries if entry not in known])
        vectors = self.memory.embedded(distinct)
        hits = held.search_vectors(vectors, k) if distinct else []
        candidates = EvidenceFinder(held).candidates(distinct, vectors, k) if distinct else []
        routing = Routing(self.router(), dict(zip(distinct, candidates, strict=True)), answer="memory")
        return Findings(dict(zip(distinct, hits, strict=True)), routing)

    def in_context(self, pool: DemonstrationPool, asked: Sequence[Asked], without: Sequence[str]) -> InContext:
        """Facts and demonstrations for questions; none of these names a subject of ``without``."""
        if not asked:
            return InContext()
        if self._demonstrations is None or self._demonstrations.pool != pool:
            self._demonstrations = NearestDemonstrations(pool, self._embedder)
        vectors = self.memory.embedded([one.question for one in asked])
        found = self.memory.search_vectors(vectors, 1)
        facts = [self.memory.history(one.fact_key) for one in asked]
        right = [self.memory.hits(v, [kept[-1].id]) if kept else [] for v, kept in zip(vectors, facts, strict=True)]
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

    def router(self) -> FittedRouter:
        """The router in force: what was set, else the configuration's, found or fitted when it is first needed."""
        if self._router is None:
            self._router = router_for(self._router_config, self.memory)
        return self._router

    def search_seconds(self, questions: Sequence[str], k: int) -> float:
        """Mean wall seconds of embedding and searching one question alone, after one to warm up."""
        search = self.memory.search_vectors
        search(self._embedder.embed(questions[:1]), k)
        started = time.perf_counter()
        for question in questions:
            search(self._embedder.embed([question]), k)
        return (time.perf_counter() - started) / max(1, len(questions))
