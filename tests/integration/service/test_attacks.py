"""Hostile clients, a held journal, jumping clocks and signals against a service in a process of its own.

Its pipeline has no models (`tests.helpers.hosted`): what is tried is the edge, the journal and the end. Minutes.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from errata.orchestrator.journal import Journal
from tests.helpers.service import edit
from tests.integration.service.hosting import Hosted, hosted, until

JSON_TYPE = {"Content-Type": "application/json"}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def sockets(served: Hosted, count: int) -> list[socket.socket]:
    """Connections that say nothing."""
    found = []
    for _ in range(count):
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex(served.address)
        found.append(one)
    return found


def test_more_connections_than_descriptors_neither_stop_the_service_nor_fill_its_log(tmp_path: Path) -> None:
    with hosted(tmp_path, descriptors=256, service={"head_seconds": 5.0}) as served:
        for wave in range(4):
            silent = sockets(served, 300)
            with served.client() as client:  # those who were there before are cut off after head_seconds at most
                until(lambda client=client: _answers(client))  # type: ignore[misc]
                until(lambda client=client, n=wave: _takes(client, n))  # type: ignore[misc]
            for one in silent:
                one.close()
        assert served.process.poll() is None
        assert served.log.stat().st_size < 100_000, served.log.read_text()[-2000:]
        with Journal.open(tmp_path / "journal.sqlite", read_only=True) as journal:
            assert len(journal.requests()) == 4


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False


def _takes(client: httpx.Client, number: int) -> bool:
    try:
        return client.post("/v1/edits", json=edit(number)).status_code == 202
    except httpx.TransportError:
        return False


def test_heads_and_bodies_that_never_end_are_given_up(tmp_path: Path) -> None:
    with hosted(tmp_path, service={"head_seconds": 1.0}) as served:
        half: list[socket.socket] = []
        begun = b"GET /healthz HTTP/1.1\r\nHost: "
        for said in (begun, b"P", b"", begun + b"x\r\nX-A: " + b"a" * 4000):
            for _ in range(20):
                one = socket.create_connection(served.address)
                one.sendall(said)
                half.append(one)
        drip = socket.create_connection(served.address)
        drip.sendall(b"GET / HTTP/1.1\r\n")
        with served.client() as client:
            assert client.get("/healthz").status_code == 200
        for one in half:
            one.settimeout(60)
            with contextlib.suppress(ConnectionResetError):
                assert one.recv(4096) == b""
        # a byte now and then is no way around
        ended = False
        for _ in range(200):
            try:
                drip.sendall(b"x")
                time.sleep(0.05)
            except OSError:
                ended = True
                break
        assert ended
        with served.client() as client:
            until(lambda: client.get("/healthz").status_code == 200)


def test_a_journal_held_for_ninety_seconds(tmp_path: Path) -> None:
    """Whoever writes gets 503 within seconds, whoever reads an answer; afterwards all goes on, in the same process."""
    with hosted(tmp_path, lock_seconds=1) as served, served.client() as client:
        assert client.post("/v1/edits", json=edit(1)).status_code == 202
        until(lambda: client.get("/v1/edits/edit-1").json()["state"] == "applied")
        seen: Counter[tuple[str, int]] = Counter()
        slowest = 0.0
        other = sqlite3.connect(tmp_path / "journal.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        try:
            ends, number = time.monotonic() + float(os.environ.get("ERRATA_LOCK_SECONDS", "90")), 1
            while time.monotonic() < ends:
                number += 1
                for method, path, body in (
                    ("POST", "/v1/edits", edit(number)),
                    ("DELETE", "/v1/edits/edit-1", None),
                    ("GET", "/v1/edits/edit-1", None),
                    ("GET", "/healthz", None),
                ):
                    started = time.monotonic()
                    seen[method + path[:9], client.request(method, path, json=body).status_code] += 1
                    slowest = max(slowest, time.monotonic() - started)
        finally:
            other.execute("ROLLBACK")
            other.close()
        print(f"\njournal held: {dict(seen)}, slowest answer {slowest:.1f} s")
        assert {status for (_, status) in seen} == {200, 503}
        assert {status for (name, status) in seen if name.startswith(("POST", "DELETE"))} == {503}
        assert client.post("/v1/edits", json=edit(1000)).status_code == 202
        until(lambda: client.get("/v1/edits/edit-1000").json()["state"] == "applied")
        assert client.delete("/v1/edits/edit-1").status_code == 200
        assert served.process.poll() is None


@pytest.mark.parametrize("jump", [-86400.0, -3600.0, 3600.0, 86400.0])
def test_a_clock_that_jumps_holds_no_edit_up(tmp_path: Path, jump: float) -> None:
    with hosted(tmp_path) as served, served.client() as client:
        assert client.post("/v1/edits", json=edit(1)).status_code == 202
        until(lambda: client.get("/v1/edits/edit-1").json()["state"] == "applied")
        (tmp_path / "clock").write_text("0")
        client.post("/v1/pause", json={})
        assert client.post("/v1/edits", json=edit(2)).status_code == 202
        (tmp_path / "clock").write_text(str(jump))
        client.post("/v1/resume", json={})
        until(lambda: client.get("/v1/edits/edit-2").json()["state"] == "applied", 60)
        assert client.post("/v1/edits", json=edit(3)).status_code == 202
        until(lambda: client.get("/v1/edits/edit-3").json()["state"] == "applied", 60)
        assert client.post("/v1/query", json={"question": "Where?"}).status_code == 200
        assert served.process.poll() is None


def test_many_who_give_up_leave_no_question_behind(tmp_path: Path) -> None:
    body = json.dumps({"question": "Where?"}).encode()
    head = (
        f"POST /v1/query HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        "\r\n\r\n"
    )
    with hosted(tmp_path, hold_questions=True, service={"max_queries": 8}) as served, served.client() as client:

        def refused() -> bool | None:
            try:
                return client.post("/v1/query", content=body, headers=JSON_TYPE, timeout=1.0).status_code == 429
            except httpx.ReadTimeout:
                return None  # it was taken in, and has gone

        for _ in range(10):
            waiting: list[socket.socket] = []

            def ask(waiting: list[socket.socket] = waiting) -> None:
                one = socket.create_connection(served.address)
                one.sendall(head.encode() + body)
                waiting.append(one)

            def full(ask: Callable[[], None] = ask) -> bool:
                if refused():
                    return True
                ask()  # the look itself may have had the place of one of them, which was refused
                return False

            for _ in range(8):
                ask()
            until(full)
            for one in waiting:
                one.close()
            until(lambda: refused() is None)
