"""A memory in this process that answers as `MemoryClient` does."""

from __future__ import annotations

from collections.abc import Sequence

from errata.actors.workers.retrieval import RetrievalWorker
from errata.retrieval.memory import Hit, MemoryEntry


class HeldMemory(RetrievalWorker):
    """The worker, with the calls that its shell hands to the memory itself."""

    def add(self, entries: Sequence[MemoryEntry]) -> int:
        return self.memory.learn(entries)

    def search(self, questions: Sequence[str], k: int) -> list[list[Hit]]:
        return self.memory.search(questions, k)

    def resolved(self, turns: Sequence[str]) -> str:
        return self.memory.resolved(turns)

    def digest(self) -> str:
        return self.memory.digest
