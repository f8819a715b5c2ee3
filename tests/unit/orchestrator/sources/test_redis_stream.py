"""A Redis stream against a real server: 0 lost, 0 doubled, whoever dies when."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from pydantic import ValidationError

from errata.editing.errors import UserError
from errata.orchestrator.config.stream import RedisConfig
from errata.orchestrator.journal import Journal
from errata.orchestrator.sources import take_in
from errata.orchestrator.sources.redis_stream import PASSWORD, RedisStream
from tests.helpers.page_commands import REDIS
from tests.helpers.processes import PROCESSES
from tests.helpers.streams import new_journal, record

Server = tuple[str, subprocess.Popen[bytes]]


def start_server(directory: Path, *options: str, port: int | None = None) -> tuple[int, subprocess.Popen[bytes]]:
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed")
    if port is None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    command = [program, "--port", str(port), "--dir", str(directory), "--save", "", *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return port, process
        time.sleep(0.02)
    process.kill()
    pytest.fail("redis-server did not come up")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port, process = start_server(tmp_path_factory.mktemp("redis"))
    yield f"redis://127.0.0.1:{port}/0"
    process.kill()
    process.wait()


@pytest.fixture
def client(server: str) -> Iterator[Any]:
    with redis.Redis.from_url(server) as client:
        client.flushall()
        yield client


def add(client: Any, *records: dict[str, Any]) -> list[bytes]:
    return [client.xadd("errata:edits", {"edit": json.dumps(item)}) for item in records]


def subjects(journal: Journal) -> list[str]:
    return [row.request.subject for row in journal.requests("accepted")]


def drain(source: RedisStream, journal: Journal) -> None:
    while take_in(journal, source, 0.01):
        pass


def pending(client: Any) -> int:
    return int(client.xpending("errata:edits", "errata")["pending"])


def open_stream(server: str, **changes: Any) -> RedisStream:
    return RedisStream(RedisConfig(url=server, **changes))


def test_entries_are_accepted_then_acknowledged(server: str, client: Any, journal: Journal) -> None:
    add(client, *(record(number) for number in range(300)))
    client.xadd("errata:edits", {**record(300)})  # a record field by field
    source = open_stream(server)
    first = source.read(0.01)
    assert len(first) == 128 and pending(client) == 128
    source.close()
    # the same consumer again: first what it had read
    drain(open_stream(server), journal)
    assert subjects(journal) == [f"S{number}" for number in range(301)] and pending(client) == 0


def test_the_same_edit_sent_twice_is_one_edit(server: str, client: Any, journal: Journal) -> None:
    add(client, record(1), record(1), record(2, id="mine"), record(2, id="mine"))
    drain(open_stream(server), journal)
    assert subjects(journal) == ["S1", "S2"] and pending(client) == 0 and not client.exists("errata:edits:dead")


def test_what_the_pages_add_by_hand_is_an_edit(server: str, journal: Journal) -> None:
    program = shutil.which("redis-cli")
    if program is None:
        pytest.skip("redis-cli is not installed")
    for text in REDIS:
        words = text.split(" ", 5)[1:5]  # XADD errata:edits * edit
        fields = [text.partition(" edit ")[2]] if words[3] == "edit" else ["France", "prompt", "The capital of {} is"]
        fields += [] if words[3] == "edit" else ["target_new", "Lyon"]
        assert " ".join(["redis-cli", *words, *fields]) == text
        subprocess.run([program, "-u", server, *words, *fields], check=True, timeout=30, stdout=subprocess.DEVNULL)
    drain(open_stream(server), journal)
    assert subjects(journal) == ["France"], "the same edit in both forms"


def test_what_is_no_request_goes_to_the_dead_letters_with_the_reason(
    server: str, client: Any, journal: Journal
) -> None:
    client.xadd("errata:edits", {"edit": "{"})
    client.xadd("errata:edits", {"edit": b"\xff"})
    add(client, record(1, id="a"), record(2, id="a"), {"subject": "x"}, record(3))
    drain(open_stream(server), journal)
    assert subjects(journal) == ["S1", "S3"] and pending(client) == 0
    dead = client.xrange("errata:edits:dead")
    reasons = [fields[b"errata.reason"].decode() for _, fields in dead]
    assert len(dead) == 4 and "malformed entry" in reasons[0] and "was used before" in reasons[2]
    assert dead[0][1][b"edit"] == b"{" and dead[0][1][b"errata.stream"] == b"errata:edits"
    assert len(journal.requests("rejected")) == 4


def read_and_be_killed(server: str, path: Path, consumer: str, accept: bool) -> None:
    """In a process of its own: read, accept, and be killed before anything is acknowledged."""
    source = open_stream(server, consumer=consumer)
    found = [d.request for d in source.read(1.0) if d.request]
    if accept:
        with Journal.open(path) as journal:
            journal.accept(found)
            os.kill(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def read_and_die(server: str, path: Path, consumer: str, *, accept: bool) -> None:
    process = PROCESSES.Process(target=read_and_be_killed, args=(server, path, consumer, accept))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("accept", [True, False], ids=["after the journal", "before the journal"])
def test_kill_9_between_journal_and_acknowledgment(server: str, client: Any, tmp_path: Path, accept: bool) -> None:
    path = tmp_path / "journal.sqlite"
    new_journal(path).close()
    add(client, *(record(number) for number in range(100)))
    read_and_die(server, path, "errata", accept=accept)
    assert pending(client) == 100
    with Journal.open(path) as journal:
        assert len(subjects(journal)) == (100 if accept else 0)
        drain(open_stream(server), journal)
        assert subjects(journal) == [f"S{number}" for number in range(100)], "0 lost, 0 doubled"
    assert pending(client) == 0


def test_entries_of_another_consumer_that_died_are_claimed(
    server: str, client: Any, tmp_path: Path, journal: Journal
) -> None:
    add(client, *(record(number) for number in range(50)))
    read_and_die(server, tmp_path / "none", "somebody", accept=False)
    add(client, record(50))
    patient = open_stream(server, claim_after_seconds=3600)
    drain(patient, journal)
    assert subjects(journal) == ["S50"] and pending(client) == 50, "it may still be alive"
    drain(open_stream(server, claim_after_seconds=0, count=7), journal)
    assert sorted(subjects(journal)) == sorted(f"S{number}" for number in range(51)) and pending(client) == 0


def test_an_entry_handed_out_too_often_is_given_up(server: str, client: Any, journal: Journal) -> None:
    add(client, record(1))
    for _ in range(3):
        assert open_stream(server, max_deliveries=3).read(0.01)[0].request is not None
    drain(open_stream(server, max_deliveries=3), journal)
    [(_, fields)] = client.xrange("errata:edits:dead")
    assert fields[b"errata.reason"] == b"handed out 4 times without being acknowledged; allowed: 3"
    assert subjects(journal) == [] and pending(client) == 0 and len(journal.requests("rejected")) == 1


def test_an_entry_deleted_while_it_was_pending_holds_nothing_up(server: str, client: Any, journal: Journal) -> None:
    names = add(client, record(1), record(2))
    open_stream(server).read(0.01)
    client.xdel("errata:edits", names[0])
    drain(open_stream(server), journal)
    assert subjects(journal) == ["S2"] and pending(client) == 0


def test_a_server_that_goes_away_and_comes_back(tmp_path: Path, journal: Journal, caplog: Any) -> None:
    options = ("--appendonly", "yes", "--appendfsync", "always")
    port, process = start_server(tmp_path, *options)
    url = f"redis://127.0.0.1:{port}/0"
    with redis.Redis.from_url(url) as client:
        add(client, record(1))
    source = open_stream(url)
    first = source.read(0.1)
    process.kill()
    process.wait()
    journal.accept([d.request for d in first if d.request])
    source.ack(*first)
    assert source.read(0.01) == [] and "the Redis server is away" in caplog.text
    _, process = start_server(tmp_path, *options, port=port)
    try:
        with redis.Redis.from_url(url) as client:
            add(client, record(2))
            for _ in range(3):
                drain(source, journal)
            assert subjects(journal) == ["S1", "S2"] and pending(client) == 0
    finally:
        process.kill()
        process.wait()


def test_a_group_that_vanishes_is_made_again(server: str, client: Any, journal: Journal) -> None:
    add(client, record(1))
    source = open_stream(server)
    drain(source, journal)
    client.flushall()
    add(client, record(1), record(2))
    assert source.read(0.01) == []
    drain(source, journal)
    assert subjects(journal) == ["S1", "S2"]


def test_mistakes_are_said_before_anything_is_read(server: str, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client.set("errata:edits", "text")
    with pytest.raises(UserError, match=r"stream 'errata:edits': .*WRONGTYPE|wrong kind"):
        open_stream(server)
    with pytest.raises(UserError, match=r"stream\.redis redis://127\.0\.0\.1:1/0"):
        open_stream("redis://127.0.0.1:1/0")
    with pytest.raises(ValidationError, match=PASSWORD):
        RedisConfig(url="redis://:secret@host/0")
    client.config_set("requirepass", "right")
    try:
        for given in (None, "wrong"):
            if given is not None:
                monkeypatch.setenv(PASSWORD, given)
            with pytest.raises(UserError, match=r"stream\.redis") as refused:
                open_stream(server, stream="other")
            assert "right" not in str(refused.value)
        monkeypatch.setenv(PASSWORD, "right")
        assert open_stream(server, stream="other").read(0.01) == []
    finally:
        client.config_set("requirepass", "")
