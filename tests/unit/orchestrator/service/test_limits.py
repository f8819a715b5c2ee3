"""What every call goes through: the token before the body, names, rates, the record of reads."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from errata.orchestrator.service.access import Limits
from errata.orchestrator.service.connections import Buckets


class Call:
    """One call through the middleware: what it answered, and how much of the body was read."""

    def __init__(self, limits: Limits, method: str = "POST", path: str = "/v1/edits", **headers: str) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.read = 0
        self._method = method
        given = {"host": "errata.example.org", **headers}
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "client": ("192.0.2.1", 1),
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()],
        }
        asyncio.run(limits(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        self.read += 1
        return {"type": "http.request", "body": b"{}" if self._method == "POST" else b"", "more_body": False}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])


async def ok(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def limits(**changes: Any) -> Limits:
    settings: dict[str, Any] = {"max_body": 1000, "loopback_only": False, "answered": lambda *_: None, **changes}
    return Limits(ok, **settings)


JSON = {"content_type": "application/json", "content_length": "2"}


def test_without_a_valid_token_no_body_is_read() -> None:
    guarded = limits(caller=lambda given: "read:1" if given == "Bearer right" else None)
    for headers in ({}, {"authorization": "Bearer wrong"}):
        refused = Call(guarded, **JSON, **headers)
        assert refused.status == 401 and refused.read == 0 and refused.headers[b"connection"] == b"close"
    chunked = Call(guarded, content_type="application/json", transfer_encoding="chunked")
    assert chunked.status == 401 and chunked.read == 0
    assert Call(guarded, **JSON, authorization="Bearer right").status == 200
    assert Call(guarded, "GET", "/", content_length="0").status == 200  # a page without a body: the route decides


def test_names_are_checked_with_tokens_as_well() -> None:
    named = limits(hosts=frozenset({"errata.example.org"}), caller=lambda _: "x")
    assert Call(named, "GET", "/").status == 200
    assert Call(named, "GET", "/", host="errata.example.org:8080").status == 200
    assert Call(named, "GET", "/", host="localhost:8080").status == 200
    assert Call(named, "GET", "/", host="evil.example.com").status == 421
    assert Call(limits(), "GET", "/", host="anything").status == 200


def test_more_calls_than_the_rate_are_told_when_to_come_again_and_probes_are_not_counted() -> None:
    bounded = limits(calls=Buckets(rate=0.5, burst=2), caller=lambda given: given)
    statuses = [Call(bounded, "GET", "/v1/edits", authorization="Bearer a").status for _ in range(3)]
    assert statuses == [200, 200, 429]
    again = Call(bounded, "GET", "/v1/edits", authorization="Bearer a")
    assert again.status == 429 and 1 <= int(again.headers[b"retry-after"]) <= 2
    assert Call(bounded, "GET", "/v1/edits", authorization="Bearer b").status == 200
    assert all(Call(bounded, "GET", "/healthz", authorization="Bearer a").status == 200 for _ in range(10))


def test_reads_are_recorded_where_that_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[tuple[str, str, str]] = []
    recorded = limits(caller=lambda _: "read:12ab", audit=lambda *what: seen.append(what))
    with caplog.at_level(logging.INFO):
        Call(recorded, "GET", "/v1/edits/a", authorization="Bearer a")
        Call(recorded, "GET", "/", authorization="Bearer a")
        Call(recorded, **JSON, authorization="Bearer a")
    assert seen == [("read:12ab", "GET", "/v1/edits/a")]
