"""A whole service upgraded under load: clients go on while it is told to end, its journal is one of an earlier
release's schema, and the new process migrates it, replays, and goes on. Nothing is lost, nothing doubled, the weights
are the journal's, bit for bit.

What an earlier release leaves is a journal of its schema beside the files that deltas and covariances lie in. Those of
the recorded journals (tests/assets/journals) are gone with their models, so nothing could be rebuilt from them: here
the run is real, and its journal is brought back to schema 1 and to schema 2 between two processes, with everything that
schema knew.
"""

from __future__ import annotations

import signal
import sqlite3
from collections import Counter
from pathlib import Path

import pytest
import yaml

from errata.orchestrator.history.rebuild import BaseCheckpoint
from errata.orchestrator.history.verify import verify
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.schema import MIGRATIONS, migrate, schema_of
from tests.integration.harness import settings
from tests.integration.service.conftest import Services
from tests.integration.service.soak import Host, HttpClient, ended, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


def brought_back(path: Path, schema: int) -> None:
    """A journal as a release with an earlier schema would have left it: its tables, and the columns that they had."""
    with Journal.open(path):
        pass  # the log is written into the file
    fresh = path.with_name("earlier.sqlite")
    new = sqlite3.connect(fresh, isolation_level=None)
    migrate(new, MIGRATIONS[:schema])
    new.execute("PRAGMA foreign_keys = OFF")
    new.execute("ATTACH ? AS old", (str(path),))
    # what counts rows would count the copied ones, and is copied itself
    triggers = new.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        new.execute(f"DROP TRIGGER {name}")
    for (table,) in new.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'").fetchall():
        columns = ", ".join(row[1] for row in new.execute(f"PRAGMA main.table_info({table})"))
        new.execute(f"DELETE FROM main.{table}")
        new.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM old.{table}")
    for _, text in triggers:
        new.execute(text)
    assert not new.execute("PRAGMA main.foreign_key_check").fetchall()
    new.close()
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    fresh.replace(path)
    assert schema_of(path) == schema


def commits_of(path: Path) -> list[tuple[int, str, str | None]]:
    """(sequence, version, delta) of every commit."""
    with Journal.open(path, read_only=True) as journal:
        return [(version.sequence, version.digest, version.delta) for version in journal.versions()]


def test_a_service_upgraded_under_load_loses_and_doubles_nothing(services: Services, tiny_checkpoint: Path) -> None:
    data = settings(tiny_checkpoint, services.output.parent / "none.jsonl")
    data["editor"] = {"type": "memit", "layers": [1, 2], "cov_weight": 50.0, "values": {"steps": 2, "lr": 0.05}}
    data |= {
        "schedule": "asap",
        "stream": {"path": ""},
        "batching": {"size": 16, "max_age_seconds": 0.2},
        "refresh": {"every": None},
        "snapshots": {"every": 10},
        "service": {"max_waiting": 200},
    }
    data["evaluation"] |= {"every": None, "held_out": None, "max_new_tokens": 2, "arms": ["base", "edited"]}
    services.config.write_text(yaml.safe_dump(data))
    path = services.output / "journal.sqlite"
    host = Host(services)
    host.start(900)
    clients = [HttpClient(f"client{number}", number, host.url) for number in range(3)]
    for client in clients:
        client.start()
    before: list[tuple[int, str, str | None]] = []
    for schema in (1, 2, 1, len(MIGRATIONS)):
        told = sum(len(client.told) for client in clients)
        wait_until(lambda told=told: sum(len(c.told) for c in clients) > told + 40, 600, "nobody gets answers")  # type: ignore[misc]
        assert ended(host) == 0, "told to end, it ends by itself after the batch under way"
        now = commits_of(path)
        assert now[: len(before)] == before and len(now) > len(before), "it went on from what was there"
        if schema < len(MIGRATIONS):
            brought_back(path, schema)
        before = now
        host.start(900)
        assert schema_of(path) == len(MIGRATIONS)
        assert commits_of(path)[: len(before)] == before, "an upgrade changes no commit"
    for client in clients:
        client.stopping.set()
    for client in clients:
        client.join(800)
        if client.error is not None:
            raise client.error
        assert not client.is_alive()
    asker = clients[0]
    wait_until(lambda: asker.insist("GET", "/v1/status").json()["edits"]["waiting"] == 0, 600, "edits are waiting")
    held = asker.insist("GET", "/v1/inspection").json()
    assert host.served is not None and host.served.end(signal.SIGTERM) == 0
    told = {name for client in clients for name in client.told}
    applied: Counter[str] = Counter()
    with Journal.open(path, read_only=True) as journal:
        rows = {row.id: row for row in journal.requests()}
        for name in rows:
            applied[name] = sum(fate.state == "applied" for fate in journal.fates(name))
    assert set(rows) == told, "0 lost, and nothing that nobody sent"
    assert max(applied.values()) == 1, "0 doubled"
    assert all(applied[name] == 1 or rows[name].state in ("rejected", "superseded", "reverted") for name in told)
    assert sum(client.counts["no answer"] for client in clients) > 0, "calls were under way while it was upgraded"
    report = verify(services.output, BaseCheckpoint(tiny_checkpoint))
    assert not report.problems and report.rebuilt[-1].weights == held["weights"], "the weights, bit for bit"
    print({"edits": len(told), "commits": len(commits_of(path)), "starts": len(host.ready_seconds)})
