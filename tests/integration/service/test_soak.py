"""A soak: a Redis stream and two HTTP clients feed a service at full speed while its actors, its process and its whole
process tree are killed at random, it is told to end, its clock is set, and clients and neighbors do what harms. At the
end journal, weights, memory and what clients were told agree exactly.

Ten minutes; ``ERRATA_SOAK_SECONDS`` changes that, ``ERRATA_SOAK_EDITOR=gated_kv`` (or ``grace``) puts modules in. One
story for all tests of this file, whose counts are printed.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from errata.orchestrator.history.rebuild import BaseCheckpoint
from errata.orchestrator.history.receipts import memory_entries
from errata.orchestrator.history.verify import Report, verify
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.rows import RequestRow, Version
from errata.orchestrator.service.reverting import DONE, REQUESTED
from tests.integration.harness import settings
from tests.integration.service.conftest import Services
from tests.integration.service.soak import (
    STREAM,
    Attacker,
    Host,
    HttpClient,
    Killer,
    Producer,
    RedisProducer,
    ended,
    start_redis,
    wait_until,
)

SECONDS = float(os.environ.get("ERRATA_SOAK_SECONDS", "600"))
EDITOR = os.environ.get("ERRATA_SOAK_EDITOR", "memit")
EDITORS: dict[str, dict[str, Any]] = {
    "memit": {"type": "memit", "layers": [1, 2], "cov_weight": 50.0, "values": {"steps": 2, "lr": 0.05}},
    "gated_kv": {"type": "gated_kv", "layers": [1], "values": {"steps": 2, "lr": 0.05}},
    "grace": {"type": "grace", "layers": [1], "steps": 2, "lr": 0.05},
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 2400)]


@dataclass
class Soak:
    """What was seen, and what is in the journal afterwards."""

    run: Path
    host: Host
    attacker: Attacker
    clients: list[HttpClient]
    redis: RedisProducer
    held: dict[str, Any]
    """The service's own account of its weights and its memory, once nothing waited any more."""
    left_in_stream: int
    dead_letters: int
    exit_code: int
    report: Report
    rows: dict[str, RequestRow] = field(default_factory=dict)
    applications: Counter[str] = field(default_factory=Counter)
    reversals: Counter[str] = field(default_factory=Counter)
    versions: list[Version] = field(default_factory=list)

    @property
    def producers(self) -> list[Producer]:
        return [*self.clients, self.redis]

    def told(self) -> dict[str, dict[str, Any]]:
        """Every edit that somebody was answered for."""
        return {name: edit for producer in self.producers for name, edit in producer.told.items()}


def write_config(services: Services, model: Path, redis: str) -> None:
    """Small steps, so that thousands of edits leave a tiny model finite; everything that goes on does so often."""
    data = settings(model, services.output.parent / "none.jsonl")
    data["editor"] = EDITORS[EDITOR]
    data |= {
        "schedule": "asap",
        "stream": {"redis": {"url": redis, "stream": STREAM, "claim_after_seconds": 20, "max_deliveries": 50}},
        "batching": {"size": 16, "max_age_seconds": 0.2},
        # a module preserves nothing, so there is no covariance to be estimated anew
        "refresh": {"every": 400 if EDITOR == "memit" else None, "lag": 0, "max_jsd": None},
        "snapshots": {"every": 20},
        "service": {"max_waiting": 400},
    }
    data["evaluation"] |= {"every": 200, "held_out": None, "max_new_tokens": 2, "arms": ["base", "edited"]}
    data["ray"] = {"generation_workers": 1, "evaluation_workers": 1, "max_revivals": 100_000}
    services.config.write_text(yaml.safe_dump(data))


@pytest.fixture(scope="module")
def soak(services: Services, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Soak]:
    url, redis = start_redis(tmp_path_factory.mktemp("redis"))
    try:
        write_config(services, tiny_checkpoint, url)
        clock = services.output.parent / "clock"
        services.program = ("tests.helpers.shifted", str(clock))
        host = Host(services)
        host.start()
        stream = RedisProducer("redis", 1, url)
        clients = [HttpClient(f"http{number}", 2 + number, host.url) for number in range(2)]
        producers: list[Producer] = [stream, *clients]
        killer = Killer(host, seconds=SECONDS, every_service=max(20.0, SECONDS / 8))
        attacker = Attacker(host, services.output / "journal.sqlite", clock, seconds=SECONDS)
        for thread in (*producers, killer, attacker):
            thread.start()
        killer.join()
        attacker.join(60)
        for producer in producers:
            producer.stopping.set()
        for producer in producers:
            producer.join(800)
        assert not [producer.name for producer in producers if producer.is_alive()], "somebody waits for ever"
        for problem in (killer.error, attacker.error, *(producer.error for producer in producers)):
            if problem is not None:
                raise problem
        wait_until(lambda: stream.ahead() == 0, 600, "the stream was not emptied")
        asker = clients[0]
        wait_until(
            lambda: asker.insist("GET", "/v1/status").json()["edits"]["waiting"] == 0, 600, "edits are still waiting"
        )
        held = asker.insist("GET", "/v1/inspection").json()
        exit_code = ended(host)
        left, dead = stream.ahead(), int(stream.client.xlen(f"{STREAM}:dead"))
        report = verify(services.output, BaseCheckpoint(tiny_checkpoint))
        yield read(Soak(services.output, host, attacker, clients, stream, held, left, dead, exit_code, report))
    finally:
        redis.kill()
        redis.wait()


def read(found: Soak) -> Soak:
    with Journal.open(found.run / "journal.sqlite", read_only=True) as journal:
        found.rows = {row.id: row for row in journal.requests()}
        found.versions = journal.versions()
        for name in found.rows:
            fates = journal.fates(name)
            found.applications[name] = sum(fate.state == "applied" for fate in fates)
            found.reversals[name] = sum(fate.state == "reverted" for fate in fates)
    return found


def counts(found: Soak) -> dict[str, Any]:
    told = found.told()
    states = Counter(row.state for row in found.rows.values())
    return {
        "seconds": SECONDS,
        "killed": dict(found.host.kills),
        "attacks": dict(found.attacker.counts),
        "started": len(found.host.ready_seconds),
        "longest_start_seconds": round(max(found.host.ready_seconds), 1),
        "told": {producer.name: len(producer.told) for producer in found.producers},
        "clients": dict(sum((producer.counts for producer in found.producers), Counter())),
        "malformed": found.redis.malformed,
        "states": dict(states),
        "commits": len(found.versions) - 1,
        "reverts": sum(version.kind == "revert" for version in found.versions),
        "lost": len(set(told) - set(found.rows)),
        "doubled": sum(number > 1 for number in found.applications.values()),
    }


def test_nothing_is_lost_and_nothing_doubled(soak: Soak, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print("\nsoak:", json.dumps(counts(soak), indent=1))
    told = soak.told()
    assert len(told) > 100 and soak.exit_code == 0
    assert not set(told) - set(soak.rows), "lost: a client was told of an edit that the journal does not have"
    unreadable = {name for name in soak.rows if name.startswith("record:")}
    assert set(soak.rows) - unreadable == set(told), "an edit that nobody handed in"
    assert len(unreadable) == soak.redis.malformed
    for name, row in soak.rows.items():
        assert row.state != "accepted", f"{name} still waits"
        assert soak.applications[name] == (row.applied_in is not None), f"{name} was applied {soak.applications[name]}x"
        if name in told:
            assert row.request.target_new == told[name]["target_new"] and row.request.subject == told[name]["subject"]
    assert not [row.reason for name, row in soak.rows.items() if row.state == "rejected" and name in told]


def test_everything_was_killed_again_and_again(soak: Soak) -> None:
    ends = ("service process", "process tree", "service told to end")
    assert sum(soak.host.kills[kind] for kind in ends) == len(soak.host.ready_seconds) - 1
    assert soak.host.kills["service process"] >= 1
    if SECONDS >= 300:
        for kind in ("EditorActor", "RetrievalActor", "UnitActor", "EvaluationActor"):
            assert soak.host.kills[kind] >= 2, kind
        for kind in ends:  # they take turns, and how many there are hangs on how long a start takes
            assert soak.host.kills[kind] >= 1, kind


def test_every_kind_of_attack_was_tried(soak: Soak) -> None:
    kinds = ("idle", "half", "leave", "large", "lock", "evaluate", "random", "jump", "poison")
    if SECONDS >= 300:
        for kind in kinds:
            assert soak.attacker.counts[kind] >= 2, kind
    assert sum(soak.attacker.counts[kind] for kind in kinds) > 5


def test_every_commit_is_of_known_edits_and_the_number_of_edits_adds_up(soak: Soak) -> None:
    named: Counter[str] = Counter()
    for version in soak.versions[1:]:
        if version.kind == "edit":
            named.update(name for name in version.request_ids if soak.rows[name].applied_in == version.sequence)
    assert set(named.values()) <= {1}
    assert soak.versions[-1].edits == len(named) == sum(row.applied_in is not None for row in soak.rows.values())


def test_the_weights_are_those_that_the_journal_rebuilds_from_the_base(soak: Soak) -> None:
    assert soak.report.sound, soak.report.problems
    assert soak.held["sequence"] == soak.versions[-1].sequence
    assert soak.held["version"] == soak.versions[-1].digest == soak.report.rebuilt[-1].version
    assert soak.held["weights"] == soak.report.rebuilt[-1].weights, "live weights and rebuilt ones, bit for bit"


def test_the_memory_holds_the_applied_edits_that_were_not_taken_back_or_overwritten(soak: Soak) -> None:
    from errata.retrieval.embedder import HashEmbedderConfig
    from errata.retrieval.index import IndexConfig
    from tests.helpers.memory import HeldMemory

    newest: dict[str, RequestRow] = {}
    for row in sorted(soak.rows.values(), key=lambda row: (row.applied_in or 0, row.seq)):
        if row.applied_in is not None and row.fact_key is not None:
            newest[row.fact_key] = row
    standing = {row.id for row in newest.values() if row.state != "reverted"}
    assert standing == {row.id for row in soak.rows.values() if row.state == "applied"}
    memory = HeldMemory(HashEmbedderConfig(), IndexConfig())
    with Journal.open(soak.run / "journal.sqlite", read_only=True) as journal:
        assert memory.add(memory_entries(journal)) == len(standing) == soak.held["statements"]
    assert memory.digest() == soak.held["memory"]


def test_what_was_promised_to_be_taken_back_is_out(soak: Soak) -> None:
    with Journal.open(soak.run / "journal.sqlite", read_only=True) as journal:
        intents = {event.number: event.data["ids"] for event in journal.events(REQUESTED)}
        settled = Counter(event.data["wish"] for event in journal.events(DONE))
        impossible = {event.data["wish"] for event in journal.events(DONE) if "problem" in event.data}
    assert settled == Counter(intents.keys()), "every wish was carried out once"
    failed = {name for number in impossible for name in intents[number]}
    for client in soak.clients:
        for name, status in client.taken_back.items():
            state = soak.rows[name].state
            assert state == "reverted" or (status == 202 and name in failed and state == "superseded"), (name, state)
    assert all(number <= 1 for number in soak.reversals.values())


def test_what_clients_saw_is_what_the_journal_says(soak: Soak) -> None:
    seen = {name: found for client in soak.clients for name, found in client.seen.items()}
    for name, (applied_in, state) in seen.items():
        if applied_in is not None:
            assert soak.rows[name].applied_in == applied_in, "what was said to be written is where it was said to be"
        if state in ("rejected", "superseded", "reverted"):
            assert soak.rows[name].state == state, (name, state)


def test_the_stream_is_empty_and_what_is_no_request_lies_with_the_dead_letters(soak: Soak) -> None:
    assert len(soak.redis.told) > 20
    assert soak.left_in_stream == 0
    assert soak.dead_letters == soak.redis.malformed
