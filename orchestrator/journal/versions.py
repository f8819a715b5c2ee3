"""Reading a journal's versions: the base, every commit, and what commits did to those before them."""

from __future__ import annotations

import json
import sqlite3
import threading
from datetime import datetime
from typing import Any

from errata.editing.errors import UserError
from errata.orchestrator.journal.rows import JournalMeta, Version, VersionParts, version_digest

NEWEST = 2**62
"""More than any sequence number."""
AFTER = "\U0010ffff"
"""Behind any text that goes on."""


class VersionReader:
    """The queries of a journal that concern versions. Safe to use from several threads.

    Raises:
        UserError: the file has the tables but no run was begun in it.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._thread_lock = threading.RLock()
        self.meta = _read_meta(connection)

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

    def version(self, sequence: int) -> Version:
        """One version by its number; 0 is the base.

        Raises:
            UserError: there is none of that number.
        """
        if sequence == 0:
            return self.base()
        commits = self._commits("WHERE c.sequence = ?", sequence)
        if not commits:
            raise UserError(f"there is no version v{sequence}; the newest is v{self.head().sequence}")
        return commits[0]

    def versions_between(self, after: int, upto: int | None = None) -> list[Version]:
        """Commits ``after + 1`` to ``upto`` (the newest by default), in order."""
        return self._commits("WHERE c.sequence > ? AND c.sequence <= ?", after, upto if upto is not None else NEWEST)

    def reverts(self, after: int, before: int) -> list[int]:
        """Numbers of the commits between two, both left out, that took something out of the weights."""
        rows = self._rows(
            "SELECT sequence FROM batches WHERE kind IN ('revert', 'erase') AND sequence > ? AND sequence < ?"
            " ORDER BY sequence",
            after,
            before,
        )
        return [row["sequence"] for row in rows]

    def recomputed(self, batch: int, before: int | None = None) -> list[int]:
        """Numbers of the commits that computed a batch again, or may have done so, newest first.

        Args:
            before: of commits with a lower number only.
        """
        rows = self._rows(
            "SELECT sequence FROM recomputed WHERE batch IN (0, ?) AND sequence > ? AND sequence < ?"
            " ORDER BY sequence DESC",
            batch,
            batch,
            NEWEST if before is None else before,
        )
        return [row["sequence"] for row in rows]

    def recomputed_in(self, sequence: int) -> set[int]:
        """Batches that a commit is said to have computed again; 0 for whichever they were."""
        return {row["batch"] for row in self._rows("SELECT batch FROM recomputed WHERE sequence = ?", sequence)}

    def written_in(self, name: str, before: int) -> int | None:
        """Number of the commit that wrote a request last, of those before ``before``; None where none did."""
        rows = self._rows(
            "SELECT f.sequence FROM fates f JOIN requests r ON r.seq = f.seq WHERE r.id = ? AND f.state = 'applied'"
            " AND f.sequence < ? ORDER BY f.number DESC LIMIT 1",
            name,
            before,
        )
        return int(rows[0]["sequence"]) if rows else None

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
        if name == "head":
            return self.head()
        if name[:1] == "v" and name[1:].isdecimal():
            return self.version(int(name[1:]))
        matches = self.versions_starting(name) if len(name) >= 4 else []
        if not matches:
            raise UserError(f"there is no version {name!r}: give head, v<number> or four or more digits of a digest")
        if len(matches) > 1:
            raise UserError(f"{len(matches)} versions start with {name!r}: give more digits")
        return matches[0]

    def versions_starting(self, prefix: str, limit: int = 20) -> list[Version]:
        """Versions whose digest starts so, the first of those with the same digest: what applied nothing keeps the
        digest of its parent."""
        rows = self._rows(
            "SELECT MIN(sequence) AS sequence FROM commits WHERE version >= ? AND version < ? GROUP BY version LIMIT ?",
            prefix,
            prefix + AFTER,
            limit,
        )
        base = self.base()
        matches = [] if not base.digest.startswith(prefix) else [base]
        return matches + [version for row in rows if (version := self.version(row["sequence"])).digest != base.digest]

    def sequences_of(self, digest: str) -> list[int]:
        """Numbers of the commits of a version with this digest, in order; 0 stands for the base."""
        rows = self._rows("SELECT sequence FROM commits WHERE version = ? ORDER BY sequence", digest)
        return ([0] if digest == self.base().digest else []) + [row["sequence"] for row in rows]

    def first_reaching(self, edits: int) -> int | None:
        """Number of the first commit after which so many edits were applied; None if there are not so many yet."""
        if edits <= 0:
            return 0
        rows = self._rows("SELECT MIN(sequence) AS sequence FROM commits WHERE edits >= ?", edits)
        return None if rows[0]["sequence"] is None else int(rows[0]["sequence"])

    def _commits(self, where: str, *values: object) -> list[Version]:
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
                at=time_of(row["at"]),
                sweeps=row["sweeps"],
                parts=VersionParts.load(json.loads(row["parts"])),
                figures=None if row["figures"] is None else json.loads(row["figures"]),
            )
            for row in self._rows(
                "SELECT c.*, b.kind, b.request_ids FROM commits c JOIN batches b ON b.sequence = c.sequence"
                f" {where} ORDER BY c.sequence",
                *values,
            )
        ]

    def _rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        with self._thread_lock:
            return self._connection.execute(query, values).fetchall()


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
        created_at=time_of(row["created_at"]),
    )


def time_of(text: str) -> datetime:
    """A time as the journal writes it."""
    return datetime.fromisoformat(text)


def _by_layer(text: str) -> dict[int, Any]:
    return {int(layer): value for layer, value in json.loads(text).items()}
