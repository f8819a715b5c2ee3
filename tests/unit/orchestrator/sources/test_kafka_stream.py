"""A Kafka topic over real sockets: 0 lost, 0 doubled, whoever dies when.

The cluster is librdkafka's own mock, or the broker that ``ERRATA_TEST_KAFKA`` names (HOST:PORT).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from pydantic import ValidationError

from errata.editing.errors import UserError
from errata.orchestrator.config.stream import KAFKA_PASSWORD, KafkaConfig, StreamConfig
from errata.orchestrator.journal import Journal
from errata.orchestrator.sources import take_in
from tests.helpers.streams import new_journal, record

kafka = pytest.importorskip("confluent_kafka", reason="the extra 'kafka' is not installed here")
from confluent_kafka.admin import AdminClient, NewTopic  # noqa: E402 - needs the extra

from errata.orchestrator.sources.kafka_stream import KafkaStream  # noqa: E402 - needs the extra

SESSION = 6.0
"""Seconds after which the mock cluster gives a dead reader's partitions away."""
CLUSTER = dedent("""
    import sys
    from confluent_kafka import Producer
    client = Producer({"bootstrap.servers": "", "test.mock.num.brokers": 1})
    print(",".join(f"{b.host}:{b.port}" for b in client.list_topics(timeout=20).brokers.values()), flush=True)
    sys.stdin.read()
""")


BROKER = os.environ.get("ERRATA_TEST_KAFKA")


class Cluster:
    """A cluster that is there, or a mock in a process of its own, which ends with this object."""

    def __init__(self, servers: str | None = None) -> None:
        self.process: subprocess.Popen[str] | None = None
        if servers is not None:
            self.servers = servers
            return
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        self.servers = self.process.stdout.readline().strip()
        assert self.servers

    def send(self, topic: str, *values: bytes | dict[str, Any] | None) -> None:
        made = AdminClient({"bootstrap.servers": self.servers}).create_topics([NewTopic(topic, 4, 1)])[topic]
        with suppress(kafka.KafkaException):  # it is there, or the mock makes it with its first record
            made.result(30)
        producer = kafka.Producer({"bootstrap.servers": self.servers})
        for number, value in enumerate(values):
            data = json.dumps(value).encode() if isinstance(value, dict) else value
            producer.produce(topic, value=data, key=str(number).encode())
            producer.poll(0)
        assert producer.flush(30) == 0

    def everything(self, topic: str, expected: int) -> list[Any]:
        """All records of a topic, read by a group of its own."""
        options = {"bootstrap.servers": self.servers, "group.id": f"look-{random.random()}"}
        reader = kafka.Consumer({**options, "auto.offset.reset": "earliest", "session.timeout.ms": 6000})
        reader.subscribe([topic])
        found: list[Any] = []
        until = time.monotonic() + 60
        while len(found) < expected and time.monotonic() < until:
            found += [message for message in reader.consume(100, timeout=1.0) if message.error() is None]
        reader.close()
        return found

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(BROKER)
    yield cluster
    cluster.end()


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    return f"t{abs(hash(request.node.name)) % 10**9}-{os.getpid()}"


def open_stream(cluster: Cluster, topic: str, **changes: Any) -> KafkaStream:
    settings = {"servers": cluster.servers, "topic": topic, "session_timeout_seconds": SESSION, **changes}
    return KafkaStream(KafkaConfig(**settings))


def take_all(source: KafkaStream, journal: Journal, expected: int) -> None:
    """Take in until the journal has heard of as many records, accepted or rejected."""
    until = time.monotonic() + 90
    while journal.counts().requests < expected:
        assert time.monotonic() < until, f"{journal.counts()} of {expected}"
        take_in(journal, source, 0.5)


def subjects(journal: Journal) -> list[str]:
    return sorted(row.request.subject for row in journal.requests("accepted"))


def test_records_are_accepted_then_their_offsets_committed(cluster: Cluster, topic: str, journal: Journal) -> None:
    cluster.send(topic, *(record(number) for number in range(300)))
    source = open_stream(cluster, topic)
    take_all(source, journal, 300)
    source.close()
    cluster.send(topic, record(300))
    source = open_stream(cluster, topic)  # goes on where the group stands
    take_all(source, journal, 301)
    source.close()
    assert subjects(journal) == sorted(f"S{number}" for number in range(301))


def test_what_is_no_request_goes_to_the_dead_letters_with_the_reason(
    cluster: Cluster, topic: str, journal: Journal
) -> None:
    cluster.send(topic, b"{", b"\xff", None, {"subject": "x"}, record(1), record(1))
    source = open_stream(cluster, topic)
    take_all(source, journal, 5)
    source.close()
    assert subjects(journal) == ["S1"]
    dead = cluster.everything(f"{topic}.dead", 4)
    reasons = sorted(dict(message.headers())["errata.reason"].decode() for message in dead)
    assert len(dead) == 4 and sum("malformed" in reason for reason in reasons) == 2
    assert {message.value() for message in dead} == {b"{", b"\xff", None, json.dumps({"subject": "x"}).encode()}
    assert all(dict(message.headers())["errata.topic"] == topic.encode() for message in dead)
    assert len(journal.requests("rejected")) == 4


def test_what_was_read_and_not_acknowledged_comes_again(cluster: Cluster, topic: str, journal: Journal) -> None:
    cluster.send(topic, *(record(number) for number in range(20)))
    source = open_stream(cluster, topic)
    found: list[Any] = []
    while len(found) < 20:
        found += source.read(1.0)
    source.close()  # the journal never heard of them
    again = open_stream(cluster, topic)
    take_all(again, journal, 20)
    again.close()
    assert subjects(journal) == sorted(f"S{number}" for number in range(20))


READER = dedent("""
    import sys
    from pathlib import Path
    from errata.orchestrator.config.stream import KafkaConfig
    from errata.orchestrator.journal import Journal
    from errata.orchestrator.sources import take_in
    from errata.orchestrator.sources.kafka_stream import KafkaStream
    servers, topic, path = sys.argv[1:]
    source = KafkaStream(KafkaConfig(servers=servers, topic=topic, session_timeout_seconds=6.0, count=64))
    with Journal.open(Path(path)) as journal:
        while True:
            take_in(journal, source, 0.2)
            print(journal.counts().requests, flush=True)
""")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kill_9_at_random_moments_over_5000_records(cluster: Cluster, topic: str, tmp_path: Path) -> None:
    """Each reader is killed somewhere between reading, the journal's transaction and the commit of its offsets."""
    total, path, random_ = 5000, tmp_path / "journal.sqlite", random.Random(7)
    new_journal(path).close()
    cluster.send(topic, *(record(number) for number in range(total)))
    root = str(Path(__file__).parents[4])
    command = [sys.executable, "-c", READER, cluster.servers, topic, str(path)]
    known, deaths = 0, 0
    until = time.monotonic() + 850
    while known < total:
        assert time.monotonic() < until, f"{known} of {total} after {deaths} deaths"
        reader = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root})
        assert reader.stdout is not None
        patience = known + random_.randrange(200, 1200)
        for line in reader.stdout:
            known = int(line)
            if known >= min(patience, total):
                break
        time.sleep(random_.random() * 0.02)
        reader.send_signal(signal.SIGKILL)
        assert reader.wait() == -signal.SIGKILL
        deaths += 1
    assert deaths >= 4
    with Journal.open(path, read_only=True) as journal:
        assert subjects(journal) == sorted(f"S{number}" for number in range(total)), "0 lost, 0 doubled"
    print({"records": total, "deaths": deaths})


def test_mistakes_are_said_before_anything_is_read(cluster: Cluster, topic: str) -> None:
    with pytest.raises(UserError, match=r"stream\.kafka 127\.0\.0\.1:1, topic"):
        KafkaStream(KafkaConfig(servers="127.0.0.1:1", topic=topic, options={"socket.timeout.ms": "1000"}))
    with pytest.raises(UserError, match=r"stream\.kafka: .*no\.such\.option"):
        open_stream(cluster, topic, options={"no.such.option": "1"})
    for bad in ({"options": {"sasl.password": "x"}}, {"options": {"enable.auto.commit": "true"}}, {"topic": "a b"}):
        with pytest.raises(ValidationError) as refused:
            KafkaConfig(**bad)
        if "sasl.password" in str(bad):
            assert KAFKA_PASSWORD in str(refused.value)
    with pytest.raises(ValidationError, match="one of a file"):
        StreamConfig(redis={}, kafka={})
    assert StreamConfig(kafka={}).endless


def test_a_cluster_that_goes_away_is_waited_for(topic: str, caplog: pytest.LogCaptureFixture) -> None:
    cluster = Cluster()
    cluster.send(topic, record(1))
    source = open_stream(cluster, topic)
    first = source.read(8.0)
    cluster.end()
    until = time.monotonic() + 30
    while "topic" not in caplog.text and time.monotonic() < until:
        assert source.read(0.5) == []
    assert len(first) == 1 and topic in caplog.text
    source.ack(*first)  # said in the log, and harmless: it comes again
    source.close()
