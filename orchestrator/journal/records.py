"""What a journal takes down beside requests and versions: covariances, refreshes, figures, events, names and marks."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from errata.editing.errors import UserError
from errata.editing.request import Retraction
from errata.orchestrator.journal.chain import append_link
from errata.orchestrator.journal.connection import JournalBusyError, WriterLock, is_locked
from errata.orchestrator.journal.derived import MARK_ROW, REFRESH_ROW, RETRACTION_ROW, TAG_ROW
from errata.orchestrator.journal.fail_points import reach
from errata.orchestrator.journal.reading import JournalReader
from errata.orchestrator.journal.rows import Accepted, AttemptOutcome, CovarianceRow, MarkState, RefreshState, dump_json

logger = logging.getLogger(__name__)


def now() -> datetime:
    """The present time in UTC."""
    return datetime.now(UTC)


def printable(text: str) -> str:
    """The text with lone surrogates replaced: SQLite stores UTF-8 only."""
    return text.encode("utf-8", "replace").decode()


class JournalRecords(JournalReader):
    """A journal that may be written to; each method that writes is one transaction."""

    def __init__(
        self, connection: sqlite3.Connection, lock: WriterLock | None, clock: Callable[[], datetime] = now
    ) -> None:
        super().__init__(connection)
        self._writer_lock = lock
        self._clock = clock
        self._insists: dict[int, Callable[[], bool]] = {}
        """By thread: whether it is to wait on where another process has the file locked."""

    def patience(self, seconds: float) -> None:
        """How long a write waits for another process that has the file locked."""
        with self._thread_lock:
            self._connection.execute(f"PRAGMA busy_timeout = {round(1000 * seconds)}")

    def insist(self, unless: Callable[[], bool]) -> None:
        """Have this thread's writes wait for such a process as long as it takes, and let other threads in meanwhile.

        For the thread that commits: what it has in hand is in the editor already.

        Args:
            unless: asked between two tries; where it says yes the write is given up.
        """
        self._insists[threading.get_ident()] = unless

    # ---------------------------------------------------------------- covariances and refreshes

    def record_covariance(self, row: CovarianceRow) -> None:
        """Keep where an estimate came from; its file is stored already. Again, it changes nothing."""
        values = (
            row.digest,
            dump_json(row.source),
            row.tokens,
            dump_json(row.layers),
            row.from_version,
            row.path,
            self._time(),
        )
        with self._transaction() as connection:
            cursor = connection.execute("INSERT OR IGNORE INTO covariances VALUES (?, ?, ?, ?, ?, ?, ?)", values)
            if cursor.rowcount:
                append_link(connection, "covariance", int(cursor.lastrowid or 0))

    def record_swap(self, after_sequence: int, covariance: str, edits: int) -> None:
        """From batch ``after_sequence + 1`` on, ``covariance`` is in force; after ``edits`` edits.

        Raises:
            ValueError: batches after it were already committed, or another swap was recorded there.
        """
        with self._transaction() as connection:
            known = {swap.after_sequence: swap.covariance for swap in self.swaps()}.get(after_sequence)
            if known == covariance:
                return
            if known is not None or after_sequence != self.head().sequence:
                raise ValueError(
                    f"a swap takes effect once, after the newest batch {self.head().sequence}; got {after_sequence}"
                )
            connection.execute(
                "INSERT INTO swaps VALUES (?, ?, ?, ?)", (after_sequence, covariance, edits, self._time())
            )
            append_link(connection, "swap", after_sequence)
            reach("swap_in_transaction")
        reach("after_swap")

    def record_refresh(
        self,
        triggered_at: int,
        state: RefreshState,
        *,
        from_version: str | None = None,
        reason: str | None = None,
        covariance: str | None = None,
        seconds: float | None = None,
    ) -> None:
        """Where the refresh triggered at that number of edits stands. What is left out keeps its value.

        Raises:
            ValueError: the first row of a refresh without ``from_version``.
        """
        with self._transaction() as connection:
            known = connection.execute("SELECT 1 FROM refreshes WHERE triggered_at = ?", (triggered_at,)).fetchone()
            if known is None and from_version is None:
                raise ValueError(f"the refresh triggered at {triggered_at} edits is new: name the version it reads")
            connection.execute(
                "INSERT INTO refreshes"
                " VALUES (:at_edits, COALESCE(:version, ''), :state, :reason, :cov, :seconds, :at)"
                " ON CONFLICT (triggered_at) DO UPDATE SET state = :state, at = :at,"
                " from_version = COALESCE(:version, from_version), reason = COALESCE(:reason, reason),"
                " covariance = COALESCE(:cov, covariance), seconds = COALESCE(:seconds, seconds)",
                {
                    "at_edits": triggered_at,
                    "version": from_version,
                    "state": state,
                    "reason": reason,
                    "cov": covariance,
                    "seconds": seconds,
                    "at": self._time(),
                },
            )
            self._note(connection, "refresh", connection.execute(REFRESH_ROW, (triggered_at,)).fetchone())

    # ---------------------------------------------------------------- evaluations and events

    def record_evaluation(self, version: str, edits: int, kind: str, metrics: Mapping[str, Any]) -> int:
        """Keep the figures of one evaluation; returns its number."""
        with self._transaction() as connection:
            cursor = connection.execute(
                "INSERT INTO evaluations (version, edits, kind, metrics, at) VALUES (?, ?, ?, ?, ?)",
                (version, edits, kind, dump_json(metrics), self._time()),
            )
            number = int(cursor.lastrowid or 0)
            append_link(connection, "evaluation", number)
        return number

    def record_event(self, kind: str, data: Mapping[str, Any]) -> int:
        """Keep anything else worth knowing: a guard's action, a publication; returns its number."""
        with self._transaction() as connection:
            return self._add_event(connection, kind, data)

    def _add_event(self, connection: sqlite3.Connection, kind: str, data: Mapping[str, Any]) -> int:
        """Write an event and its link of the chain, within a transaction; returns its number."""
        cursor = connection.execute(
            "INSERT INTO events (kind, data, at) VALUES (?, ?, ?)", (kind, dump_json(data), self._time())
        )
        number = int(cursor.lastrowid or 0)
        append_link(connection, "event", number)
        return number

    # ---------------------------------------------------------------- attempts, tags, marks

    def begin_attempt(self, sequence: int, request_ids: Sequence[str]) -> int:
        """Say, before the editor is given a batch, which one it is; returns the attempt's number.

        An attempt that stays without an end is a process that died in it. Attempts decide nothing about what a
        version is, so they are in no digest.
        """
        with self._transaction() as connection:
            cursor = connection.execute(
                "INSERT INTO attempts (sequence, request_ids, started_at) VALUES (?, ?, ?)",
                (sequence, dump_json(list(request_ids)), self._time()),
            )
        return int(cursor.lastrowid or 0)

    def end_attempt(self, number: int, outcome: AttemptOutcome, reason: str | None = None) -> None:
        """Say how an attempt ended. Again, it changes nothing."""
        reason = None if reason is None else printable(reason)
        with self._transaction() as connection:
            connection.execute(
                "UPDATE attempts SET ended_at = ?, outcome = ?, reason = ? WHERE number = ? AND ended_at IS NULL",
                (self._time(), outcome, reason, number),
            )

    def tag(self, name: str, sequence: int) -> None:
        """Name a version; a name that is in use moves."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO tags VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET sequence = excluded.sequence,"
                " at = excluded.at",
                (name, sequence, self._time()),
            )
            self._note(connection, "tag", connection.execute(TAG_ROW, (name,)).fetchone())

    def mark(self, sequence: int, state: MarkState, reason: str) -> None:
        """Say that something of a version was dropped; ``unprovable`` is never taken back."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO marks VALUES (?, ?, ?, ?) ON CONFLICT (sequence) DO UPDATE SET state = excluded.state,"
                " reason = excluded.reason, at = excluded.at WHERE state <> 'unprovable'",
                (sequence, state, printable(reason), self._time()),
            )
            self._note(connection, "mark", connection.execute(MARK_ROW, (sequence,)).fetchone())

    # ---------------------------------------------------------------- retractions

    def retract(self, retraction: Retraction) -> Accepted:
        """Keep that a request is to be taken back, whether it is there yet or not. Again, it changes nothing."""
        with self._transaction() as connection:
            query = "SELECT number, retracts, event_at FROM retractions WHERE id = ?"
            known = connection.execute(query, (retraction.id,)).fetchone()
            at = None if retraction.event_at is None else retraction.event_at.isoformat()
            if known is not None:
                if (known["retracts"], known["event_at"]) == (retraction.retracts, at):
                    return Accepted(retraction.id, None, duplicate=True)
                return Accepted(
                    retraction.id, None, refused=f"id {retraction.id!r} has taken back something else before"
                )
            if connection.execute("SELECT 1 FROM requests WHERE id = ?", (retraction.id,)).fetchone():
                return Accepted(retraction.id, None, refused=f"id {retraction.id!r} was used before, for an edit")
            cursor = connection.execute(
                "INSERT INTO retractions (id, retracts, event_at, accepted_at, state) VALUES (?, ?, ?, ?, 'waiting')",
                (retraction.id, retraction.retracts, at, self._time()),
            )
            number = int(cursor.lastrowid or 0)
            self._note(connection, "retraction", connection.execute(RETRACTION_ROW, (number,)).fetchone())
        reach("after_retraction")
        return Accepted(retraction.id, None)

    def settle_retraction(self, number: int, sequence: int | None, reason: str) -> None:
        """Say what became of one. Again, it changes nothing."""
        with self._transaction() as connection:
            cursor = connection.execute(
                "UPDATE retractions SET state = 'done', sequence = ?, reason = ?"
                " WHERE number = ? AND state = 'waiting'",
                (sequence, printable(reason), number),
            )
            if cursor.rowcount:
                self._note(connection, "retraction", connection.execute(RETRACTION_ROW, (number,)).fetchone())

    # ---------------------------------------------------------------- inside

    def _note(self, connection: sqlite3.Connection, kind: str, row: sqlite3.Row) -> None:
        """Chain what a row that changes says now, as an event."""
        self._add_event(connection, kind, dict(row))

    def _time(self) -> str:
        return self._clock().isoformat()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        if self._writer_lock is None:
            raise UserError("this journal was opened for reading only")
        with self._begun():
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # a full disk rolls back by itself
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _begun(self) -> Iterator[None]:
        """Hold this process's lock, with the file's write lock taken.

        Raises:
            JournalBusyError: another process has it.
        """
        unless = self._insists.get(threading.get_ident())
        said = False
        while True:
            with self._thread_lock:
                try:
                    self._connection.execute("BEGIN IMMEDIATE")
                except sqlite3.OperationalError as error:
                    if not is_locked(error):
                        raise
                    if unless is None or unless():
                        raise JournalBusyError("another process has the journal locked") from error
                else:
                    yield
                    return
            if not said:
                logger.warning("another process has the journal locked; writing waits for it")
                said = True
            time.sleep(0.05)  # the lock of this process is free meanwhile
