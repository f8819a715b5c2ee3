"""The external memory: edits as sentences, found by meaning, with exact supersede and exact rollback.

Every entry that was added and not removed is kept, with its vector. Of the entries about one fact (one
``fact_key``) the one with the largest id is *active* and can be found; the others are superseded. What is
active is a function of the set of entries alone, so any order of additions, a removal of the newest entry
(a rollback), and a rebuild from a journal all end in the same memory.
"""

from __future__ import annotations

import hashlib
import logging
from bisect import insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from errata.editing.closed import Closed
from errata.editing.digest import digest_json
from errata.editing.errors import UserError
from errata.editing.request import EditRequest
from errata.retrieval import store
from errata.retrieval.embedder import Embedder, unit_rows
from errata.retrieval.index import SCAN_ERROR, IndexConfig, VectorIndex
from errata.retrieval.naming import Mention, SubjectIndex, resolved
from errata.retrieval.rows import RowStore

logger = logging.getLogger(__name__)

Vectors = NDArray[np.float32]
# Candidates beyond k, scored again in float64 with the float32 vectors: the result then does not depend on
# whether the query came alone, in a batch, or after a rebuild.
_SLACK = 8
_MOST_QUESTIONS = 20_000
"""Questions whose vectors are kept: the same ones are asked at every evaluation."""


class MemoryEntry(Closed):
    """One statement in the memory."""

    id: int = Field(ge=0, lt=1 << 62)
    """Number of the edit; of two entries about one fact the larger id is the newer."""
    request_id: str
    subject: str
    relation: str | None = None
    fact_key: str
    statement: str = Field(min_length=1)
    time: datetime | None = None

    @classmethod
    def of(
        cls, request: EditRequest, id: int, *, statement: str | None = None, time: datetime | None = None
    ) -> MemoryEntry:
        """The entry of an edit request; the statement is the request's own unless another is given."""
        when = time if time is not None else (request.provenance.when if request.provenance else None)
        return cls(
            id=id,
            request_id=request.id,
            subject=request.subject,
            relation=request.relation,
            fact_key=request.fact_key,
            statement=statement or request.statement,
            time=when,
        )


@dataclass(frozen=True)
class Hit:
    """An active entry found for a query, with the inner product of the two vectors, the cosine where they are unit."""

    id: int
    score: float
    statement: str
    subject: str
    relation: str | None
    request_id: str
    fact_key: str


class Embeds(Protocol):
    """What of `errata.retrieval.embedder.Embedder` statements need."""

    def embed(self, texts: Sequence[str]) -> Vectors: ...


class FactMemory:
    """Statements behind an embedder and a vector index. Not thread-safe: one owner.

    Attributes:
        statements: embeds the statements that are learned: the embedder, or what keeps its vectors
            (`errata.retrieval.vectors.KeptVectors`).
    """

    def __init__(self, embedder: Embedder, config: IndexConfig | None = None) -> None:
        self.embedder = embedder
        self.statements: Embeds = embedder
        self._index = VectorIndex(embedder.dim, config)
        self._subjects = SubjectIndex()
        self._question_vectors: dict[str, Vectors] = {}
        self._clear()

    def _clear(self) -> None:
        self._entries: dict[int, MemoryEntry] = {}
        self._chains: dict[str, list[int]] = {}
        self._rows = RowStore(self.embedder.dim)
        self._row_of: dict[int, int] = {}
        self._id_at: list[int] = []
        self._longest = 1.0
        """Bound of the vectors' lengths; the scan's error grows with it."""

    # ---- content

    def __len__(self) -> int:
        """Number of active entries."""
        return len(self._chains)

    @property
    def stored(self) -> int:
        """Number of entries kept, superseded ones included."""
        return len(self._entries)

    @property
    def exact(self) -> bool:
        """Whether searches are exhaustive at the present size."""
        return self._index.exact

    def get(self, id: int) -> MemoryEntry | None:
        """The entry of an id, active or superseded."""
        return self._entries.get(id)

    def is_active(self, id: int) -> bool:
        """Whether the entry is there and no newer one supersedes it."""
        entry = self._entries.get(id)
        return entry is not None and self._chains[entry.fact_key][-1] == id

    def history(self, fact_key: str) -> list[MemoryEntry]:
        """All kept entries about one fact, oldest first; the last one is active."""
        return [self._entries[id] for id in self._chains.get(fact_key, [])]

    def entries(self) -> list[MemoryEntry]:
        """All kept entries by id."""
        return [self._entries[id] for id in sorted(self._entries)]

    def active(self) -> list[MemoryEntry]:
        """Active entries by id."""
        return [self._entries[id] for id in sorted(chain[-1] for chain in self._chains.values())]

    def vectors(self, ids: Sequence[int]) -> Vectors:
        """Copies of the stored vectors (n, dim) of entries, active or not."""
        return self._rows.at([self._row_of[id] for id in ids])

    @property
    def digest(self) -> str:
        """Of the active entries and the embedder: two memories with one digest answer every query alike."""
        sha = hashlib.sha256(self.embedder.digest.encode())
        for entry in self.active():
            sha.update(digest_json(entry.model_dump(mode="json")).encode())
        return sha.hexdigest()

    # ---- change

    def add(self, entries: Iterable[MemoryEntry], vectors: Vectors | None = None) -> list[int]:
        """Keep entries; an entry already kept under its id with the same content changes nothing.

        Args:
            entries: in any order.
            vectors: (n, dim) embeddings of the statements, where they are known; otherwise they are embedded.

        Returns:
            Ids that were active before and are superseded now, ascending.

        Raises:
            UserError: an id is taken by an entry with another content, or the shape of ``vectors`` does not
                fit. Nothing is added then.
        """
        given = list(entries)
        fresh: dict[int, int] = {}
        for place, entry in enumerate(given):
            known = self._entries.get(entry.id) or (given[fresh[entry.id]] if entry.id in fresh else None)
            if known is None:
                fresh[entry.id] = place
            elif known != entry:
                raise UserError(
                    f"memory id {entry.id} holds {known.statement!r}; it cannot also hold "
                    f"{entry.statement!r}: remove it first, or use another id"
                )
        new = [given[place] for place in fresh.values()]
        if vectors is None:
            rows = self.embedder.embed([entry.statement for entry in new])
        else:
            expected = (len(given), self.embedder.dim)
            if vectors.shape != expected:
                raise UserError(f"memory needs vectors of shape {expected}, got {vectors.shape}")
            rows = vectors[list(fresh.values())]
            rows = unit_rows(rows) if self.embedder.unit else rows
        if not new:
            return []
        before = {entry.fact_key: self._top(entry.fact_key) for entry in new}
        self._append_rows([entry.id for entry in new], rows)
        for entry in new:
            self._entries[entry.id] = entry
            insort(self._chains.setdefault(entry.fact_key, []), entry.id)
        return self._sync_index(before)[0]

    def learn(self, entries: Sequence[MemoryEntry]) -> int:
        """Add statements that are not there yet; returns how many are active.

        What a newer statement of the same fact has superseded is dropped: a revert takes the fact back with all its
        values, so nothing would ever ask for it, and a memory of updates would grow for ever.
        """
        new = [entry for entry in entries if self.get(entry.id) is None]
        self.add(new, self.statements.embed([entry.statement for entry in new]))
        facts = dict.fromkeys(entry.fact_key for entry in new)
        self.remove([entry.id for fact in facts for entry in self.history(fact)[:-1]])
        return len(self)

    def remove(self, ids: Iterable[int], *, missing_ok: bool = False) -> list[int]:
        """Drop entries as if they had never been added: an entry they superseded is active again.

        Returns:
            Ids that are active now and were superseded before, ascending.

        Raises:
            UserError: an id is not there (unless ``missing_ok``). Nothing is removed then.
        """
        asked = set(ids)
        there = sorted(asked & self._entries.keys())
        if not missing_ok and len(there) < len(asked):
            missing = sorted(asked - self._entries.keys())
            raise UserError(f"memory has no entry with id {missing[0]} ({len(missing)} of {len(asked)} are missing)")
        before = {self._entries[id].fact_key: self._top(self._entries[id].fact_key) for id in there}
        for id in there:
            key = self._entries.pop(id).fact_key
            self._chains[key].remove(id)
            if not self._chains[key]:
                del self._chains[key]
        changed = self._sync_index(before)[1]
        for id in there:
            self._drop_row(id)
        return changed

    def rebuild(self, entries: Iterable[MemoryEntry], vectors: Vectors | None = None) -> None:
        """Replace the whole content, for example by what a journal says; arguments as for :meth:`add`."""
        fresh = FactMemory(self.embedder, self._index.config)
        fresh.add(entries, vectors)  # a refused entry leaves this memory as it was
        self._index, self._entries, self._chains = fresh._index, fresh._entries, fresh._chains
        self._subjects = fresh._subjects
        self._rows, self._row_of, self._id_at = fresh._rows, fresh._row_of, fresh._id_at
        self._longest = fresh._longest

    def _top(self, key: str) -> int | None:
        chain = self._chains.get(key)
        return chain[-1] if chain else None

    def _sync_index(self, before: dict[str, int | None]) -> tuple[list[int], list[int]]:
        """Make the index hold what is active now; returns ids (superseded, active now and not before)."""
        out, into = [], []
        for key, old in before.items():
            now = self._top(key)
            if old != now:
                out += [old] if old is not None else []
                into += [now] if now is not None else []
        out, into = sorted(out), sorted(into)
        self._index.remove(np.asarray(out, dtype=np.int64))
        self._index.add(np.asarray(into, dtype=np.int64), self.vectors(into))
        for id in out:
            self._subjects.remove(id)
        for id in into:
            self._subjects.add(id, self._entries[id].subject)
        if self._index.needs_build:
            self._build_index()
        return [id for id in out if id in self._entries], into

    def _build_index(self) -> None:
        ids = sorted(chain[-1] for chain in self._chains.values())
        self._index.build(np.asarray(ids, dtype=np.int64), self.vectors(ids))

    def _append_rows(self, ids: list[int], rows: Vectors) -> None:
        start = len(self._id_at)
        self._rows.append(rows)
        self._longest = max(self._longest, _longest(rows)) if not self.embedder.unit else 1.0
        self._id_at += ids
        self._row_of.update(zip(ids, range(start, start + len(ids)), strict=True))

    def _drop_row(self, id: int) -> None:
        row, last = self._row_of.pop(id), self._id_at.pop()
        self._rows.drop(row)
        if last != id:  # the last row takes the free place
            self._id_at[row], self._row_of[last] = last, row

    # ---- search

    def search(self, queries: Sequence[str], k: int = 3) -> list[list[Hit]]:
        """The ``k`` active entries nearest to each text, best first (equal scores: the newer first)."""
        return self.search_vectors(self.embedded(queries), k)

    def embedded(self, queries: Sequence[str]) -> Vectors:
        """Vectors (n, dim) of texts that are searched for; each text is embedded once, and kept."""
        if len(self._question_vectors) > _MOST_QUESTIONS:  # a service is asked new ones for months
            self._question_vectors.clear()
        unknown = [query for query in dict.fromkeys(queries) if query not in self._question_vectors]
        if unknown:
            self._question_vectors.update(zip(unknown, self.embedder.embed(unknown), strict=True))
        if not queries:
            return np.empty((0, self.embedder.dim), dtype=np.float32)
        return np.stack([self._question_vectors[query] for query in queries])

    def search_vectors(self, queries: Vectors, k: int = 3) -> list[list[Hit]]:
        """As :meth:`search`, for embedded queries (n, dim), of unit norm where the embedder gives such.

        Raises:
            UserError: ``k`` is not positive, or the dimension is not the embedder's.
        """
        if k < 1:
            raise UserError(f"memory search needs k >= 1, got {k}")
        if queries.ndim != 2 or queries.shape[1] != self.embedder.dim:
            raise UserError(f"memory search needs queries of shape (n, {self.embedder.dim}), got {queries.shape}")
        results: list[list[Hit]] = [[] for _ in queries]
        pending, candidates = list(range(len(queries))) if len(self) else [], k + _SLACK
        while pending:
            candidates = min(candidates, len(self))
            scores, ids = self._index.search(queries[pending], candidates)
            unsure = []
            for row, place in enumerate(pending):
                results[place] = self._hits(queries[place], ids[row][ids[row] >= 0], k)
                # whatever was not looked at scores at most this: the scan's last score and its error
                reach = 1.0 if self.embedder.unit else max(1.0, self._longest * _longest(queries[place][None]))
                outside = float(scores[row][-1]) + SCAN_ERROR * reach
                if candidates < len(self) and results[place][-1].score <= outside:
                    unsure.append(place)
            if not self._index.exact:  # lists promise no exactness, and looking at more would not bring it
                break
            pending, candidates = unsure, 4 * candidates
        return results

    def named(self, text: str) -> dict[int, Mention]:
        """Active entries whose subject the text names, with its last mention; longer subjects first, then newer."""
        return self._subjects.named(text)

    def resolved(self, turns: Sequence[str]) -> str:
        """The last turn of a conversation, with the subject it refers to in place of its first referring word."""
        return resolved(turns, self._subjects)

    def hits(self, query: Vectors, ids: Sequence[int]) -> list[Hit]:
        """Entries by id with the inner product with an embedded query (dim,), scored as by a search, best first."""
        return self._hits(query, np.asarray(ids, dtype=np.int64), len(ids)) if len(ids) else []

    def _hits(self, query: Vectors, ids: NDArray[np.int64], k: int) -> list[Hit]:
        rows = [self._row_of[int(id)] for id in ids]
        scores = self._rows.at(rows).astype(np.float64) @ query.astype(np.float64)
        order = np.lexsort((-ids, -scores))[:k]
        return [_hit(self._entries[int(ids[i])], float(scores[i])) for i in order]

    # ---- disk

    def save(self, directory: Path, note: Mapping[str, str | int] | None = None) -> None:
        """Write entries, vectors, index, and a manifest of digests; a crash leaves the former state.

        Args:
            note: kept with it, and given back by `note_of`.
        """
        entries = self.entries()
        store.write(
            directory,
            entries=[entry.model_dump_json() for entry in entries],
            vectors=self.vectors([entry.id for entry in entries]),
            index=self._index,
            embedder={"name": self.embedder.name, "digest": self.embedder.digest, "dim": self.embedder.dim},
            content=self.digest,
            note=dict(note or {}),
        )

    @staticmethod
    def note_of(directory: Path) -> dict[str, str | int]:
        """What was noted with a saved memory.

        Raises:
            UserError: there is no memory in the directory.
            DamagedFileError: its manifest cannot be read.
        """
        return dict(store.read_manifest(directory).note)

    @classmethod
    def load(cls, directory: Path, embedder: Embedder, config: IndexConfig | None = None) -> FactMemory:
        """Read a saved memory; nothing is embedded, and vectors are mapped, not read.

        A missing, truncated or foreign index file is replaced by a new index over the stored vectors, with a
        warning.

        Raises:
            UserError: there is no memory in the directory, or another embedder made it.
            DamagedFileError: entries, vectors or manifest are not what was written.
        """
        manifest = store.read_manifest(directory)
        if manifest.embedder.digest != embedder.digest:
            raise UserError(
                f"memory {directory} was embedded with {manifest.embedder.name!r} "
                f"({manifest.embedder.digest[:12]}), the configuration says {embedder.name!r} "
                f"({embedder.digest[:12]}); use that embedder, or rebuild the memory from the journal"
            )
        memory = cls(embedder, config)
        entries = [MemoryEntry.model_validate_json(line) for line in store.read_entries(directory, manifest)]
        memory._rows = RowStore(embedder.dim, store.map_vectors(directory, manifest))
        memory._id_at = [entry.id for entry in entries]
        memory._row_of = {id: row for row, id in enumerate(memory._id_at)}
        if not embedder.unit:
            memory._longest = max(1.0, _longest(memory.vectors(memory._id_at)))
        for entry in entries:
            memory._entries[entry.id] = entry
            insort(memory._chains.setdefault(entry.fact_key, []), entry.id)
        store.check_content(directory, manifest, memory.digest)
        for entry in memory.active():
            memory._subjects.add(entry.id, entry.subject)
        ids = np.asarray([entry.id for entry in memory.active()], dtype=np.int64)
        try:
            memory._index.load(store.index_files(directory, manifest), ids)
        except ValueError as error:
            logger.warning("memory %s: %s; built again from %d stored vectors", directory, error, len(ids))
            memory._build_index()
        return memory


def _longest(rows: Vectors) -> float:
    """Largest Euclidean norm of rows (n, dim); 0 without any."""
    return float(np.linalg.norm(rows.astype(np.float64), axis=1).max(initial=0.0))


def _hit(entry: MemoryEntry, score: float) -> Hit:
    return Hit(
        id=entry.id,
        score=score,
        statement=entry.statement,
        subject=entry.subject,
        relation=entry.relation,
        request_id=entry.request_id,
        fact_key=entry.fact_key,
    )
