"""Streams that go on, with the real command: a followed file and a Redis stream, SIGKILL in the middle, then on.

Batches form by count here, so what comes out is, bit for bit, what an undisturbed run over the same edits in one file
comes to.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from errata.editing.errors import UserError
from errata.orchestrator.config.loading import build_config
from errata.orchestrator.history.rebuild import BaseCheckpoint
from errata.orchestrator.history.verify import verify
from errata.orchestrator.journal import Journal
from errata.orchestrator.sources.jsonl_follow import EVENT as PLACE
from tests.integration.harness import Outcome, facts, go, outcome, settings, write_stream
from tests.integration.service.soak import start_redis

ROOT = Path(__file__).parents[2]
STREAM = "errata:edits"
RECORDS = facts(12)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def plain(model: Path, stream: Path, **stream_settings: Any) -> dict[str, Any]:
    """Nothing is sampled and nothing measured; batches of two take a second, so that a kill meets one under way."""
    data = settings(
        model,
        stream,
        editor={"values": {"steps": 40, "lr": 0.01}},
        batching={"size": 2},
        covariance={"source": "identity", "tokens": None},
        refresh={"every": None},
        evaluation={"every": None, "held_out": None, "sample": 1, "arms": ["base", "edited"]},
        snapshots={"every": 2},
    )
    return data | ({"stream": stream_settings} if stream_settings else {})


@dataclass(frozen=True)
class Expected:
    outcome: Outcome
    model: Path


@pytest.fixture(scope="module")
def expected(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Expected:
    directory = tmp_path_factory.mktemp("whole")
    stream = write_stream(directory / "edits.jsonl", RECORDS)
    go(build_config(plain(tiny_checkpoint, stream)), directory / "run")
    return Expected(outcome(directory / "run"), tiny_checkpoint)


class Command:
    """`errata run` on one configuration, killed with everything it has started."""

    def __init__(self, directory: Path, data: dict[str, Any]) -> None:
        self.output, self._log = directory / "run", directory / "log.txt"
        self._config = directory / "config.yaml"
        self._config.write_text(yaml.safe_dump(data))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str) -> None:
        command = [
            sys.executable,
            "-m",
            "errata.orchestrator.cli",
            "run",
            str(self._config),
            "--output",
            str(self.output),
        ]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *arguments],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def until(self, true: Callable[[Journal], bool], seconds: float = 200) -> None:
        """Wait for something to stand in the journal."""
        assert self.process is not None
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self._log.read_text()[-2000:]
            with contextlib.suppress(UserError), Journal.open(self.output / "journal.sqlite", read_only=True) as found:
                if true(found):
                    return
            time.sleep(0.05)
        raise AssertionError(f"it did not come: {self._log.read_text()[-2000:]}")

    def kill(self) -> None:
        """SIGKILL for the process and every one below it."""
        assert self.process is not None
        tree = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait(60)
        for process in tree:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(tree, timeout=30)

    def terminate(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Callable[[dict[str, Any]], Command]]:
    made: list[Command] = []

    def make(data: dict[str, Any]) -> Command:
        made.append(Command(tmp_path, data))
        return made[-1]

    yield make
    for one in made:
        one.close()


def edits(count: int) -> Callable[[Journal], bool]:
    return lambda journal: journal.head().edits >= count


def same(run: Path, expected: Expected) -> None:
    """0 lost, 0 doubled, the same batches, the same bytes."""
    found = outcome(run)
    assert set(found.applications.values()) == {1} and len(found.states) == 12
    assert found.states == expected.outcome.states
    assert (found.batches, found.deltas, found.version) == (
        expected.outcome.batches,
        expected.outcome.deltas,
        expected.outcome.version,
    )
    report = verify(run, BaseCheckpoint(expected.model))
    assert report.sound, report.problems


def append(path: Path, records: list[dict[str, Any]], *, half: bool = False) -> None:
    text = "".join(json.dumps(record) + "\n" for record in records)
    with path.open("a") as file:
        file.write(text[:-20] if half else text)


def test_a_followed_file_goes_on_where_it_was_left(expected: Expected, command: Any, tmp_path: Path) -> None:
    path = tmp_path / "edits.jsonl"
    run = command(plain(expected.model, path, path=str(path), follow=True))
    run.start()
    run.until(lambda journal: True)
    append(path, RECORDS[:5])
    run.until(edits(2))
    append(path, RECORDS[5:7], half=True)  # killed in the middle of a line
    run.kill()
    with Journal.open(run.output / "journal.sqlite", read_only=True) as journal:
        place = journal.events(PLACE)[-1].data
        assert 5 <= place["line"] <= 6 and place["offset"] <= path.stat().st_size
        assert journal.head().edits < 12
    with path.open("a") as file:
        file.write((json.dumps(RECORDS[6]) + "\n")[-20:])
    append(path, RECORDS[7:9])
    run.start("--resume")
    run.until(edits(6))
    run.kill()
    path.rename(tmp_path / "edits.jsonl.1")  # rotated while nobody was reading
    append(path, RECORDS[9:])
    run.start("--resume")
    run.until(edits(12))
    assert run.terminate() == 130
    same(run.output, expected)
    with Journal.open(run.output / "journal.sqlite", read_only=True) as journal:
        place = journal.events(PLACE)[-1].data
        assert (place["generation"], place["line"], place["offset"]) == (2, 3, path.stat().st_size)


def test_a_redis_stream_goes_on_where_it_was_left(expected: Expected, command: Any, tmp_path: Path) -> None:
    import redis

    url, server = start_redis(tmp_path)
    try:
        client = redis.Redis.from_url(url)
        # two at a time, so that a kill leaves entries read and not acknowledged
        run = command(plain(expected.model, tmp_path / "none.jsonl", redis={"url": url, "stream": STREAM, "count": 2}))
        for record in RECORDS[:7]:
            client.xadd(STREAM, {"edit": json.dumps(record)})
        run.start()
        run.until(edits(2))
        run.kill()
        for record in (RECORDS[0], *RECORDS[7:10]):  # one of them for the second time
            client.xadd(STREAM, {"edit": json.dumps(record)})
        run.start("--resume")
        run.until(edits(6))
        run.kill()
        for record in RECORDS[10:]:
            client.xadd(STREAM, {"edit": json.dumps(record)})
        run.start("--resume")
        run.until(edits(12))
        assert run.terminate() == 130
        (group,) = client.xinfo_groups(STREAM)
        assert (group["lag"], group["pending"]) == (0, 0) and not client.exists(f"{STREAM}:dead")
        same(run.output, expected)
    finally:
        server.kill()
        server.wait()
