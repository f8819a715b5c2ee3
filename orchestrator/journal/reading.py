"""Reading a journal: its rows as values, without ever changing the file."""

from __future__ import annotations

import json
import sqlite3
import threading
from datetime import datetime
from typing import Any

from errata.editing.errors import UserError
from errata.orchestrator.journal.rows import (
    STATES,
    AttemptRow,
    Counts,
    CovarianceRow,
    EvaluationRow,
    EventRow,
    Fate,
    JournalMeta,
    MarkRow,
    RefreshRow,
    RequestRow,
    RequestState,
    SwapRow,
    Version,
    VersionParts,
    version_digest,
)


class JournalReader:
    """The queries of a journal. Safe to use from several threads.

    Raises:
        UserError: the file has the tables but no run was begun in it.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._thread_lock = threading.RLock()
        self.meta = _read_meta(connection)

    # ---------------------------------------------------------------- requests

    def pending(self, limit: int | None = None) -> list[RequestRow]:
        """Requests that wait to be applied, in the order of acceptance."""
        return self._requests("WHERE state = 'accepted'", (), limit)

    def waiting(self) -> int:
        """How many requests wait to be applied; cheap however long the journal is."""
        return self.counters().get("state.accepted", 0)

    def requests(self, state: RequestState | None = None) -> list[RequestRow]:
        """All requests, or those in one state, in the order of acceptance."""
        return self._requests("WHERE state = ?", (state,)) if state else self._requests("", ())

    def request_page(
        self, limit: int, *, before: int | None = None, state: RequestState | None = None
    ) -> list[RequestRow]:
        """The newest requests, newest first; those accepted before number ``before``, those in one state."""
        where = "WHERE (? IS NULL OR seq < ?) AND (? IS NULL OR state = ?)"
        return self._requests(where, (before, before, state, state), limit, newest_first=True)

    def request(self, name: str) -> RequestRow | None:
        """One request by its id."""
        return next(iter(self._requests("WHERE id = ?", (name,))), None)

    def fates(self, name: str) -> list[Fate]:
        """Everything that happened to one request, oldest first."""
        rows = self._rows(
            "SELECT f.* FROM fates f JOIN requests r ON r.seq = f.seq WHERE r.id = ? ORDER BY f.number", name
        )
        return [Fate(row["state"], row["sequence"], row["reason"], _time(row["at"])) for row in rows]

    def counts(self) -> Counts:
        """How much of everything there is."""
        kept = self.counters()
        by_state = {state: kept.get(f"state.{state}", 0) for state in STATES}
        sizes = {
            table: int(self._rows(f"SELECT COUNT(*) FROM {table}")[0][0])
            for table in ("batches", "swaps", "refreshes", "evaluations")
        }
        outcomes = {name: kept.get(f"outcome.{name}", 0) for name in ("landed", "weak")}
        return Counts(**by_state, **sizes, **outcomes)

    def counters(self) -> dict[str, int]:
        """Counts that are kept in the transactions that change them: ``state.<state>`` and ``outcome.<outcome>``."""
        return {row["name"]: row["value"] for row in self._rows("SELECT name, value FROM counters")}

    def attempts(self, sequence: int | None = None) -> list[AttemptRow]:
        """Times that the editor was given a batch, oldest first; those of one sequence number, or all."""
        return [
            AttemptRow(
                number=row["number"],
                sequence=row["sequence"],
                request_ids=tuple(json.loads(row["request_ids"])),
                started_at=_time(row["started_at"]),
                ended_at=None if row["ended_at"] is None else _time(row["ended_at"]),
                outcome=row["outcome"],
                reason=row["reason"],
            )
            for row in self._rows(
                "SELECT * FROM attempts WHERE ? IS NULL OR sequence = ? ORDER BY number", sequence, sequence
            )
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
            MarkRow(row["sequence"], row["state"], row["reason"], _time(row["at"]))
            for row in self._rows("SELECT * FROM marks ORDER BY sequence")
        ]

    # ---------------------------------------------------------------- versions

    def base(self) -> Version:
        """``v0``, the unedited model."""
        digest = version_digest(self.meta.base_digest)
        return Version(0, digest, None, 0, kind="base", at=self.meta.created_at)

    def head(self) -> Version:
        """The newest version; before the first commit, the base with sequence 0."""
        newest = self._commits("WHERE c.sequence = (SELECT MAX(sequence) FROM commits)")
        return newest[0] if newest else self.base()

    def next_sequence(self) -> int:
        """Number of the next batch: 1 for the first, without gaps."""
        return self.head().sequence + 1

    def versions(self) -> list[Version]:
        """The base and every commit, in order."""
        return [self.base(), *self._commits("")]

    def version_page(self, limit: int, *, before: int | None = None) -> list[Version]:
        """The newest commits, newest first; those before sequence number ``before``. The base is not among them."""
        bound = "" if before is None else f"AND c.sequence < {int(before)}"
        newest = f"SELECT c.sequence FROM commits c WHERE 1 {bound} ORDER BY c.sequence DESC LIMIT {int(limit)}"
        return self._commits(f"WHERE c.sequence IN ({newest})")[::-1]

    def find_version(self, name: str) -> Version:
        """The version called ``head``, ``v<sequence>`` or by a prefix (four digits or more) of its digest.

        Raises:
            UserError: there is none of that name, or several.
        """
        versions = self.versions()
        if name == "head":
            return versions[-1]
        if name[:1] == "v" and name[1:].isdecimal():
            if int(name[1:]) < len(versions):
                return versions[int(name[1:])]
            raise UserError(f"there is no version {name}; the newest is v{versions[-1].sequence}")
        # a batch that applied nothing keeps its parent's digest: the first of the equals is meant
        matches = {version.digest: version for version in reversed(versions) if version.digest.startswith(name)}
        if len(name) < 4 or not matches:
            raise UserError(f"there is no version {name!r}: give head, v<number> or four or more digits of a digest")
        if len(matches) > 1:
            raise UserError(f"{len(matches)} versions start with {name!r}: give more digits")
        return next(iter(matches.values()))

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
                at=_time(row["at"]),
            )
            for row in self._rows("SELECT * FROM covariances ORDER BY at, digest")
        ]

    def swaps(self) -> list[SwapRow]:
        """Which covariance was in force from when on, oldest first."""
        rows = self._rows("SELECT * FROM swaps ORDER BY after_sequence")
        return [SwapRow(row["after_sequence"], row["covariance"], row["edits"], _time(row["at"])) for row in rows]

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
                at=_time(row["at"]),
            )
            for row in self._rows("SELECT * FROM refreshes ORDER BY triggered_at")
        ]

    def evaluations(self, kind: str | None = None) -> list[EvaluationRow]:
        """Evaluations, or those of one kind, oldest first."""
        return self._evaluations("WHERE ? IS NULL OR kind = ? ORDER BY number", kind, kind)

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
                at=_time(row["at"]),
            )
            for row in self._rows(f"SELECT * FROM evaluations {where}", *values)
        ]

    def events(self, kind: str | None = None) -> list[EventRow]:
        """Events, or those of one kind, oldest first."""
        return [
            EventRow(row["number"], row["kind"], json.loads(row["data"]), _time(row["at"]))
            for row in self._rows("SELECT * FROM events WHERE ? IS NULL OR kind = ? ORDER BY number", kind, kind)
        ]

    # ---------------------------------------------------------------- inside

    def _rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        with self._thread_lock:
            return self._connection.execute(query, values).fetchall()

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
                accepted_at=_time(row["accepted_at"]),
                reason=row["reason"],
                applied_in=row["applied_in"],
                ended_in=row["ended_in"],
                superseded_by=row["superseded_by"],
                result=None if row["result"] is None else json.loads(row["result"]),
                outcome=row["outcome"],
                figures=None if row["figures"] is None else json.loads(row["figures"]),
                event_at=None if row["event_at"] is None else _time(row["event_at"]),
                erased_at=None if row["erased_at"] is None else _time(row["erased_at"]),
            )
            for row in self._rows(query, *values, -1 if limit is None else limit)
        ]

    def _commits(self, where: str) -> list[Version]:
        return [
            Version(
                sequence=row["sequence"],
                digest=row["version"],
                parent=row["parent"],
                edits=row["edits"],
                kind=row["kind"],
                delta=row["delta"],
                keys=row["keys"],
                contexts=row["contexts"],
                covariance=row["covariance"],
                norms=_by_layer(row["norms"]),
                delta_norms=_by_layer(row["delta_norms"]),
                seconds=row["seconds"],
                request_ids=tuple(json.loads(row["request_ids"])),
                at=_time(row["at"]),
                sweeps=row["sweeps"],
                parts=VersionParts.load(json.loads(row["parts"])),
                figures=None if row["figures"] is None else json.loads(row["figures"]),
            )
            for row in self._rows(
                "SELECT c.*, b.kind, b.request_ids FROM commits c JOIN batches b ON b.sequence = c.sequence"
                f" {where} ORDER BY c.sequence"
            )
        ]


def _read_meta(connection: sqlite3.Connection) -> JournalMeta:
    row = connection.execute("SELECT * FROM meta").fetchone()
    if row is None:
        raise UserError("the journal is empty: no run was begun in it")
    return JournalMeta(
        run_id=row["run_id"],
        base_digest=row["base_digest"],
        editor_digest=row["editor_digest"],
        config=json.loads(row["config"]),
        errata_version=row["errata_version"],
        created_at=_time(row["created_at"]),
    )


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _by_layer(text: str) -> dict[int, Any]:
    return {int(layer): value for layer, value in json.loads(text).items()}
