"""Connections over real sockets: a cap, a time for the head of a request, refusals that do not fill the log."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn

from errata.orchestrator.service.connections import RESERVE, Buckets, ConnectionGuard, protocol


async def app(scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@contextmanager
def serving(guard: ConnectionGuard) -> Iterator[int]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", http=protocol(guard))
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive()


def wait_for(condition: Any, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def connect(port: int) -> socket.socket:
    found = socket.create_connection(("127.0.0.1", port))
    found.settimeout(20)
    return found


def ask(found: socket.socket) -> bytes:
    found.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = b""
    while not answer.endswith(b"ok"):
        part = found.recv(4096)
        if not part:
            break
        answer += part
    return answer


def ended(found: socket.socket) -> bool:
    """Whether the other side has closed it."""
    try:
        return found.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_head_that_never_ends_is_given_up_and_others_are_served() -> None:
    guard = ConnectionGuard(100, 0.3)
    with serving(guard) as port:
        slow = connect(port)
        slow.sendall(b"GET / HTTP/1.1\r\nHost:")
        silent = connect(port)
        good = connect(port)
        assert ask(good).startswith(b"HTTP/1.1 200") and ask(good).startswith(b"HTTP/1.1 200")
        good.sendall(b"GET / HT")  # the second request of a connection is no way around
        assert ended(slow) and ended(silent) and ended(good)
        wait_for(lambda: guard.open == 0)
        assert guard.late == 3


def test_an_answer_may_take_longer_than_a_head() -> None:
    guard = ConnectionGuard(100, 0.2)

    async def slowly(scope: Any, receive: Any, send: Any) -> None:
        import asyncio

        await asyncio.sleep(0.6)
        await app(scope, receive, send)

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(slowly, log_config=None, access_log=False, lifespan="off", http=protocol(guard))
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    try:
        assert ask(connect(listener.getsockname()[1])).startswith(b"HTTP/1.1 200")
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
    assert guard.late == 0


def test_beyond_the_cap_a_connection_is_refused_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    guard = ConnectionGuard(5, 60)
    with serving(guard) as port:
        held = [connect(port) for _ in range(5)]
        wait_for(lambda: guard.open == 5)
        for _ in range(50):
            assert ended(connect(port))
        assert guard.refused == 50 and guard.open == 5
        said = [record for record in caplog.records if "connections in use" in record.message]
        assert len(said) == 1
        held.pop().close()
        wait_for(lambda: guard.open == 4)
        assert ask(connect(port)).startswith(b"HTTP/1.1 200")
        for one in held:
            one.close()


def test_the_cap_leaves_descriptors_for_the_journal() -> None:
    assert ConnectionGuard(10_000, 1, descriptors=256).most == 256 - RESERVE
    assert ConnectionGuard(10, 1, descriptors=256).most == 10
    assert ConnectionGuard(10, 1, descriptors=20).most == 1


def test_a_bucket_lets_a_burst_through_and_then_the_rate() -> None:
    buckets = Buckets(rate=2.0, burst=3)
    assert [buckets.wait("a", 0.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert buckets.wait("a", 0.0) == pytest.approx(0.5)
    assert buckets.wait("b", 0.0) == 0.0  # another caller has a bucket of its own
    assert buckets.wait("a", 0.5) == 0.0
    assert buckets.wait("a", 0.6) == pytest.approx(0.4)
    # in ten seconds twenty calls, whoever tries how often
    taken = sum(buckets.wait("c", second / 100) == 0.0 for second in range(1000))
    assert taken == pytest.approx(3 + 20, abs=1)


def test_buckets_of_callers_that_left_are_forgotten() -> None:
    buckets = Buckets(rate=1.0, burst=10)
    for number in range(1000):
        buckets.wait(f"address {number}", 1.0)
    buckets.wait("later", 30.0)
    assert len(buckets) <= 1
