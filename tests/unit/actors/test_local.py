"""Parts of a run in this process: made when they are needed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from errata.actors.local import LocalMemory
from errata.actors.workers.retrieval import RetrievalWorker
from errata.retrieval.embedder import HashEmbedderConfig
from errata.retrieval.index import IndexConfig
from errata.retrieval.memory import MemoryEntry


def entries() -> list[MemoryEntry]:
    told = ((1, "Paris", "Paris lies in France."), (2, "Oslo", "Oslo lies in Norway."))
    return [
        MemoryEntry(id=n, request_id=f"r{n}", subject=fact, fact_key=fact, statement=text) for n, fact, text in told
    ]


def test_a_memory_of_which_nothing_was_asked_reads_no_statement() -> None:
    def unread() -> Iterator[MemoryEntry]:
        pytest.fail("a statement was read")
        yield

    memory = LocalMemory(lambda: RetrievalWorker(HashEmbedderConfig(), IndexConfig()), entries)
    assert memory.sync(unread()) == 0
    assert [hit.id for hit in memory.search(["Paris lies in"], 1)[0]] == [1]
    assert memory.sync(entry for entry in entries()[1:]) == 1
    assert [hit.id for hit in memory.search(["Paris lies in"], 2)[0]] == [2]
