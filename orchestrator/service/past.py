"""Questions about another time: what the memory would have found then."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Protocol

from errata.editing.errors import UserError
from errata.evaluation.outcomes import AskedArm
from errata.orchestrator.history.past import GoneFacts, Moment, facts_at
from errata.orchestrator.history.receipts import memory_entry
from errata.orchestrator.journal.reading import JournalReader
from errata.orchestrator.service.errors import ServiceError
from errata.retrieval.memory import MemoryEntry
from errata.retrieval.router import Findings
from errata.retrieval.statements import StatementConfig

ARMS_OF_THE_PAST: Final[frozenset[AskedArm]] = frozenset({"base", "memory", "routed"})
"""Arms without edited weights: those hold what holds now, and no other version is loaded."""
_WIDER: Final = 4
"""As many times more statements of now are looked at for the facts that the past may have said otherwise."""


class Searches(Protocol):
    """The memory, as `errata.actors.clients.MemoryClient` is."""

    def search(self, questions: Sequence[str], k: int) -> Sequence[Sequence[Any]]: ...

    def among(self, questions: Sequence[str], entries: Sequence[MemoryEntry], k: int) -> Findings: ...


class Past:
    """Finds what bore on a question at another time. Safe to use from several threads."""

    def __init__(self, journal: JournalReader, memory: Searches, k: int, statement: StatementConfig | None) -> None:
        """``k``: statements that are found for a question; ``statement``: how an edit becomes one."""
        self._journal, self._memory, self._k, self._statement = journal, memory, k, statement
        self._gone = GoneFacts(journal)
        self._lock = threading.Lock()

    def moment(self, as_of: datetime | None, as_known_at: str | None) -> Moment:
        """The moment that a question names.

        Raises:
            ServiceError: 404 where there is no such version.
        """
        if as_known_at is None:
            return Moment(as_of)
        tagged = self._journal.tags().get(as_known_at)
        try:
            found = self._journal.find_version(as_known_at) if tagged is None else self._journal.version(tagged)
        except UserError as error:
            raise ServiceError(404, "not_found", str(error)) from None
        return Moment(as_of, found)

    def find(self, questions: Sequence[str], moment: Moment) -> tuple[Findings, Mapping[int, str]]:
        """What a memory of that moment finds, and the edits that its statements are of, by number.

        Facts are looked for among those that resemble a question now, whatever they say now, and among those of which
        nothing holds any more and whose subject a question names.
        """
        near = self._memory.search(questions, _WIDER * self._k)
        numbers = {hit.id for row in near for hit in row}
        facts = {row.fact_key for row in self._journal.requests_by_number(numbers) if row.fact_key is not None}
        with self._lock:
            facts |= self._gone.named(questions)
        held = facts_at(self._journal, sorted(facts), moment)
        entries = [memory_entry(row, self._statement) for row in held]
        return self._memory.among(questions, entries, self._k), {row.seq: row.id for row in held}


def arms_then(wanted: Sequence[AskedArm] | None, there: Sequence[AskedArm]) -> list[AskedArm]:
    """The arms that answer a question about another time.

    Raises:
        ServiceError: 422 where one that was asked for needs the weights of then.
    """
    for arm in wanted or ():
        if arm not in ARMS_OF_THE_PAST:
            allowed = ", ".join(arm for arm in there if arm in ARMS_OF_THE_PAST)
            raise ServiceError(
                422,
                "invalid",
                f"arm {arm!r} speaks with weights that hold what holds now, and those of another time are not loaded; "
                f"at another time there are: {allowed}",
            )
    return list(wanted or [arm for arm in there if arm in ARMS_OF_THE_PAST])
