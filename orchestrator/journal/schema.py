"""The journal's tables, and how an older journal becomes a newer one.

``PRAGMA user_version`` holds the number of migrations a file has been through. A migration is never edited
once journals made by it exist: a change of the schema is one more entry at the end of ``MIGRATIONS``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from errata.editing.errors import UserError

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

MIGRATIONS: Final[tuple[str, ...]] = (V1,)


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


def migrate(connection: sqlite3.Connection, migrations: Sequence[str] = MIGRATIONS) -> int:
    """Bring the tables up to date, each migration in a transaction of its own; returns how many were run.

    Raises:
        UserError: the file was written by a newer release.
    """
    have = schema_version(connection)
    if have > len(migrations):
        raise UserError(
            f"the journal has schema {have}, this release knows up to {len(migrations)}: use a newer release"
        )
    for number, script in enumerate(migrations[have:], start=have + 1):
        # one script, so that tables and version number arrive together or not at all
        try:
            connection.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {number};\nCOMMIT;")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    return len(migrations) - have
