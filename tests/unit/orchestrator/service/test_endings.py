"""Clients that leave, deadlines, a journal that another process holds, clocks that jump, and an end in the middle."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from errata.orchestrator.run.batches import Batcher
from errata.orchestrator.service.server import BACKLOG, Quiet, Server
from tests.helpers.routes import CALLS, routes_of
from tests.helpers.service import Running, edit, running

CHAT = {"model": "errata-edited", "messages": [{"role": "user", "content": "Where does Rome lie?"}]}


def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextmanager
def listening(run: Running) -> Iterator[tuple[str, Server]]:
    """The application behind its own server, in a thread, on a port of its own."""
    import socket

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(run.client.app, log_config=None, access_log=False, lifespan="off", backlog=BACKLOG)
    server = Server(config, run.core.drain)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", server
    finally:
        server.should_exit = True
        thread.join(40)
        listener.close()
        assert not thread.is_alive()


@contextmanager
def locked(journal: Path) -> Iterator[None]:
    """The journal's file, held by somebody else in the middle of a transaction."""
    other = sqlite3.connect(journal, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


# ---------------------------------------------------------------- questions


@pytest.mark.parametrize("path, body", [("/v1/query", {"question": "Where?"}), ("/v1/chat/completions", CHAT)])
def test_a_question_ends_when_its_client_has_gone(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    with running(tmp_path) as run, listening(run) as (url, _):
        until(lambda: run.core.ready)
        run.evaluators.gate.clear()
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url + path, json=body, timeout=0.5)
        until(lambda: run.evaluators.given_up == ["AbandonedError"])
        until(lambda: run.service.asking._room._value == run.core.config.max_queries)


@pytest.mark.parametrize("path, body", [("/v1/query", {"question": "Where?"}), ("/v1/chat/completions", CHAT)])
def test_a_question_that_takes_too_long_is_504_and_given_up(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    with running(tmp_path, answer_seconds=0.3) as run:
        until(lambda: run.core.ready)
        run.evaluators.gate.clear()
        answer = run.client.post(path, json=body)
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "deadline"
        until(lambda: len(run.evaluators.given_up) == 1)
        until(lambda: run.service.asking._room._value == run.core.config.max_queries)


# ---------------------------------------------------------------- evaluations


def test_evaluations_are_bounded_listed_and_taken_back(tmp_path: Path) -> None:
    with running(tmp_path, max_evaluations=2) as run:
        run.client.post("/v1/edits", json=edit(1))
        until(lambda: run.journal.head().sequence == 1)
        run.pipeline.measure_gate.clear()
        first, second = (run.client.post("/v1/evaluations", json={}).json() for _ in range(2))
        assert {first["name"], second["name"]} == {"e1", "e2"}
        third = run.client.post("/v1/evaluations", json={})
        assert third.status_code == 429 and "retry-after" in third.headers

        def states() -> list[str]:
            return [asked["state"] for asked in run.client.get("/v1/evaluations").json()["asked"]]

        until(lambda: states() == ["running", "running"])
        assert run.client.delete("/v1/evaluations/e1").status_code == 200
        until(lambda: states() == ["canceled", "running"])
        assert run.client.post("/v1/evaluations", json={}).status_code == 202, "there is room again"
        run.pipeline.measure_gate.set()
        until(lambda: states() == ["canceled", "done", "done"])
        assert run.client.delete("/v1/evaluations/e2").json()["state"] == "done", "what is done stays done"
        assert run.client.delete("/v1/evaluations/e9").status_code == 404


def test_an_evaluation_that_waits_for_the_writer_is_never_begun_once_taken_back(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        run.client.post("/v1/edits", json=edit(1))
        until(lambda: run.journal.head().sequence == 1)
        run.pipeline.gate.clear()
        run.client.post("/v1/edits", json=edit(2))
        assert run.pipeline.writing.wait(20)
        name = run.client.post("/v1/evaluations", json={}).json()["name"]
        assert run.client.delete(f"/v1/evaluations/{name}").json()["state"] == "canceled"
        run.pipeline.gate.set()
        until(lambda: run.journal.head().sequence == 2 and run.core.queued == 0)
        assert run.client.get("/v1/evaluations").json()["evaluations"] == []


# ---------------------------------------------------------------- what may wait


def test_what_waits_is_bounded_in_bytes_too(tmp_path: Path) -> None:
    with running(tmp_path, max_waiting_bytes=3000) as run:
        run.client.post("/v1/pause")
        long = {"target_new": "Rome " * 100}
        taken = [run.client.post("/v1/edits", json=edit(n, **long)).status_code for n in range(10)]
        assert taken[0] == 202 and taken[-1] == 429 and 2 <= taken.count(202) <= 5
        assert run.client.post("/v1/edits", json=edit(0, **long)).status_code == 202, "a known one is answered"
        assert run.client.post("/v1/edits", json=[edit(90 + n, **long) for n in range(9)]).status_code == 413
        run.client.post("/v1/resume")
        until(lambda: run.journal.waiting() == 0)
        # what was written makes room, which is looked for once a second
        until(lambda: run.client.post("/v1/edits", json=edit(50, **long)).status_code == 202)


# ---------------------------------------------------------------- a journal that is held


def test_a_journal_that_another_process_holds_is_503_for_whoever_writes_and_read_all_the_same(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        run.journal.patience(0.2)
        run.client.post("/v1/edits", json=edit(1))
        until(lambda: run.journal.head().sequence == 1)
        with locked(tmp_path / "journal.sqlite"):
            for answer in (
                run.client.post("/v1/edits", json=edit(2)),
                run.client.delete("/v1/edits/edit-1"),
                run.client.post("/v1/pause", json={}),
            ):
                assert answer.status_code == 503, answer.text
                assert answer.headers["retry-after"] and answer.json()["error"]["code"] == "unavailable"
            assert run.client.get("/v1/edits/edit-1").status_code == 200
            assert run.client.get("/healthz").status_code == 200
        assert run.client.post("/v1/edits", json=edit(2)).status_code == 202
        assert run.client.delete("/v1/edits/edit-1").status_code == 200
        assert run.core.failure is None


def test_a_batch_whose_commit_meets_a_held_journal_is_committed_once_it_is_free(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        run.journal.patience(0.1)
        until(lambda: run.core.ready)
        run.pipeline.gate.clear()
        run.client.post("/v1/edits", json=edit(1))
        assert run.pipeline.writing.wait(20)
        with locked(tmp_path / "journal.sqlite"):
            run.pipeline.gate.set()
            # another thread is let in between two tries, and hears that the file is held
            assert run.client.post("/v1/edits", json=edit(2)).status_code == 503
            assert run.journal.head().sequence == 0
        until(lambda: run.journal.head().sequence == 1)
        assert run.core.failure is None and run.core.state == "running"


# ---------------------------------------------------------------- the end


def test_when_the_end_begins_everybody_who_waits_is_answered(tmp_path: Path) -> None:
    with running(tmp_path, revert_wait_seconds=60) as run, listening(run) as (url, server):
        run.client.post("/v1/edits", json=edit(1))
        until(lambda: run.journal.head().sequence == 1)
        run.pipeline.gate.clear()
        run.client.post("/v1/edits", json=edit(2))
        assert run.pipeline.writing.wait(20)
        answers: dict[str, httpx.Response] = {}

        def call(name: str, method: str, path: str, **options: Any) -> None:
            answers[name] = httpx.request(method, url + path, timeout=60, **options)

        waiting = [
            threading.Thread(target=call, args=("revert", "DELETE", "/v1/edits/edit-1")),
            threading.Thread(target=call, args=("refresh", "POST", "/v1/refresh")),
            threading.Thread(target=call, args=("inspection", "GET", "/v1/inspection")),
        ]
        for thread in waiting:
            thread.start()
        until(lambda: run.core.queued == 3)
        server.should_exit = True
        for thread in waiting:
            thread.join(30)
        assert {name: answer.status_code for name, answer in answers.items()} == {
            "revert": 202, "refresh": 202, "inspection": 503,
        }  # fmt: skip
        assert run.pipeline.writing.is_set(), "and the batch is under way still"
        assert run.client.post("/v1/edits", json=edit(3)).status_code == 503
        run.pipeline.gate.set()


def test_a_batch_that_takes_longer_than_the_end_may_is_given_up(tmp_path: Path) -> None:
    with running(tmp_path, end_seconds=1) as run:
        until(lambda: run.core.ready)
        run.pipeline.gate.clear()
        run.client.post("/v1/edits", json=edit(1))
        assert run.pipeline.writing.wait(20)
        run.core.stop()
        assert run.pipeline.given_up and run.pipeline.closed and run.core.failure is None


def test_a_start_is_given_up_at_once(tmp_path: Path) -> None:
    """Nobody waits for it any more, and it has left no trace: it does not get the time that a batch gets."""
    with running(tmp_path, end_seconds=500, prepare=lambda pipeline: pipeline.start_gate.clear()) as run:
        run.core.stop()
        assert run.pipeline.given_up and run.pipeline.closed and run.core.failure is None


# ---------------------------------------------------------------- clocks


def test_a_batch_whose_oldest_edit_is_from_the_future_is_due() -> None:
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    batcher = Batcher(10, max_age_seconds=2.0)

    def due(age: float) -> bool:
        return batcher.due(1, ended=False, oldest=noon, now=noon + timedelta(seconds=age))

    assert [due(age) for age in (0, 1.9, 2.0, 86400, -0.1, -86400)] == [False, False, True, True, True, True]


@pytest.mark.parametrize("hours", [-5, 5])
def test_how_long_the_oldest_edit_waits_is_told_whatever_the_clock_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: float
) -> None:
    with running(tmp_path) as run:
        run.client.post("/v1/pause")
        run.journal._clock = lambda: datetime.now(UTC) - timedelta(hours=hours)  # it has jumped by so much since
        run.client.post("/v1/edits", json=edit(1))

        def told() -> float:
            lines = run.client.get("/metrics").text.splitlines()
            return float(next(line for line in lines if line.startswith("errata_queue_oldest_seconds ")).split()[1])

        first = told()
        until(lambda: told() > first)
        assert first >= 0.0 and (first > 4 * 3600) == (hours > 0)
        run.client.post("/v1/resume")
        until(lambda: run.journal.waiting() == 0)
        assert told() == 0.0


# ---------------------------------------------------------------- the log


def test_failures_to_take_connections_in_are_said_at_a_rate(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    quiet = Quiet(clock=lambda: now[0])
    context = {"message": "socket.accept() out of system resource", "exception": OSError(24, "Too many open files")}
    for second in range(25):
        now[0] = float(second)
        for _ in range(100):
            quiet(None, context)  # type: ignore[arg-type]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3 and quiet.failures == 2500 and "2001 times" in said[-1]


def test_every_route_has_a_call_with_which_the_end_is_tried(tmp_path: Path) -> None:
    """`tests/integration/service/test_end_of_every_route.py` sends them; a new route needs one."""
    with running(tmp_path, start=False) as run:
        assert routes_of(run.client.app) == set(CALLS)  # type: ignore[arg-type]
