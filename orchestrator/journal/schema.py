"""The journal's tables, and how an older journal becomes a newer one.

``PRAGMA user_version`` holds the number of migrations a file has been through. A migration is never edited
once journals of a release made by it exist: a change of the schema is one more entry at the end of ``MIGRATIONS``.
What the tables of schemas 2 and 3 are for is settled in docs/decisions/0009-commit-format.md.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from errata.editing.errors import UserError
from errata.orchestrator.journal.chain import chain_existing

V1: Final = """
CREATE TABLE meta (
    one         INTEGER PRIMARY KEY CHECK (one = 1),
    run_id      TEXT NOT NULL,
    base_digest TEXT NOT NULL,
    editor_digest TEXT NOT NULL,
    config      TEXT NOT NULL,
    errata_version TEXT NOT NULL,
    created_at  TEXT NOT NULL
);

CREATE TABLE requests (
    seq         INTEGER PRIMARY KEY,
    id          TEXT NOT NULL UNIQUE,
    fact_key    TEXT,
    payload     TEXT NOT NULL,
    payload_digest TEXT NOT NULL,
    accepted_at TEXT NOT NULL,
    state       TEXT NOT NULL CHECK (state IN ('accepted', 'applied', 'rejected', 'superseded', 'reverted')),
    reason      TEXT,
    applied_in  INTEGER REFERENCES batches (sequence),
    ended_in    INTEGER REFERENCES batches (sequence),
    superseded_by TEXT REFERENCES requests (id),
    result      TEXT
);
CREATE INDEX requests_by_state ON requests (state, seq);
CREATE INDEX requests_by_fact ON requests (fact_key, state);

CREATE TABLE fates (
    number      INTEGER PRIMARY KEY,
    seq         INTEGER NOT NULL REFERENCES requests (seq),
    state       TEXT NOT NULL,
    sequence    INTEGER,
    reason      TEXT,
    at          TEXT NOT NULL
);
CREATE INDEX fates_by_request ON fates (seq, number);

CREATE TABLE batches (
    sequence    INTEGER PRIMARY KEY,
    kind        TEXT NOT NULL CHECK (kind IN ('edit', 'revert')),
    created_at  TEXT NOT NULL,
    request_ids TEXT NOT NULL
);

CREATE TABLE commits (
    sequence    INTEGER PRIMARY KEY REFERENCES batches (sequence),
    version     TEXT NOT NULL,
    parent      TEXT NOT NULL,
    delta       TEXT,
    keys        TEXT,
    contexts    TEXT,
    covariance  TEXT,
    edits       INTEGER NOT NULL,
    norms       TEXT NOT NULL,
    delta_norms TEXT NOT NULL,
    seconds     REAL NOT NULL,
    at          TEXT NOT NULL
);
CREATE INDEX commits_by_version ON commits (version);

CREATE TABLE covariances (
    digest      TEXT PRIMARY KEY,
    source      TEXT NOT NULL,
    tokens      INTEGER NOT NULL,
    layers      TEXT NOT NULL,
    from_version TEXT NOT NULL,
    path        TEXT NOT NULL,
    at          TEXT NOT NULL
);

CREATE TABLE swaps (
    after_sequence INTEGER PRIMARY KEY,
    covariance  TEXT NOT NULL REFERENCES covariances (digest),
    edits       INTEGER NOT NULL,
    at          TEXT NOT NULL
);

CREATE TABLE refreshes (
    triggered_at INTEGER PRIMARY KEY,
    from_version TEXT NOT NULL,
    state       TEXT NOT NULL CHECK (state IN ('started', 'done', 'refused', 'swapped')),
    reason      TEXT,
    covariance  TEXT,
    seconds     REAL,
    at          TEXT NOT NULL
);

CREATE TABLE evaluations (
    number      INTEGER PRIMARY KEY,
    version     TEXT NOT NULL,
    edits       INTEGER NOT NULL,
    kind        TEXT NOT NULL,
    metrics     TEXT NOT NULL,
    at          TEXT NOT NULL
);

CREATE TABLE events (
    number      INTEGER PRIMARY KEY,
    kind        TEXT NOT NULL,
    data        TEXT NOT NULL,
    at          TEXT NOT NULL
);
"""

V2: Final = """
ALTER TABLE requests ADD COLUMN salt BLOB;
ALTER TABLE requests ADD COLUMN outcome TEXT CHECK (outcome IN ('landed', 'weak'));
ALTER TABLE requests ADD COLUMN figures TEXT;
ALTER TABLE requests ADD COLUMN event_at TEXT;
ALTER TABLE requests ADD COLUMN erased_at TEXT;
CREATE INDEX requests_by_application ON requests (applied_in) WHERE applied_in IS NOT NULL;
CREATE INDEX requests_by_outcome ON requests (outcome, seq) WHERE outcome IS NOT NULL;
CREATE INDEX fates_by_batch ON fates (sequence) WHERE sequence IS NOT NULL;
ALTER TABLE fates ADD COLUMN settled TEXT;

CREATE TABLE batches_2 (
    sequence    INTEGER PRIMARY KEY,
    kind        TEXT NOT NULL CHECK (kind IN ('edit', 'revert', 'repair', 'module', 'erase')),
    created_at  TEXT NOT NULL,
    request_ids TEXT NOT NULL
);
INSERT INTO batches_2 SELECT sequence, kind, created_at, request_ids FROM batches;
DROP TABLE batches;
ALTER TABLE batches_2 RENAME TO batches;

ALTER TABLE commits ADD COLUMN sweeps INTEGER NOT NULL DEFAULT 1;
ALTER TABLE commits ADD COLUMN parts TEXT NOT NULL DEFAULT '{}';
ALTER TABLE commits ADD COLUMN figures TEXT;
ALTER TABLE commits ADD COLUMN holds INTEGER NOT NULL DEFAULT 0;
CREATE INDEX commits_by_edits ON commits (edits);
CREATE INDEX batches_by_kind ON batches (kind, sequence);
CREATE INDEX events_by_kind ON events (kind, number);

CREATE TABLE attempts (
    number      INTEGER PRIMARY KEY,
    sequence    INTEGER NOT NULL,
    request_ids TEXT NOT NULL,
    started_at  TEXT NOT NULL,
    ended_at    TEXT,
    outcome     TEXT CHECK (outcome IN ('committed', 'passed', 'failed', 'died')),
    reason      TEXT
);
CREATE INDEX attempts_by_batch ON attempts (sequence, number);

CREATE TABLE marks (
    sequence    INTEGER PRIMARY KEY REFERENCES batches (sequence),
    state       TEXT NOT NULL CHECK (state IN ('compacted', 'unprovable')),
    reason      TEXT NOT NULL,
    at          TEXT NOT NULL
);

CREATE TABLE tags (
    name        TEXT PRIMARY KEY,
    sequence    INTEGER NOT NULL REFERENCES batches (sequence),
    at          TEXT NOT NULL
);

CREATE TABLE tombstones (
    seq         INTEGER PRIMARY KEY REFERENCES requests (seq),
    sequence    INTEGER REFERENCES batches (sequence),
    content     BLOB NOT NULL,
    reason      TEXT NOT NULL,
    at          TEXT NOT NULL
);

CREATE TABLE retractions (
    number      INTEGER PRIMARY KEY,
    id          TEXT NOT NULL UNIQUE,
    retracts    TEXT NOT NULL,
    event_at    TEXT,
    accepted_at TEXT NOT NULL,
    state       TEXT NOT NULL CHECK (state IN ('waiting', 'done')),
    sequence    INTEGER REFERENCES batches (sequence),
    reason      TEXT
);
CREATE INDEX retractions_by_state ON retractions (state, number);
CREATE INDEX retractions_by_request ON retractions (retracts);

CREATE TABLE chain (
    number      INTEGER PRIMARY KEY,
    kind        TEXT NOT NULL,
    ref         INTEGER NOT NULL,
    content     BLOB NOT NULL,
    digest      BLOB NOT NULL
);
CREATE UNIQUE INDEX chain_by_row ON chain (kind, ref);

CREATE TABLE counters (
    name        TEXT PRIMARY KEY,
    value       INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO counters SELECT 'state.' || state, COUNT(*) FROM requests GROUP BY state;
CREATE TRIGGER requests_counted_in AFTER INSERT ON requests BEGIN
    INSERT INTO counters VALUES ('state.' || NEW.state, 1) ON CONFLICT (name) DO UPDATE SET value = value + 1;
END;
CREATE TRIGGER requests_counted_on AFTER UPDATE OF state ON requests WHEN OLD.state <> NEW.state BEGIN
    UPDATE counters SET value = value - 1 WHERE name = 'state.' || OLD.state;
    INSERT INTO counters VALUES ('state.' || NEW.state, 1) ON CONFLICT (name) DO UPDATE SET value = value + 1;
END;
CREATE TRIGGER outcomes_counted AFTER UPDATE OF outcome ON requests WHEN OLD.outcome IS NOT NEW.outcome BEGIN
    UPDATE counters SET value = value - 1 WHERE name = 'outcome.' || OLD.outcome;
    INSERT INTO counters SELECT 'outcome.' || NEW.outcome, 1 WHERE NEW.outcome IS NOT NULL
        ON CONFLICT (name) DO UPDATE SET value = value + 1;
END;
"""

V3: Final = """
CREATE TABLE recomputed (
    batch       INTEGER NOT NULL,
    sequence    INTEGER NOT NULL,
    PRIMARY KEY (batch, sequence)
) WITHOUT ROWID;
CREATE INDEX recomputed_by_commit ON recomputed (sequence);
INSERT INTO recomputed SELECT 0, sequence FROM batches WHERE kind IN ('revert', 'erase');
"""
"""Which commits computed a batch again, without what they took out. Batch 0 stands for whichever it was: of commits of
before this table, and of those that computed everything from a batch on."""

HOLDS: Final = """
SELECT c.sequence, SUM(COALESCE(s.step, 0)) OVER (ORDER BY c.sequence) AS holds FROM commits c LEFT JOIN (
    SELECT sequence, SUM((state = 'applied') - (before IS 'applied')) AS step FROM (
        SELECT sequence, state, LAG(state) OVER (PARTITION BY seq ORDER BY number) AS before FROM fates
    ) WHERE sequence IS NOT NULL GROUP BY sequence
) s ON s.sequence = c.sequence
"""
"""How many requests are in the weights after each commit, counted from their fates: ``commits.holds``, which the
transaction of the commit keeps."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One step: a script, and what SQL cannot compute, in the same transaction."""

    script: str
    fill: Callable[[sqlite3.Connection], None] | None = None


def _fill_2(connection: sqlite3.Connection) -> None:
    connection.execute(f"UPDATE commits SET holds = h.holds FROM ({HOLDS}) h WHERE h.sequence = commits.sequence")
    chain_existing(connection)


MIGRATIONS: Final[tuple[Migration, ...]] = (Migration(V1), Migration(V2, _fill_2), Migration(V3))


def schema_version(connection: sqlite3.Connection) -> int:
    """How many migrations the file has been through; 0 for a file without tables."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def schema_of(path: Path) -> int:
    """`schema_version` of a journal's file, which is left as it is.

    Raises:
        UserError: it is no database.
    """
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        return schema_version(connection)
    except sqlite3.DatabaseError as error:
        raise UserError(f"{path} is not a journal: {error}") from error
    finally:
        connection.close()


def migrate(connection: sqlite3.Connection, migrations: Sequence[Migration] = MIGRATIONS) -> int:
    """Bring the tables up to date, each migration in a transaction of its own; returns how many were run.

    Raises:
        UserError: the file was written by a newer release.
    """
    have = schema_version(connection)
    if have > len(migrations):
        raise UserError(
            f"the journal has schema {have}, this release knows up to {len(migrations)}: use a newer release"
        )
    if have == len(migrations):
        return 0
    # a table that others refer to is made anew without its rows counting as gone; checked before each step ends
    enforced = bool(connection.execute("PRAGMA foreign_keys").fetchone()[0])
    connection.execute("PRAGMA foreign_keys = OFF")
    try:
        for number, migration in enumerate(migrations[have:], start=have + 1):
            _run(connection, number, migration)
    finally:
        connection.execute(f"PRAGMA foreign_keys = {'ON' if enforced else 'OFF'}")
    return len(migrations) - have


def _run(connection: sqlite3.Connection, number: int, migration: Migration) -> None:
    """One migration: tables, what is filled in, and the version number arrive together or not at all."""
    try:
        connection.executescript(f"BEGIN IMMEDIATE;\n{migration.script}")
        if migration.fill is not None:
            migration.fill(connection)
        broken = connection.execute("PRAGMA foreign_key_check").fetchone()
        if broken is not None:
            raise UserError(f"the journal cannot become schema {number}: a row of {broken[0]} needs one that is gone")
        connection.execute(f"PRAGMA user_version = {number}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
