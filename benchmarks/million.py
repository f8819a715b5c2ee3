"""What a person waits for on the journal of a long life: log, show, the API's pages, a batch's lookups.

    python -m benchmarks.million                       # a million requests in batches of ten, made by this script
    python -m benchmarks.million --requests 100000

The journal is written row by row as `errata.orchestrator.journal` writes it, four fifths of the requests updates of
facts that were there before; rows of the chain carry random digests, which nothing asked here reads.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any

from benchmarks.measuring import context, store
from errata.orchestrator.history.log import History
from errata.orchestrator.journal import JOURNAL_FILE, Journal
from errata.orchestrator.journal.rows import CommitData, JournalMeta, RequestOutcome
from errata.orchestrator.journal.schema import HOLDS
from errata.orchestrator.service.bodies import edit_story, edit_view, version_view

BATCH = 10
START = datetime(2026, 1, 1, tzinfo=UTC)


def write(path: Path, requests: int, facts: int, seed: int = 0) -> None:
    """A journal of so many requests about so many facts."""
    with Journal.create(path, JournalMeta("million", "b" * 64, "e" * 64, {"name": "million"})):
        pass
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("BEGIN")
    # written at once, so counted at once
    triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        connection.execute(f"DROP TRIGGER {name}")
    random, holds, fate = Random(seed), {}, 0
    rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in ("batches", "commits", "fates", "chain")}
    requests_now: dict[int, list[Any]] = {}
    parent = "0" * 64
    for sequence in range(1, requests // BATCH + 1):
        at = (START + timedelta(seconds=sequence)).isoformat()
        names = []
        for seq in range((sequence - 1) * BATCH + 1, sequence * BATCH + 1):
            fact = seq if seq <= facts // 5 else random.randrange(facts)
            key, name = f"{fact:064x}", f"edit-{seq}"
            payload = json.dumps({"id": name, "subject": f"Subject {fact}", "prompt": "{} is", "target_new": "x"})
            rows["fates"] += [
                (fate + 1, seq, "accepted", None, None, at),
                (fate + 2, seq, "applied", sequence, None, at),
            ]
            fate += 2
            if key in holds:
                old = holds[key]
                fate += 1
                rows["fates"].append((fate, old, "superseded", sequence, None, at))
                requests_now[old][6:10] = ["superseded", sequence_of(old), sequence, name]
            holds[key] = seq
            requests_now[seq] = [seq, name, key, payload, "d" * 64, at, "applied", sequence, None, None, b"s" * 16]
            names.append(name)
        version = f"{random.getrandbits(256):064x}"
        rows["batches"].append((sequence, "edit", at, json.dumps(names)))
        rows["commits"].append(
            (sequence, version, parent, "d" * 64, "k" * 64, None, None, sequence * BATCH, "{}", "{}", 0.1, at)
        )
        parent = version
    connection.executemany("INSERT INTO batches VALUES (?, ?, ?, ?)", rows["batches"])
    columns = (
        "seq, id, fact_key, payload, payload_digest, accepted_at, state, applied_in, ended_in, superseded_by, salt"
    )
    connection.executemany(
        f"INSERT INTO requests ({columns}) VALUES ({', '.join('?' * 11)})",
        (tuple(row) for row in requests_now.values()),
    )
    connection.executemany(
        "INSERT INTO fates (number, seq, state, sequence, reason, at) VALUES (?, ?, ?, ?, ?, ?)", rows["fates"]
    )
    columns = "sequence, version, parent, delta, keys, contexts, covariance, edits, norms, delta_norms, seconds, at"
    connection.executemany(f"INSERT INTO commits ({columns}) VALUES ({', '.join('?' * 12)})", rows["commits"])
    connection.execute(f"UPDATE commits SET holds = h.holds FROM ({HOLDS}) h WHERE h.sequence = commits.sequence")
    connection.execute("DELETE FROM counters")
    connection.execute("INSERT INTO counters SELECT 'state.' || state, COUNT(*) FROM requests GROUP BY state")
    for _, sql in triggers:
        connection.execute(sql)
    connection.execute("COMMIT")
    connection.close()


def sequence_of(seq: int) -> int:
    """The batch that wrote a request."""
    return (seq - 1) // BATCH + 1


def questions(journal: Journal) -> dict[str, Callable[[], object]]:
    """What is asked, by name."""
    head = journal.head()
    middle = head.sequence // 2
    some = journal.request(f"edit-{middle * BATCH}")
    assert some is not None
    ids = [f"edit-{middle * BATCH + i * 977 % (middle * BATCH)}" for i in range(BATCH)]
    facts = [row.fact_key for row in journal.requests_named(ids) if row.fact_key is not None]
    return {
        "log -n 20": lambda: History(journal).log(20),
        "show EDIT": lambda: History(journal).show(some.id),
        "show head": lambda: History(journal).show("head", 20),
        "show a version, by a prefix": lambda: History(journal).show(head.digest[:12], 20),
        "counts": journal.counts,
        "page of edits": lambda: [edit_view(row) for row in journal.request_page(50)],
        "page of edits, one state": lambda: [edit_view(row) for row in journal.request_page(50, state="superseded")],
        "page of edits, a state that none has": lambda: journal.request_page(50, state="rejected"),
        "page of versions": lambda: [version_view(version) for version in journal.version_page(50)],
        "one edit": lambda: edit_story(journal, some),
        "pending": lambda: journal.pending(BATCH),
        "facts of a batch": lambda: journal.requests_of_facts(facts),
        "a sample of the applied": lambda: journal.applied_spread(24),
    }


def measure(path: Path) -> dict[str, Any]:
    """Wall seconds of opening the journal, of each question, and of a commit."""
    started = perf_counter()
    result: dict[str, Any] = {}
    with Journal.open(path, read_only=True) as reader:
        result["open_s"] = perf_counter() - started
        result["requests"] = reader.counts().requests
        result["seconds"] = {}
        for name, ask in questions(reader).items():
            times = []
            for _ in range(3):
                begun = perf_counter()
                ask()
                times.append(perf_counter() - begun)
            result["seconds"][name] = {"first": times[0], "best": min(times)}
    from errata.editing.request import EditRequest

    with Journal.open(path) as journal:
        times = []
        for number in range(3):
            request = EditRequest(id=f"new-{number}", subject=f"Nobody {number}", prompt="{} is", target_new="y")
            begun = perf_counter()
            journal.accept([request])
            sequence = journal.next_sequence()
            journal.commit(CommitData(sequence, (RequestOutcome(request.id, True),), f"{number:064x}"))
            times.append(perf_counter() - begun)
        result["commit_s"] = {"first": times[0], "best": min(times)}
    result["file_MiB"] = path.stat().st_size / 2**20
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--facts", type=int, default=200_000)
    parser.add_argument("--json", type=Path, help="where to write; by default benchmarks/results/")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / JOURNAL_FILE
        write(path, options.requests, options.facts)
        result = {"context": context(), **measure(path)}
    print(json.dumps(result, indent=1))
    print(store("million", result, options.json))


if __name__ == "__main__":
    main()
