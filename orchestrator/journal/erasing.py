"""What takes content out of a journal: ranges of versions that are only names any more, and requests that are erased.

An erased request's row stays as ``erased:<number>``, without content and without the salt that its chained digests were
made with: they can be neither computed nor guessed any more. What else named it (batches, attempts, events) is
rewritten. SQLite overwrites what it deletes (``secure_delete``); `JournalErasing.shred` makes the file anew, so that
free pages and the write-ahead log hold nothing of it either.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

from errata.orchestrator.journal.fail_points import reach
from errata.orchestrator.journal.records import JournalRecords, printable
from errata.orchestrator.journal.rows import MarkState, dump_json

ERASED: Final = "erased:"
"""Prefix of the ids of erased requests."""
REDACTED: Final = "redacted"
"""The one key of an event's data that an erasure has emptied, with the number of the erasure's event."""


_KEPT: Final = "('erase', 'floor')"
"""Events that hold numbers only."""


def erased_id(seq: int) -> str:
    """What an erased request is called."""
    return f"{ERASED}{seq}"


class JournalErasing(JournalRecords):
    """A journal that content may be taken out of; each method that writes is one transaction."""

    def open_gap(self, kind: str, data: dict[str, Any], marked: Iterable[int], state: MarkState, reason: str) -> int:
        """Write an event, and mark versions that cannot be rebuilt from here on; returns the event's number.

        A version that is ``unprovable`` stays so.
        """
        with self._transaction() as connection:
            number = self._add_event(connection, kind, data)
            now, why = self._time(), printable(reason)
            connection.executemany(
                "INSERT INTO marks VALUES (?, ?, ?, ?) ON CONFLICT (sequence) DO UPDATE SET state = excluded.state,"
                " reason = excluded.reason, at = excluded.at WHERE state <> 'unprovable'",
                ((sequence, state, why, now) for sequence in marked),
            )
            reach("gap_in_transaction")
        reach("after_gap")
        return number

    def erase_rows(self, numbers: Collection[int], number: int, needles: Sequence[str], reason: str) -> None:
        """Take the content of requests out of every table. Again, it changes nothing.

        Args:
            numbers: the requests, by order of acceptance; none of them is applied or waits.
            number: of the event that began the erasure.
            needles: texts of which nothing may stay; events that hold one are emptied.

        Raises:
            ValueError: a request still waits, or is in the weights.
        """
        with self._thread_lock:
            self._connection.execute("PRAGMA secure_delete = ON")
        with self._transaction() as connection:
            connection.execute("PRAGMA defer_foreign_keys = ON")
            renamed: dict[str, str] = {}
            for seq in sorted(numbers):
                row = connection.execute("SELECT id, state, erased_at FROM requests WHERE seq = ?", (seq,)).fetchone()
                if row is None or row["erased_at"] is not None:
                    continue
                if row["state"] in ("accepted", "applied"):
                    raise ValueError(f"request {seq} is {row['state']}: it cannot be erased before it is reverted")
                renamed[row["id"]] = erased_id(seq)
                self._erase_row(connection, seq, row["id"], reason)
            for name, new in renamed.items():
                connection.execute(
                    "UPDATE retractions SET id = ? || '-' || number, retracts = ?, reason = NULL WHERE retracts = ?",
                    (new, new, name),
                )
            self._rename(connection, "batches", "sequence", renamed)
            self._rename(connection, "attempts", "number", renamed)
            for event in connection.execute(f"SELECT number, data FROM events WHERE kind NOT IN {_KEPT}").fetchall():
                text = event["data"]
                if any(needle in text or _quoted(needle) in text for needle in needles) or any(
                    f'"{_quoted(name)}"' in text for name in renamed
                ):
                    connection.execute(
                        "UPDATE events SET data = ? WHERE number = ?", (dump_json({REDACTED: number}), event["number"])
                    )
            reach("erase_in_transaction")
        reach("after_erase_rows")

    def _erase_row(self, connection: sqlite3.Connection, seq: int, name: str, reason: str) -> None:
        now, new = self._time(), erased_id(seq)
        link = connection.execute("SELECT content FROM chain WHERE kind = 'acceptance' AND ref = ?", (seq,)).fetchone()
        connection.execute(
            "INSERT OR REPLACE INTO tombstones VALUES (?, NULL, ?, ?, ?)",
            (seq, b"" if link is None else link["content"], printable(reason), now),
        )
        connection.execute("UPDATE requests SET superseded_by = NULL WHERE superseded_by = ?", (name,))
        connection.execute(
            "UPDATE requests SET id = ?, payload = '{}', payload_digest = '', fact_key = NULL, salt = NULL,"
            " reason = NULL, result = NULL, figures = NULL, outcome = NULL, event_at = NULL, superseded_by = NULL,"
            " erased_at = ?, state = CASE state WHEN 'superseded' THEN 'reverted' ELSE state END WHERE seq = ?",
            (new, now, seq),
        )
        connection.execute("UPDATE fates SET reason = NULL, settled = NULL WHERE seq = ?", (seq,))

    @staticmethod
    def _rename(connection: sqlite3.Connection, table: str, key: str, renamed: dict[str, str]) -> None:
        for row in connection.execute(f"SELECT {key} AS key, request_ids FROM {table}").fetchall():
            names = json.loads(row["request_ids"])
            if renamed.keys() & names:
                changed = dump_json([renamed.get(name, name) for name in names])
                connection.execute(f"UPDATE {table} SET request_ids = ? WHERE {key} = ?", (changed, row["key"]))
        if table == "attempts":  # why one ended may quote what was in hand
            connection.executemany(
                "UPDATE attempts SET reason = NULL WHERE request_ids LIKE ? ESCAPE '!'",
                ((f'%"{name}"%',) for name in renamed.values()),
            )

    def shred(self) -> None:
        """Make the file anew without its free pages, and empty the write-ahead log."""
        with self._thread_lock:
            self._connection.execute("PRAGMA secure_delete = ON")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._connection.execute("VACUUM")
            reach("after_vacuum")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _quoted(text: str) -> str:
    """As it stands within a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
