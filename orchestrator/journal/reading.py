"""Reading a journal: its rows as values, without ever changing the file."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable
from datetime import datetime
from random import Random
from typing import Any

from errata.orchestrator.journal.rows import (
    STATES,
    AttemptRow,
    Counts,
    CovarianceRow,
    EvaluationRow,
    EventRow,
    Fate,
    MarkRow,
    RefreshRow,
    RequestRow,
    RequestState,
    RetractionRow,
    SwapRow,
)
from errata.orchestrator.journal.searching import where
from errata.orchestrator.journal.versions import AFTER, NEWEST, VersionReader, time_of

_REDACTED = '{"redacted":'
"""How the data of an event begins that an erasure has emptied: such events are not told of."""
_AT_ONCE = 500
"""Values looked up by one query."""
_PAGE = 200
"""Attempts read at one go."""


class JournalReader(VersionReader):
    """The queries of a journal. Safe to use from several threads.

    Raises:
        UserError: the file has the tables but no run was begun in it.
    """

    # ---------------------------------------------------------------- requests

    def pending(self, limit: int | None = None) -> list[RequestRow]:
        """Requests that wait to be applied, in the order of acceptance."""
        return self._requests("WHERE state = 'accepted'", (), limit)

    def waiting(self) -> int:
        """How many requests wait to be applied; cheap however long the journal is."""
        return self.counters().get("state.accepted", 0)

    def waiting_bytes(self) -> int:
        """Bytes of the requests that wait, as they are stored; costs a look at each of them."""
        query = "SELECT COALESCE(SUM(LENGTH(CAST(payload AS BLOB))), 0) FROM requests WHERE state = 'accepted'"
        return int(self._rows(query)[0][0])

    def oldest_waiting(self) -> tuple[int, datetime] | None:
        """Number and time of acceptance of the request that has waited longest, or None."""
        rows = self._rows("SELECT seq, accepted_at FROM requests WHERE state = 'accepted' ORDER BY seq LIMIT 1")
        return (int(rows[0]["seq"]), time_of(rows[0]["accepted_at"])) if rows else None

    def requests(self, state: RequestState | None = None) -> list[RequestRow]:
        """All requests, or those in one state, in the order of acceptance."""
        return self._requests("WHERE state = ?", (state,)) if state else self._requests("", ())

    def request_page(self, limit: int, **chosen: Any) -> list[RequestRow]:
        """The newest requests, newest first; ``chosen`` as `errata.orchestrator.journal.searching.where` takes it."""
        clause, values = where(**chosen)
        return self._requests(clause, values, limit, newest_first=True)

    def request(self, name: str) -> RequestRow | None:
        """One request by its id."""
        return next(iter(self._requests("WHERE id = ?", (name,))), None)

    def requests_named(self, names: Iterable[str]) -> list[RequestRow]:
        """Requests by their ids, in the order of acceptance; an id that is not there is left out."""
        return self._requests_by("id", names)

    def requests_of_facts(self, fact_keys: Iterable[str], state: RequestState | None = None) -> list[RequestRow]:
        """Every request about some facts, or those in one state, in the order of acceptance."""
        return self._requests_by("fact_key", fact_keys, state)

    def requests_applied_in(self, sequences: Iterable[int]) -> list[RequestRow]:
        """Requests that some commits wrote into the weights, in the order of acceptance."""
        return self._requests_by("applied_in", sequences)

    def _requests_by(
        self, column: str, wanted: Iterable[str | int], state: RequestState | None = None
    ) -> list[RequestRow]:
        values = list(dict.fromkeys(wanted))
        rows: list[RequestRow] = []
        for at in range(0, len(values), _AT_ONCE):
            part = values[at : at + _AT_ONCE]
            clause = f"WHERE {column} IN ({', '.join('?' * len(part))})"
            if state is not None:
                clause, part = f"{clause} AND state = ?", [*part, state]
            rows += self._requests(clause, tuple(part))
        return sorted(rows, key=lambda row: row.seq)

    def requests_starting(self, prefix: str, limit: int = 20) -> list[RequestRow]:
        """Requests whose id starts so."""
        return self._requests("WHERE id >= ? AND id < ?", (prefix, prefix + AFTER), limit)

    def applied_after(self, sequence: int) -> list[RequestRow]:
        """Requests that commits after one of that number have written and that are applied now."""
        return self._requests("WHERE applied_in > ? AND state = 'applied'", (sequence,))

    def first_tried(self, limit: int | None) -> list[RequestRow]:
        """The first requests, so many at most, that wait to be written or ever were in the weights."""
        return self._requests("WHERE +state IN ('accepted', 'applied', 'superseded') OR +applied_in > 0", (), limit)

    def applied_spread(self, count: int) -> list[RequestRow]:
        """At most so many of the applied requests, evenly over their order of acceptance."""
        total = self.counters().get("state.applied", 0)
        take = min(count, total)
        query = "SELECT seq FROM requests WHERE state = 'applied' ORDER BY seq LIMIT 1 OFFSET ?"
        rows = [self._rows(query, i * total // take) for i in range(take)]
        return self._requests_by("seq", [row[0]["seq"] for row in rows if row])

    def requests_by_number(self, numbers: Iterable[int]) -> list[RequestRow]:
        """Requests by the number of their acceptance, in that order; one that is not there is left out."""
        return self._requests_by("seq", numbers)

    def applied_sample(self, count: int, random: Random, *, without: Collection[int] = ()) -> list[RequestRow]:
        """At most so many of the applied requests, each as likely as any other, in the order of acceptance.

        Reads about as many rows as it gives, however long the journal is, unless few are left to choose from.

        Args:
            without: numbers of requests that are not wanted.
        """
        total = self.counters().get("state.applied", 0)
        newest = int(self._rows("SELECT COALESCE(MAX(seq), 0) FROM requests")[0][0])
        taken: set[int] = set()
        if total > 4 * (count + len(without)):
            for _ in range(64 * count * newest // total):
                number = random.randint(1, newest)
                if number not in taken and number not in without:
                    query = "SELECT 1 FROM requests WHERE seq = ? AND state = 'applied'"
                    taken |= {number} if self._rows(query, number) else set()
                if len(taken) == count:
                    break
        else:
            rows = self._rows("SELECT seq FROM requests WHERE state = 'applied' ORDER BY seq")
            left = [row["seq"] for row in rows if row["seq"] not in without]
            taken = set(random.sample(left, min(count, len(left))))
        return self._requests_by("seq", taken)

    def held(self, sequence: int, limit: int | None = None) -> list[RequestRow]:
        """Requests whose fact is in the weights at the version after batch ``sequence``, in the order of acceptance.

        Args:
            limit: those written last, so many at most.
        """
        where = (
            "applied_in <= ? AND (SELECT f.state FROM fates f WHERE f.seq = requests.seq"
            " AND f.sequence <= ? ORDER BY f.number DESC LIMIT 1) = 'applied'"
        )
        if limit is None:
            return self._requests(f"WHERE {where}", (sequence, sequence))
        newest = f"SELECT seq FROM requests WHERE {where} ORDER BY applied_in DESC, seq DESC LIMIT ?"
        return self._requests_by("seq", [row["seq"] for row in self._rows(newest, sequence, sequence, limit)])

    def newest_before(self, time: datetime) -> int:
        """Number of the newest commit made before a time; 0 where there is none."""
        query = "SELECT COALESCE(MAX(sequence), 0) FROM commits WHERE at < ?"
        return int(self._rows(query, time.isoformat())[0][0])

    def first_living(self) -> int | None:
        """Number of the first commit that wrote an edit which is in the weights; None where none is."""
        query = "SELECT MIN(applied_in) FROM requests WHERE state = 'applied'"
        first = self._rows(query)[0][0]
        return None if first is None else int(first)

    def living_writes(self) -> set[int]:
        """Commits that were the last to write an edit which is in the weights."""
        query = (
            "SELECT MAX(f.sequence) FROM fates f JOIN requests r ON r.seq = f.seq"
            " WHERE r.state = 'applied' AND f.state = 'applied' GROUP BY r.seq"
        )
        return {int(row[0]) for row in self._rows(query)}

    def texts_elsewhere(self, texts: Collection[str], gone: Collection[int]) -> set[str]:
        """Of some texts those that other requests hold as well; reads every request."""
        left, elsewhere = set(texts), set[str]()
        for row in self._rows("SELECT seq, payload FROM requests WHERE erased_at IS NULL"):
            if row["seq"] in gone or not left:
                continue
            payload = json.dumps(json.loads(row["payload"]), ensure_ascii=False)
            here = {text for text in left if json.dumps(text, ensure_ascii=False)[1:-1] in payload}
            elsewhere |= here
            left -= here
        return elsewhere

    def held_of(self, fact_keys: Iterable[str], sequence: int) -> list[RequestRow]:
        """As `held`, of some facts."""
        rows = [row for row in self.requests_of_facts(fact_keys) if (row.applied_in or sequence + 1) <= sequence]
        fates = self.fates_of(row.seq for row in rows)

        def then(row: RequestRow) -> str:
            """Its state after the commit: each had at least been applied."""
            return [f.state for f in fates[row.seq] if f.sequence is not None and f.sequence <= sequence][-1]

        return [row for row in rows if then(row) == "applied"]

    def held_count(self, sequence: int) -> int:
        """How many requests `held` gives: kept with every commit, so that nothing is counted."""
        rows = self._rows("SELECT holds FROM commits WHERE sequence = ?", sequence)
        return int(rows[0]["holds"]) if rows else 0

    def facts_touched(self, after: int, upto: int) -> set[str]:
        """Facts of which commits ``after + 1`` to ``upto`` have changed a request."""
        query = (
            "SELECT DISTINCT r.fact_key FROM fates f JOIN requests r ON r.seq = f.seq"
            " WHERE f.sequence > ? AND f.sequence <= ? AND r.fact_key IS NOT NULL"
        )
        return {row["fact_key"] for row in self._rows(query, after, upto)}

    def touched(self, after: int, upto: int) -> list[tuple[Fate, RequestRow]]:
        """What commits ``after + 1`` to ``upto`` did to requests, in the order in which it was written."""
        fates = self._rows("SELECT * FROM fates WHERE sequence > ? AND sequence <= ? ORDER BY number", after, upto)
        rows = {row.seq: row for row in self._requests_by("seq", [fate["seq"] for fate in fates])}
        return [
            (Fate(fate["state"], fate["sequence"], fate["reason"], time_of(fate["at"])), rows[fate["seq"]])
            for fate in fates
        ]

    def fates(self, name: str) -> list[Fate]:
        """Everything that happened to one request, oldest first."""
        rows = self._rows(
            "SELECT f.* FROM fates f JOIN requests r ON r.seq = f.seq WHERE r.id = ? ORDER BY f.number", name
        )
        return [Fate(row["state"], row["sequence"], row["reason"], time_of(row["at"])) for row in rows]

    def fates_of(self, numbers: Iterable[int]) -> dict[int, list[Fate]]:
        """Everything that happened to some requests, by their numbers, oldest first."""
        wanted = list(dict.fromkeys(numbers))
        found: dict[int, list[Fate]] = {}
        for at in range(0, len(wanted), _AT_ONCE):
            part = wanted[at : at + _AT_ONCE]
            places = ", ".join("?" * len(part))
            for row in self._rows(f"SELECT * FROM fates WHERE seq IN ({places}) ORDER BY number", *part):
                told = Fate(row["state"], row["sequence"], row["reason"], time_of(row["at"]))
                found.setdefault(row["seq"], []).append(told)
        return found

    def taken_out_after(self, sequence: int) -> list[RequestRow]:
        """Requests that were in the weights and were reverted by a commit after ``sequence``, by number."""
        return self._requests("WHERE state = 'reverted' AND applied_in IS NOT NULL AND ended_in > ?", (sequence,))

    def counts(self) -> Counts:
        """How much of everything there is."""
        kept = self.counters()
        by_state = {state: kept.get(f"state.{state}", 0) for state in STATES}
        sizes = {
            table: int(self._rows(f"SELECT COUNT(*) FROM {table}")[0][0])
            for table in ("swaps", "refreshes", "evaluations")
        }
        # batches are numbered from 1 without gaps
        sizes["batches"] = int(self._rows("SELECT COALESCE(MAX(sequence), 0) FROM batches")[0][0])
        outcomes = {name: kept.get(f"outcome.{name}", 0) for name in ("landed", "weak")}
        return Counts(**by_state, **sizes, **outcomes)

    def counters(self) -> dict[str, int]:
        """Counts that are kept in the transactions that change them: ``state.<state>`` and ``outcome.<outcome>``."""
        return {row["name"]: row["value"] for row in self._rows("SELECT name, value FROM counters")}

    def attempts(self, sequence: int | None = None) -> list[AttemptRow]:
        """Times that the editor was given a batch, oldest first; those of one sequence number, or all."""
        return [_attempt(row) for row in self._of("attempts", "sequence", sequence)]

    def attempts_since(self, at: datetime) -> list[AttemptRow]:
        """Attempts that began at a time or later, oldest first; nothing older is read than a page of them."""
        found: list[AttemptRow] = []
        before = NEWEST
        while True:
            query = "SELECT * FROM attempts WHERE number < ? ORDER BY number DESC LIMIT ?"
            page = [_attempt(row) for row in self._rows(query, before, _PAGE)]
            found += [row for row in page if row.started_at >= at]
            if len(page) < _PAGE or page[-1].started_at < at:
                return found[::-1]
            before = page[-1].number

    def retractions_due(self, limit: int = 100) -> list[RetractionRow]:
        """Retractions that wait and whose request is there, oldest first."""
        return self._retractions(
            "JOIN requests q ON q.id = r.retracts WHERE r.state = 'waiting' ORDER BY r.number LIMIT ?", limit
        )

    def retractions_of(self, fact_keys: Iterable[str]) -> list[RetractionRow]:
        """Every retraction of a request about some facts, oldest first."""
        held: list[RetractionRow] = []
        for key in dict.fromkeys(fact_keys):
            held += self._retractions("JOIN requests q ON q.id = r.retracts WHERE q.fact_key = ?", key)
        return sorted(held, key=lambda row: row.number)

    def _retractions(self, where: str, *values: object) -> list[RetractionRow]:
        return [
            RetractionRow(
                number=row["number"],
                id=row["id"],
                retracts=row["retracts"],
                event_at=None if row["event_at"] is None else time_of(row["event_at"]),
                accepted_at=time_of(row["accepted_at"]),
                state=row["state"],
                sequence=row["sequence"],
                reason=row["reason"],
            )
            for row in self._rows(f"SELECT r.* FROM retractions r {where}", *values)
        ]

    def payload_digest(self, name: str) -> str | None:
        """Digest of what a request asked for; None for an id that is not known."""
        rows = self._rows("SELECT payload_digest FROM requests WHERE id = ?", name)
        return None if not rows else str(rows[0]["payload_digest"])

    def tags(self) -> dict[str, int]:
        """Names that were given to versions, with their sequence numbers."""
        return {row["name"]: row["sequence"] for row in self._rows("SELECT name, sequence FROM tags ORDER BY name")}

    def marks(self) -> list[MarkRow]:
        """Versions of which something was dropped, oldest first."""
        return [
            MarkRow(row["sequence"], row["state"], row["reason"], time_of(row["at"]))
            for row in self._rows("SELECT * FROM marks ORDER BY sequence")
        ]

    # ---------------------------------------------------------------- covariances, refreshes, the rest

    def covariances(self) -> list[CovarianceRow]:
        """Every estimate that was recorded, oldest first."""
        return [
            CovarianceRow(
                digest=row["digest"],
                source=json.loads(row["source"]),
                tokens=row["tokens"],
                layers=tuple(json.loads(row["layers"])),
                from_version=row["from_version"],
                path=row["path"],
                at=time_of(row["at"]),
            )
            for row in self._rows("SELECT * FROM covariances ORDER BY at, digest")
        ]

    def swaps(self) -> list[SwapRow]:
        """Which covariance was in force from when on, oldest first."""
        rows = self._rows("SELECT * FROM swaps ORDER BY after_sequence")
        return [SwapRow(row["after_sequence"], row["covariance"], row["edits"], time_of(row["at"])) for row in rows]

    def covariance_for(self, sequence: int) -> str | None:
        """Digest of the covariance in force for a batch; None before the first swap."""
        before = [swap for swap in self.swaps() if swap.after_sequence < sequence]
        return before[-1].covariance if before else None

    def refreshes(self) -> list[RefreshRow]:
        """Every refresh and where it stands, oldest first."""
        return [
            RefreshRow(
                triggered_at=row["triggered_at"],
                from_version=row["from_version"],
                state=row["state"],
                reason=row["reason"],
                covariance=row["covariance"],
                seconds=row["seconds"],
                at=time_of(row["at"]),
            )
            for row in self._rows("SELECT * FROM refreshes ORDER BY triggered_at")
        ]

    def evaluations(self, kind: str | None = None) -> list[EvaluationRow]:
        """Evaluations, or those of one kind, oldest first."""
        given = () if kind is None else (kind,)
        return self._evaluations(f"{'' if kind is None else 'WHERE kind = ?'} ORDER BY number", *given)

    def evaluation_page(self, limit: int, *, before: int | None = None, kind: str | None = None) -> list[EvaluationRow]:
        """The newest evaluations, newest first; those before number ``before``, those of one kind."""
        where = "WHERE (? IS NULL OR number < ?) AND (? IS NULL OR kind = ?) ORDER BY number DESC LIMIT ?"
        return self._evaluations(where, before, before, kind, kind, limit)

    def newest_evaluations(self) -> list[EvaluationRow]:
        """The newest evaluation of every kind."""
        return self._evaluations("WHERE number IN (SELECT MAX(number) FROM evaluations GROUP BY kind) ORDER BY number")

    def _evaluations(self, where: str, *values: object) -> list[EvaluationRow]:
        return [
            EvaluationRow(
                number=row["number"],
                version=row["version"],
                edits=row["edits"],
                kind=row["kind"],
                metrics=json.loads(row["metrics"]),
                at=time_of(row["at"]),
            )
            for row in self._rows(f"SELECT * FROM evaluations {where}", *values)
        ]

    def event_page(
        self, limit: int, *, before: int | None = None, kind: str | None = None, since: str | None = None
    ) -> list[EventRow]:
        """The newest events, newest first; those before a number, those of one kind, those not before a time (ISO)."""
        where = [("number < ?", before), ("kind = ?", kind), ("at >= ?", since)]
        given = [(text, value) for text, value in where if value is not None]
        text = " AND ".join(text for text, _ in given) or "1"
        return [
            EventRow(row["number"], row["kind"], json.loads(row["data"]), time_of(row["at"]))
            for row in self._rows(
                f"SELECT * FROM events WHERE {text} AND data NOT LIKE ? ORDER BY number DESC LIMIT ?",
                *(value for _, value in given),
                f"{_REDACTED}%",
                limit,
            )
        ]

    def events(self, kind: str | None = None) -> list[EventRow]:
        """Events, or those of one kind, oldest first."""
        return [
            EventRow(row["number"], row["kind"], json.loads(row["data"]), time_of(row["at"]))
            for row in self._of("events", "kind", kind)
            if not row["data"].startswith(_REDACTED)
        ]

    # ---------------------------------------------------------------- inside

    def _of(self, table: str, column: str, value: object) -> list[sqlite3.Row]:
        """Rows of a table by number: those with a value, found by its index, or all where it is None."""
        if value is None:
            return self._rows(f"SELECT * FROM {table} ORDER BY number")
        return self._rows(f"SELECT * FROM {table} WHERE {column} = ? ORDER BY number", value)

    def _requests(
        self, where: str, values: tuple[object, ...], limit: int | None = None, *, newest_first: bool = False
    ) -> list[RequestRow]:
        query = f"SELECT * FROM requests {where} ORDER BY seq {'DESC' if newest_first else 'ASC'} LIMIT ?"
        return [
            RequestRow(
                seq=row["seq"],
                id=row["id"],
                state=row["state"],
                payload=json.loads(row["payload"]),
                fact_key=row["fact_key"],
                accepted_at=time_of(row["accepted_at"]),
                reason=row["reason"],
                applied_in=row["applied_in"],
                ended_in=row["ended_in"],
                superseded_by=row["superseded_by"],
                result=None if row["result"] is None else json.loads(row["result"]),
                outcome=row["outcome"],
                figures=None if row["figures"] is None else json.loads(row["figures"]),
                event_at=None if row["event_at"] is None else time_of(row["event_at"]),
                erased_at=None if row["erased_at"] is None else time_of(row["erased_at"]),
            )
            for row in self._rows(query, *values, -1 if limit is None else limit)
        ]


def _attempt(row: sqlite3.Row) -> AttemptRow:
    return AttemptRow(
        number=row["number"],
        sequence=row["sequence"],
        request_ids=tuple(json.loads(row["request_ids"])),
        started_at=time_of(row["started_at"]),
        ended_at=None if row["ended_at"] is None else time_of(row["ended_at"]),
        outcome=row["outcome"],
        reason=row["reason"],
    )
