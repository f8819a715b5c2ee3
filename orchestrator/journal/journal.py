"""The journal: every request and its fate, every version, in one SQLite file; a run's single source of truth.

Whatever a method of :class:`Journal` has returned from is on the disk (write-ahead log, full
synchronization). Each method that writes is one transaction: it happened entirely or not at all. There is one
writer; readers may come and go.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from errata.editing.digest import digest_json
from errata.editing.errors import UserError
from errata.editing.request import EditRequest
from errata.orchestrator.journal.chain import append_link, new_salt
from errata.orchestrator.journal.connection import WriterLock, connect_reader, connect_writer
from errata.orchestrator.journal.derived import SETTLED
from errata.orchestrator.journal.erasing import JournalErasing
from errata.orchestrator.journal.fail_points import reach
from errata.orchestrator.journal.records import now, printable
from errata.orchestrator.journal.rows import (
    Accepted,
    CommitData,
    CovarianceRow,
    JournalMeta,
    RequestOutcome,
    RequestRow,
    RequestState,
    Version,
    VersionHash,
    VersionParts,
    dump_json,
    payload_digest,
    payload_of,
    version_digest,
)
from errata.orchestrator.journal.schema import migrate

__all__ = [
    "Accepted",
    "CommitData",
    "CovarianceRow",
    "Journal",
    "JournalMeta",
    "RequestOutcome",
    "RequestRow",
    "Version",
    "version_digest",
]

JOURNAL_FILE: Final = "journal.sqlite"
"""Its name in the directory of a run."""
_UNREADABLE = "record:"
"""Prefix of the ids of records that are no valid request: they cannot collide with a client's ids."""


class Journal(JournalErasing):
    """One run's journal, from :meth:`create` or :meth:`open`. Close it, or use it in a ``with`` block.

    Safe to use from several threads of the one writing process.
    """

    def __init__(
        self, connection: sqlite3.Connection, lock: WriterLock | None, clock: Callable[[], datetime] = now
    ) -> None:
        super().__init__(connection, lock, clock)
        self._hash: VersionHash | None = None
        """Of the newest version; made when the first commit needs it."""

    # ---------------------------------------------------------------- opening and closing

    @classmethod
    def create(cls, path: Path, meta: JournalMeta, *, clock: Callable[[], datetime] = now) -> Self:
        """Make a new journal and open it for writing.

        Raises:
            UserError: the file holds a journal already, or another process is writing it.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = WriterLock(path)
        connection: sqlite3.Connection | None = None
        try:
            connection = connect_writer(path)
            # a crash between the tables and this row leaves a file without meta: nothing happened in it, so
            # go on
            migrate(connection)
            if connection.execute("SELECT 1 FROM meta").fetchone():
                raise UserError(f"{path} already holds the journal of a run")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(
                "INSERT INTO meta VALUES (1, ?, ?, ?, ?, ?, ?)",
                (
                    meta.run_id,
                    meta.base_digest,
                    meta.editor_digest,
                    dump_json(meta.config),
                    meta.errata_version,
                    (meta.created_at or clock()).isoformat(),
                ),
            )
            append_link(connection, "begin", 1)
            connection.execute("COMMIT")
            return cls(connection, lock, clock)
        except BaseException:
            if connection is not None:
                connection.close()
            lock.release()
            raise

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False, clock: Callable[[], datetime] = now) -> Self:
        """Open an existing journal; for writing it is migrated to this release's schema first.

        A reader never changes the file: an older journal is migrated in memory, and is then a snapshot.

        Raises:
            UserError: no journal is there, a newer release wrote it, or (for writing) another process is
            writing it.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path}: there is no journal")
        lock = None if read_only else WriterLock(path)
        try:
            connection = connect_reader(path) if read_only else connect_writer(path)
            migrate(connection)
            return cls(connection, lock, clock)
        except sqlite3.DatabaseError as error:
            if lock:
                lock.release()
            raise UserError(f"{path} is not a journal: {error}") from error
        except BaseException:
            if lock:
                lock.release()
            raise

    @staticmethod
    def exists(path: Path) -> bool:
        """Whether a run's journal is there; a file without its first row is the trace of a crash."""
        if not Path(path).is_file():
            return False
        try:
            with Journal.open(path, read_only=True):
                return True
        except UserError:
            return False

    def close(self) -> None:
        with self._thread_lock:
            self._connection.close()
            if self._writer_lock:
                self._writer_lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # ---------------------------------------------------------------- requests

    def accept(self, requests: Sequence[EditRequest]) -> list[Accepted]:
        """Take requests in, in their order, in one transaction. Submitting a request again changes nothing.

        A request whose id is known with another content (provenance aside) is refused; the others go in.
        """
        with self._transaction() as connection:
            answers = [self._accept_one(connection, request) for request in requests]
            reach("accept_in_transaction")
        reach("after_accept")
        return answers

    def _accept_one(self, connection: sqlite3.Connection, request: EditRequest) -> Accepted:
        payload, digest = payload_of(request), payload_digest(request)
        known = connection.execute("SELECT seq, payload_digest FROM requests WHERE id = ?", (request.id,)).fetchone()
        if known is not None:
            if known["payload_digest"] == digest:
                return Accepted(request.id, known["seq"], duplicate=True)
            return Accepted(
                request.id,
                None,
                refused=f"id {request.id!r} was used before, for a request with another content",
            )
        fact_key = self._fact_key(connection, request)
        seq = self._insert_request(
            connection, request.id, fact_key, dump_json(payload), digest, "accepted", event_at=request.event_at
        )
        return Accepted(request.id, seq)

    @staticmethod
    def _fact_key(connection: sqlite3.Connection, request: EditRequest) -> str:
        """The name of the request's fact, or the one that an earlier release gave the same fact and that is in use."""
        rows = connection.execute(
            "SELECT payload FROM requests WHERE fact_key = ? AND state IN ('accepted', 'applied')",
            (request.former_fact_key,),
        ).fetchall()
        # the former names are shared by facts that are told apart now
        same = any(EditRequest.model_validate_json(row["payload"]).fact_key == request.fact_key for row in rows)
        return request.former_fact_key if same else request.fact_key

    def reject(self, record: str, reason: str, payload: Mapping[str, Any] | None = None) -> Accepted:
        """Keep a record that is no valid request, once, under a name such as ``file:line``."""
        name, reason = _UNREADABLE + printable(record), printable(reason)
        text = json.dumps(payload or {}, default=str)
        with self._transaction() as connection:
            known = connection.execute("SELECT seq, reason FROM requests WHERE id = ?", (name,)).fetchone()
            if known is not None:
                return Accepted(name, known["seq"], duplicate=True, refused=known["reason"])
            digest = digest_json({"record": name, "reason": reason})
            seq = self._insert_request(connection, name, None, text, digest, "rejected", reason)
        return Accepted(name, seq, refused=reason)

    def withdraw(self, name: str, reason: str) -> None:
        """Take a request back that still waits: it becomes reverted without ever having been written.

        Only between batches: one that was planned with it could not be committed.

        Raises:
            ValueError: the request is not there, or does not wait any more.
        """
        with self._transaction() as connection:
            self._move(connection, name, ("accepted",), "reverted", None, "ended_in = NULL", reason=reason)

    def come_late(self, name: str, newer: str) -> None:
        """A request that still waits gives way to one of the same fact that holds and became true later.

        Raises:
            ValueError: it is not there, or does not wait any more.
        """
        with self._transaction() as connection:
            change, reason = "ended_in = NULL, superseded_by = ?", "late: a newer value holds"
            self._move(connection, name, ("accepted",), "superseded", None, change, newer, reason=reason)

    def set_aside(self, name: str, reason: str) -> None:
        """Reject a request that still waits, outside any batch: the editor cannot survive it.

        Raises:
            ValueError: the request is not there, or does not wait any more.
        """
        with self._transaction() as connection:
            self._move(connection, name, ("accepted",), "rejected", None, "ended_in = NULL", reason=reason)

    def _insert_request(
        self,
        connection: sqlite3.Connection,
        name: str,
        fact_key: str | None,
        payload: str,
        digest: str,
        state: RequestState,
        reason: str | None = None,
        event_at: datetime | None = None,
    ) -> int:
        now = self._time()
        seq = connection.execute(
            "INSERT INTO requests (id, fact_key, payload, payload_digest, accepted_at, state, reason, salt, event_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING seq",
            (
                name,
                fact_key,
                payload,
                digest,
                now,
                state,
                reason,
                new_salt(),
                None if event_at is None else event_at.astimezone(UTC).isoformat(),
            ),
        ).fetchone()["seq"]
        append_link(connection, "acceptance", seq)
        self._insert_fate(connection, seq, state, None, reason, now)
        return int(seq)

    def _insert_fate(
        self,
        connection: sqlite3.Connection,
        seq: int,
        state: RequestState,
        sequence: int | None,
        reason: str | None,
        at: str,
    ) -> None:
        cursor = connection.execute(
            "INSERT INTO fates (seq, state, sequence, reason, at, settled) SELECT ?, ?, ?, ?, ?, "
            + SETTLED
            + " FROM requests WHERE seq = ?",
            (seq, state, sequence, reason, at, seq),
        )
        append_link(connection, "fate", int(cursor.lastrowid or 0))

    # ---------------------------------------------------------------- versions

    def commit(self, data: CommitData) -> Version:
        """Make a version exist and settle the fate of its batch's requests, in one transaction.

        Applied requests supersede older applied ones of the same fact. An older request of the batch that
        gave way to a newer one becomes superseded only if the newer one was applied; otherwise it waits for
        the next batch.

        Raises:
            ValueError: a sequence number out of order, or a request that is not there to be settled.
        """
        with self._transaction() as connection:
            head = self.head()
            if data.sequence == head.sequence and data.delta == head.delta and data.parts == head.parts:
                return head  # the same commit again
            if data.sequence != head.sequence + 1:
                raise ValueError(f"the next commit has sequence {head.sequence + 1}, got {data.sequence}")
            hash_ = self._head_hash().then(data.delta, data.parts)
            applied = {outcome.id for outcome in data.outcomes if outcome.applied}
            self._insert_commit(connection, data, head, hash_.digest, head.edits + len(applied))
            for outcome in data.outcomes:
                self._settle_outcome(connection, data.sequence, outcome)
            for older, newer in data.superseded:
                if newer in applied:
                    self._supersede(connection, data.sequence, older, newer, "accepted")
            for name in data.reverts:
                change = "ended_in = ?"
                self._move(
                    connection, name, ("applied",), "reverted", data.sequence, change, data.sequence, reason=data.reason
                )
            for name in data.restores:
                change = "ended_in = NULL, superseded_by = NULL, applied_in = COALESCE(applied_in, ?)"
                self._move(connection, name, ("superseded",), "applied", data.sequence, change, data.sequence)
            for outcome in data.remeasured:
                values = (outcome.outcome, _figures(outcome))
                self._move(
                    connection,
                    outcome.id,
                    ("applied",),
                    "applied",
                    data.sequence,
                    "outcome = ?, figures = ?",
                    *values,
                    reason=outcome.reason,
                )
            connection.execute(
                "UPDATE commits SET holds = COALESCE((SELECT value FROM counters WHERE name = 'state.applied'), 0)"
                " WHERE sequence = ?",
                (data.sequence,),
            )
            rows = [(batch, data.sequence) for batch in data.recomputed]
            connection.executemany("INSERT INTO recomputed VALUES (?, ?)", rows)
            append_link(connection, "commit", data.sequence)
            reach("commit_in_transaction")
        self._hash = hash_
        reach("after_commit")
        return self.head()

    def _head_hash(self) -> VersionHash:
        if self._hash is None:
            running = VersionHash(self.meta.base_digest)
            for row in self._rows("SELECT delta, parts FROM commits ORDER BY sequence"):
                parts = None if row["parts"] == "{}" else VersionParts.load(json.loads(row["parts"]))
                running.add(row["delta"], parts)
            self._hash = running
        return self._hash

    def _insert_commit(
        self, connection: sqlite3.Connection, data: CommitData, head: Version, digest: str, edits: int
    ) -> None:
        now = self._time()
        names = [*(outcome.id for outcome in data.outcomes), *data.reverts, *data.restores]
        names += [outcome.id for outcome in data.remeasured]
        connection.execute("INSERT INTO batches VALUES (?, ?, ?, ?)", (data.sequence, data.kind, now, dump_json(names)))
        connection.execute(
            "INSERT INTO commits VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
            (
                data.sequence,
                digest,
                head.digest,
                data.delta,
                data.keys,
                data.contexts,
                data.covariance,
                edits,
                dump_json(data.norms),
                dump_json(data.delta_norms),
                data.seconds,
                now,
                data.sweeps,
                dump_json(data.parts.dump()),
                None if data.figures is None else dump_json(data.figures),
            ),
        )

    def _settle_outcome(self, connection: sqlite3.Connection, sequence: int, outcome: RequestOutcome) -> None:
        if outcome.applied:
            change = "applied_in = ?, result = ?, outcome = ?, figures = ?"
            values = (sequence, dump_json(outcome.result), outcome.outcome, _figures(outcome))
            self._move(connection, outcome.id, ("accepted",), "applied", sequence, change, *values)
            older = connection.execute(
                "SELECT o.id FROM requests o JOIN requests n ON o.fact_key = n.fact_key AND o.id <> n.id"
                " WHERE n.id = ? AND o.state = 'applied'",
                (outcome.id,),
            ).fetchall()
            for row in older:
                self._supersede(connection, sequence, row["id"], outcome.id, "applied")
        else:
            change = "ended_in = ?, result = ?, figures = ?"
            refused = (sequence, dump_json(outcome.result), _figures(outcome))
            self._move(
                connection,
                outcome.id,
                ("accepted",),
                "rejected",
                sequence,
                change,
                *refused,
                reason=outcome.reason,
            )

    def _supersede(
        self, connection: sqlite3.Connection, sequence: int, older: str, newer: str, state: RequestState
    ) -> None:
        change = "ended_in = ?, superseded_by = ?"
        self._move(connection, older, (state,), "superseded", sequence, change, sequence, newer)

    def _move(
        self,
        connection: sqlite3.Connection,
        name: str,
        allowed: tuple[RequestState, ...],
        state: RequestState,
        sequence: int | None,
        change: str,
        *values: int | str | None,
        reason: str | None = None,
    ) -> None:
        row = connection.execute("SELECT seq, state FROM requests WHERE id = ?", (name,)).fetchone()
        if row is None or row["state"] not in allowed:
            state_now = "unknown" if row is None else row["state"]
            raise ValueError(f"request {name!r} cannot become {state}: it is {state_now}, not {' or '.join(allowed)}")
        reason = None if reason is None else printable(reason)
        connection.execute(
            f"UPDATE requests SET state = ?, reason = ?, {change} WHERE seq = ?",
            (state, reason, *values, row["seq"]),
        )
        self._insert_fate(connection, row["seq"], state, sequence, reason, self._time())


def _figures(outcome: RequestOutcome) -> str | None:
    return None if outcome.figures is None else dump_json(outcome.figures)
