"""The chain of digests over everything that a journal only ever adds to.

Every acceptance, fate, commit, swap, evaluation and event has one link. A link names the row, holds the digest of the
row's content, and a digest over that and the link before::

    content_n = sha256(salt + canonical JSON of the row)        (salt: of the request, for acceptances and fates)
    digest_n  = sha256("errata chain 1" + digest_(n-1) + kind + ref + content_n)

So a row that was changed, taken out or put between others is seen, and the last digest stands for the whole journal.
Rows that change (the state of a request, a refresh) are derived from rows that do not. The salt is random and belongs
to one request: when the request is erased its salt is destroyed, the link stays, and its content cannot be guessed.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

LinkKind = Literal["begin", "acceptance", "fate", "commit", "covariance", "swap", "evaluation", "event"]

SALT_BYTES: Final = 16

_SEED: Final = b"errata chain 1\n"
_EMPTY: Final = bytes(32)

_READ: Final[dict[LinkKind, str]] = {
    "begin": "SELECT run_id, base_digest, editor_digest, config, errata_version, created_at FROM meta WHERE one = ?",
    "acceptance": "SELECT id, fact_key, payload, payload_digest, accepted_at, event_at, salt, erased_at"
    " FROM requests WHERE seq = ?",
    "fate": "SELECT f.seq, f.state, f.sequence, f.reason, f.at, f.settled, r.salt, r.erased_at"
    " FROM fates f JOIN requests r ON r.seq = f.seq WHERE f.number = ?",
    "commit": "SELECT c.sequence, b.kind, b.created_at, c.version, c.parent, c.delta, c.keys, c.contexts, c.covariance,"
    " c.edits, c.norms, c.delta_norms, c.seconds, c.at, c.sweeps, c.parts, c.figures"
    " FROM commits c JOIN batches b ON b.sequence = c.sequence WHERE c.sequence = ?",
    "covariance": "SELECT digest, source, tokens, layers, from_version, path, at FROM covariances WHERE rowid = ?",
    "swap": "SELECT after_sequence, covariance, edits, at FROM swaps WHERE after_sequence = ?",
    "evaluation": "SELECT version, edits, kind, metrics, at FROM evaluations WHERE number = ?",
    "event": "SELECT kind, data, at FROM events WHERE number = ?",
}
_ALL: Final[dict[LinkKind, str]] = {
    "begin": "SELECT one AS row_key FROM meta",
    "acceptance": "SELECT seq AS row_key FROM requests ORDER BY seq",
    "fate": "SELECT number AS row_key FROM fates ORDER BY number",
    "commit": "SELECT sequence AS row_key FROM commits ORDER BY sequence",
    "covariance": "SELECT rowid AS row_key FROM covariances ORDER BY rowid",
    "swap": "SELECT after_sequence AS row_key FROM swaps ORDER BY after_sequence",
    "evaluation": "SELECT number AS row_key FROM evaluations ORDER BY number",
    "event": "SELECT number AS row_key FROM events ORDER BY number",
}


@dataclass(frozen=True, slots=True)
class Broken:
    """A link that does not hold, or a row without one."""

    kind: str
    ref: int
    what: str


def new_salt() -> bytes:
    """The salt of one request."""
    return secrets.token_bytes(SALT_BYTES)


def append_link(connection: sqlite3.Connection, kind: LinkKind, ref: int) -> None:
    """Chain a row that was just written, in the same transaction.

    Raises:
        ValueError: there is no such row.
    """
    content = row_content(connection, kind, ref)
    if content is None:
        raise ValueError(f"there is no {kind} {ref} to be chained")
    last = connection.execute("SELECT digest FROM chain ORDER BY number DESC LIMIT 1").fetchone()
    digest = _link(last[0] if last else _EMPTY, kind, ref, content)
    connection.execute(
        "INSERT INTO chain (kind, ref, content, digest) VALUES (?, ?, ?, ?)", (kind, ref, content, digest)
    )


def row_content(connection: sqlite3.Connection, kind: LinkKind, ref: int) -> bytes | None:
    """Digest of a row's content as its link holds it; None where the row is gone or its request was erased."""
    cursor = connection.cursor()
    cursor.row_factory = sqlite3.Row
    row = cursor.execute(_READ[kind], (ref,)).fetchone()
    if row is None:
        return None
    values: dict[str, Any] = dict(row)
    salt = values.pop("salt", None) or b""
    if values.pop("erased_at", None) is not None:
        return None
    text = json.dumps(values, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(salt + text.encode("utf-8", "surrogatepass")).digest()


def chain_existing(connection: sqlite3.Connection) -> None:
    """Give every request a salt and every row of a journal of before its link: part of the migration to schema 2."""
    for (seq,) in connection.execute("SELECT seq AS row_key FROM requests WHERE salt IS NULL").fetchall():
        connection.execute("UPDATE requests SET salt = ? WHERE seq = ?", (new_salt(), seq))
    for kind, query in _ALL.items():
        for (ref,) in connection.execute(query).fetchall():
            append_link(connection, kind, ref)


def check_chain(connection: sqlite3.Connection, *, progress: Callable[[int], None] | None = None) -> Iterator[Broken]:
    """Every link that does not hold and every row that has none.

    The content of an erased request's rows cannot be computed any more; their links must still hold.
    """
    before = _EMPTY
    expected = 1
    for number, kind, ref, content, digest in connection.execute(
        "SELECT number, kind, ref, content, digest FROM chain ORDER BY number"
    ).fetchall():
        if number != expected:
            yield Broken(str(kind), int(ref), f"link {expected} of the chain is missing")
        expected = number + 1
        if kind not in _READ:
            yield Broken(str(kind), int(ref), "is a link of an unknown kind")
        elif _link(before, kind, ref, content) != digest:
            yield Broken(kind, ref, "does not follow from the link before it")
        else:
            stored = row_content(connection, kind, ref)
            if stored is None and not _erased(connection, kind, ref):
                yield Broken(kind, ref, "is in the chain and not in the journal")
            elif stored is not None and stored != content and not _erased(connection, kind, ref):
                yield Broken(kind, ref, "was changed after it was written")
        before = digest
        if progress is not None:
            progress(number)
    for kind_, query in _ALL.items():
        missing = f"SELECT * FROM ({query}) WHERE NOT EXISTS (SELECT 1 FROM chain WHERE kind = ? AND ref = row_key)"
        for (ref,) in connection.execute(missing, (kind_,)).fetchall():
            yield Broken(kind_, int(ref), "is not in the chain")


def chain_head(connection: sqlite3.Connection) -> str | None:
    """The last link's digest, 64 hexadecimal digits: it stands for the journal up to here. None for no link."""
    last = connection.execute("SELECT digest FROM chain ORDER BY number DESC LIMIT 1").fetchone()
    return None if last is None else bytes(last[0]).hex()


def _link(before: bytes, kind: str, ref: int, content: bytes) -> bytes:
    return hashlib.sha256(_SEED + bytes(before) + f"{kind}\n{ref}\n".encode() + bytes(content)).digest()


def _erased(connection: sqlite3.Connection, kind: str, ref: int) -> bool:
    if kind == "acceptance":
        row = connection.execute("SELECT erased_at FROM requests WHERE seq = ?", (ref,)).fetchone()
    elif kind == "fate":
        query = "SELECT r.erased_at FROM fates f JOIN requests r ON r.seq = f.seq WHERE f.number = ?"
        row = connection.execute(query, (ref,)).fetchone()
    elif kind == "event":
        # an erasure has emptied it, and says so
        query = (
            "SELECT b.number FROM events e JOIN events b ON b.number = json_extract(e.data, '$.redacted')"
            " WHERE e.number = ? AND b.kind = 'erase'"
        )
        row = connection.execute(query, (ref,)).fetchone()
    else:
        return False
    return row is not None and row[0] is not None
