"""Whether the rows that change follow from the rows that are only added: the second half of a journal's soundness.

`errata.orchestrator.journal.chain` holds what was only ever added. Whatever is changed in place (the state of a
request, a refresh, a tag, a mark, a counter) follows from it, and is computed again here.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from errata.orchestrator.journal.schema import HOLDS, migrate

SETTLED: Final = "json_array(result, outcome, figures)"
"""What a fate keeps of the request beside its state; of journals of before, nothing."""
REFRESH_ROW: Final = "SELECT * FROM refreshes WHERE triggered_at = ?"
TAG_ROW: Final = "SELECT * FROM tags WHERE name = ?"
RETRACTION_ROW: Final = "SELECT * FROM retractions WHERE number = ?"
MARK_ROW: Final = "SELECT * FROM marks WHERE sequence = ?"

_LAST: Final = "(SELECT MAX(g.number) FROM fates g WHERE g.seq = r.seq)"
_QUERIES: Final[tuple[tuple[str, str, str], ...]] = (
    (
        "request",
        "is {1}, its last fate says {2}",
        f"SELECT r.id, r.state, f.state FROM requests r LEFT JOIN fates f ON f.number = {_LAST}"
        " WHERE r.state IS NOT f.state AND r.erased_at IS NULL",
    ),
    (
        "request",
        "gives a reason that its last fate does not give",
        f"SELECT r.id FROM requests r JOIN fates f ON f.number = {_LAST}"
        " WHERE r.reason IS NOT f.reason AND r.erased_at IS NULL",
    ),
    (
        "request",
        "has other figures than its last fate",
        f"SELECT r.id FROM requests r JOIN fates f ON f.number = {_LAST}"
        f" WHERE f.settled IS NOT NULL AND f.settled IS NOT {SETTLED} AND r.erased_at IS NULL",
    ),
    (
        "request",
        "is said to be applied in v{1}, which did not write it",
        "SELECT r.id, r.applied_in FROM requests r WHERE r.applied_in IS NOT NULL AND NOT EXISTS (SELECT 1 FROM fates f"
        " JOIN commits c ON c.sequence = f.sequence"
        " WHERE f.seq = r.seq AND f.state = 'applied' AND f.sequence = r.applied_in)",
    ),
    (
        "request",
        "was applied and names no commit that wrote it",
        "SELECT r.id FROM requests r WHERE r.applied_in IS NULL AND EXISTS (SELECT 1 FROM fates f"
        " WHERE f.seq = r.seq AND f.state = 'applied')",
    ),
    (
        "request",
        "is said to have ended in v{1}, its last fate is of v{2}",
        f"SELECT r.id, r.ended_in, f.sequence FROM requests r JOIN fates f ON f.number = {_LAST}"
        " WHERE r.ended_in IS NOT CASE WHEN f.state IN ('rejected', 'superseded', 'reverted') THEN f.sequence END"
        " AND r.erased_at IS NULL",
    ),
    (
        "request",
        "is superseded by an edit of another fact, or by none",
        "SELECT r.id FROM requests r LEFT JOIN requests n ON n.id = r.superseded_by"
        " WHERE (r.state = 'superseded' AND n.id IS NULL)"
        " OR (r.superseded_by IS NOT NULL AND r.state <> 'superseded')"
        " OR (r.superseded_by IS NOT NULL AND n.fact_key IS NOT r.fact_key"
        " AND r.erased_at IS NULL AND n.erased_at IS NULL)",
    ),
    (
        "commit",
        "is a batch without a commit",
        "SELECT 'v' || sequence FROM batches WHERE sequence NOT IN (SELECT sequence FROM commits)",
    ),
    (
        "commit",
        "is a commit without a batch",
        "SELECT 'v' || sequence FROM commits WHERE sequence NOT IN (SELECT sequence FROM batches)",
    ),
    (
        "commit",
        "is said to hold so many facts: {1}; its requests' fates say {2}",
        "SELECT 'v' || c.sequence, c.holds, h.holds FROM commits c"
        f" JOIN ({HOLDS}) h ON h.sequence = c.sequence WHERE c.holds IS NOT h.holds",
    ),
    (
        "fate",
        "is of v{1}, which is no commit",
        "SELECT number, sequence FROM fates"
        " WHERE sequence IS NOT NULL AND sequence NOT IN (SELECT sequence FROM commits)",
    ),
    (
        "batch",
        "is said to be computed again by v{1}, which took nothing out of it",
        "SELECT batch, sequence FROM recomputed WHERE batch >= sequence OR batch < 0"
        " OR sequence NOT IN (SELECT sequence FROM batches WHERE kind IN ('revert', 'erase'))",
    ),
    (
        "counter",
        "is {1}, there are {2}",
        "SELECT k.name, COALESCE(c.value, 0), k.found FROM (SELECT 'state.' || state AS name, COUNT(*) AS found"
        " FROM requests GROUP BY state UNION ALL SELECT 'outcome.' || outcome, COUNT(*) FROM requests"
        " WHERE outcome IS NOT NULL GROUP BY outcome) k LEFT JOIN counters c ON c.name = k.name"
        " WHERE c.value IS NOT k.found",
    ),
    (
        "counter",
        "is {1}, there are none",
        "SELECT name, value FROM counters WHERE value <> 0 AND name NOT IN (SELECT 'state.' || state FROM requests"
        " UNION SELECT 'outcome.' || outcome FROM requests WHERE outcome IS NOT NULL)",
    ),
)
_NOTED: Final = (
    ("refresh", "SELECT * FROM refreshes", "triggered_at"),
    ("tag", "SELECT * FROM tags", "name"),
    ("mark", "SELECT * FROM marks", "sequence"),
    ("retraction", "SELECT * FROM retractions", "number"),
)


@dataclass(frozen=True, slots=True)
class Deviation:
    """A row that does not follow from those it is derived from."""

    where: str
    what: str


def check_derived(connection: sqlite3.Connection) -> Iterator[Deviation]:
    """Every row that is changed in place and says something else than what it follows from."""
    for where, what, query in _QUERIES:
        for row in connection.execute(query).fetchall():
            yield Deviation(f"{where} {row[0]}", what.format(*row))
    yield from _check_batches(connection)
    yield from _check_noted(connection)
    yield from _check_schema(connection)


def _check_batches(connection: sqlite3.Connection) -> Iterator[Deviation]:
    """The requests that a batch names are those that its commit settled, what gave way to others left out."""
    settled: dict[int, set[str]] = {}
    for sequence, name in connection.execute(
        "SELECT f.sequence, r.id FROM fates f JOIN requests r ON r.seq = f.seq"
        " WHERE f.sequence IS NOT NULL AND f.state <> 'superseded'"
    ):
        settled.setdefault(sequence, set()).add(name)
    erased = bool(connection.execute("SELECT 1 FROM requests WHERE erased_at IS NOT NULL LIMIT 1").fetchone())
    for sequence, text in connection.execute("SELECT sequence, request_ids FROM batches ORDER BY sequence").fetchall():
        named = set(json.loads(text))
        if named != settled.get(sequence, set()) and not erased:
            yield Deviation(f"v{sequence}", "names other requests than those that its commit settled")


def _check_noted(connection: sqlite3.Connection) -> Iterator[Deviation]:
    """Rows of which every change is an event say what their last event says."""
    for kind, query, key in _NOTED:
        last = {}
        for (data,) in connection.execute("SELECT data FROM events WHERE kind = ? ORDER BY number", (kind,)):
            row = json.loads(data)
            if key in row:  # an erasure empties what names a request
                last[row[key]] = row
        cursor = connection.cursor()
        cursor.row_factory = sqlite3.Row
        there = {row[key]: dict(row) for row in cursor.execute(query)}
        if kind == "mark":
            yield from _check_marks(connection, there, set(last))
        for name, row in there.items():
            if name in last and last[name] != row:
                yield Deviation(f"{kind} {name}", "is not what was written last")
            if kind == "retraction" and name not in last and not str(row["id"]).startswith("erased:"):
                yield Deviation(f"{kind} {name}", "was never written")
        for name in last.keys() - there.keys():
            yield Deviation(f"{kind} {name}", "is gone")


def _check_marks(
    connection: sqlite3.Connection, there: Mapping[int, Mapping[str, Any]], noted: Collection[int]
) -> Iterator[Deviation]:
    """Versions are marked that lie in a gap, each as the gap says, and no others."""
    want: dict[int, str] = {}
    for (data,) in connection.execute("SELECT data FROM events WHERE kind = 'floor' ORDER BY number"):
        gap = json.loads(data)
        for sequence in range(gap["first"], gap["floor"]):
            if want.get(sequence) != "unprovable":
                want[sequence] = gap["state"]
    for sequence, state in want.items():
        if sequence not in noted and (sequence not in there or there[sequence]["state"] != state):
            yield Deviation(f"mark {sequence}", f"is missing, or not {state}")
    for sequence in there.keys() - want.keys() - set(noted):
        yield Deviation(f"mark {sequence}", "is of a version that can be rebuilt")


def _check_schema(connection: sqlite3.Connection) -> Iterator[Deviation]:
    """Tables, indexes and triggers are those of this release."""
    fresh = sqlite3.connect(":memory:", isolation_level=None)
    try:
        migrate(fresh)
        query = "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"
        want = {tuple(row) for row in fresh.execute(query)}
        have = {tuple(row) for row in connection.execute(query)}
    finally:
        fresh.close()
    for row in sorted(want ^ have, key=str):
        yield Deviation(f"{row[0]} {row[1]}", "is not that of this release")
