"""What was true at another time, and what was known by then: facts as of a moment, from the journal alone.

Two times belong to a fact. *Event time* is when it became true (`event_at`, else when it was handed in). *Knowledge* is
the commit that wrote it. A question may name either, or both: what held in May, as far as it was known in version 40.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

from errata.editing.errors import UserError
from errata.evaluation.outcomes import Arm, AskedArm
from errata.orchestrator.history.receipts import memory_entry
from errata.orchestrator.journal.reading import JournalReader
from errata.orchestrator.journal.rows import Fate, RequestRow, RetractionRow, Version
from errata.retrieval.memory import MemoryEntry
from errata.retrieval.naming import SubjectIndex
from errata.retrieval.router import Findings
from errata.retrieval.statements import StatementConfig

ARMS_OF_THE_PAST: Final[frozenset[Arm]] = frozenset({"base", "memory", "routed"})
"""Arms without edited weights: those hold what holds now, and no other version is loaded."""
_WIDER: Final = 4
"""As many times more statements of now are looked at for the facts that the past may have said otherwise."""


@dataclass(frozen=True)
class Moment:
    """When a fact is to hold, and by when it is to be known."""

    as_of: datetime | None = None
    """Event time; None for what held last, as far as it was known."""
    known: Version | None = None
    """The last commit that counts; None for the newest."""

    def is_of(self, loaded: Version) -> bool:
        """Whether a question about it is one about a version as it stands, whose weights may answer then."""
        return self.as_of is None and self.known is not None and self.known.digest == loaded.digest


def facts_at(journal: JournalReader, fact_keys: Iterable[str], moment: Moment) -> list[RequestRow]:
    """Of some facts the requests that held at a moment, at most one each.

    With an event time it is the newest of the fact, by event time, of those that were true by then: an update that came
    late counts, and what was taken back later than the time counts as well. Without one it is what the version held.
    """
    keys = list(dict.fromkeys(fact_keys))
    if moment.as_of is None:
        last = (moment.known or journal.head()).sequence
        return [row for row in journal.held_of(keys, last) if row.erased_at is None]
    rows = [row for row in journal.requests_of_facts(keys) if row.erased_at is None]
    fates = journal.fates_of([row.seq for row in rows])
    ends = _ends(journal.retractions_of(keys), rows)
    by_fact: dict[str, list[tuple[RequestRow, str]]] = {}
    for row in rows:
        then = _then(fates.get(row.seq, ()), moment)
        if then is not None and row.fact_key is not None:
            by_fact.setdefault(row.fact_key, []).append((row, then))
    found = []
    for told in by_fact.values():
        newest: tuple[RequestRow, str] | None = None
        for row, then in told:
            if row.true_at <= moment.as_of and (newest is None or row.newer_than(newest[0])):
                newest = row, then
        if newest is not None and (newest[1] != "reverted" or _still(ends.get(newest[0].id), moment.as_of)):
            found.append(newest[0])
    return sorted(found, key=lambda row: row.seq)


def _then(fates: Sequence[Fate], moment: Moment) -> str | None:
    """The state of a request by the moment's commit, of those that tell something: ``applied``, ``superseded`` or
    ``reverted``; None where it was not known, or never came to hold."""
    state = None
    for fate in fates:
        if moment.known is not None:
            at = moment.known.at
            late = fate.sequence > moment.known.sequence if fate.sequence is not None else at is None or fate.at > at
            if late:
                break
        state = fate.state
    known = any(fate.state in ("applied", "superseded") for fate in fates)
    return state if known and state in ("applied", "superseded", "reverted") else None


def _ends(retractions: Iterable[RetractionRow], rows: Sequence[RequestRow]) -> dict[str, datetime]:
    """When requests ceased to be true, of those that a retraction with an event time took back."""
    names = {row.id for row in rows}
    return {end.retracts: end.event_at for end in retractions if end.retracts in names and end.event_at is not None}


def _still(end: datetime | None, as_of: datetime) -> bool:
    """Whether something that was taken out was true at a time; without an end it was a mistake, and never true."""
    return end is not None and as_of < end


class GoneFacts:
    """Facts of which nothing holds now, found by the subject that a text names. Not thread-safe."""

    def __init__(self, journal: JournalReader) -> None:
        self._journal = journal
        self._index = SubjectIndex()
        self._facts: dict[int, str] = {}
        self._ended = 0

    def named(self, texts: Iterable[str]) -> set[str]:
        """Keys of the facts whose subjects the texts name."""
        for row in self._journal.taken_out_after(self._ended):
            self._ended = max(self._ended, row.ended_in or 0)
            if row.fact_key is not None and row.erased_at is None and row.seq not in self._facts:
                self._facts[row.seq] = row.fact_key
                self._index.add(row.seq, str(row.payload.get("subject", "")))
        return {self._facts[id] for text in texts for id in self._index.named(text)}


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
            UserError: there is no such version.
        """
        if as_known_at is None:
            return Moment(as_of)
        tagged = self._journal.tags().get(as_known_at)
        return Moment(
            as_of, self._journal.find_version(as_known_at) if tagged is None else self._journal.version(tagged)
        )

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


def arms_then(wanted: Sequence[Arm] | None, there: Sequence[AskedArm]) -> list[Arm]:
    """The arms that answer a question about another time.

    Raises:
        UserError: one that was asked for needs the weights of then.
    """
    for arm in wanted or ():
        if arm not in ARMS_OF_THE_PAST:
            allowed = ", ".join(arm for arm in there if arm in ARMS_OF_THE_PAST)
            raise UserError(
                f"arm {arm!r} speaks with weights that hold what holds now, and those of another time are not loaded; "
                f"at another time there are: {allowed}"
            )
    return list(wanted or [arm for arm in there if arm in ARMS_OF_THE_PAST])
