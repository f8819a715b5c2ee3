"""SIGTERM while every route of the service is called: whole calls, half sent ones, new ones until nobody listens."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from errata.orchestrator.journal import Journal
from tests.helpers.routes import CALLS, Route
from tests.helpers.service import edit
from tests.integration.service.hosting import Hosted, hosted, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
EDITS: Route = ("POST", "/v1/edits")
NO_ANSWER = 0


@dataclass
class Calls:
    """What was answered, by the way of calling and the route."""

    served: Hosted
    answers: dict[str, dict[Route, Counter[int]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(Counter))
    )
    told: dict[str, int] = field(default_factory=dict)
    """By id of an edit the status of its answer."""
    stopping: threading.Event = field(default_factory=threading.Event)
    problems: list[str] = field(default_factory=list)

    def whole(self, route: Route) -> None:
        """One call, waited for."""
        path, body = CALLS[route]
        with httpx.Client(base_url=self.served.url, timeout=120) as own:
            status = own.request(route[0], path, json=body).status_code
        self.answers["whole"][route][status] += 1
        if route == EDITS:
            self.told |= {one["id"]: status for one in body}

    def again(self, route: Route) -> None:
        """One call after the other until nobody listens; an answer may be missing only then."""
        path, body = CALLS[route]
        number = 0
        while True:
            number += 1
            if route == EDITS:
                body = edit(0, id=f"again-{number}")
            try:
                with httpx.Client(base_url=self.served.url, timeout=60) as own:
                    status = own.request(route[0], path, json=body).status_code
            except httpx.ReadTimeout:
                self.problems.append(f"{route}: no answer within a minute")
                return
            except httpx.TransportError as error:
                if not self.stopping.is_set():
                    self.problems.append(f"{route}: {error!r} before the end")
                return
            self.answers["again"][route][status] += 1
            if route == EDITS:
                self.told[body["id"]] = status
            time.sleep(0.01)

    def half(self, route: Route) -> Callable[[], None]:
        """Send half a call, of its body where it has one, else of its head; what is returned sends the rest."""
        path, body = CALLS[route]
        content = b"" if body is None else json.dumps(edit(5000) if route == EDITS else body).encode()
        kind = f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n" if content else ""
        message = f"{route[0]} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{kind}\r\n".encode() + content
        at = len(message) - (1 + len(content) // 2 if content else 4)
        one = socket.create_connection(self.served.address, timeout=60)
        one.sendall(message[:at])

        def finish() -> None:
            said = b""
            with one, contextlib.suppress(OSError):
                one.sendall(message[at:])
                while b"\r\n" not in said and (more := one.recv(4096)):
                    said += more
            status = int(said.split(b" ")[1]) if said else NO_ANSWER
            self.answers["half"][route][status] += 1
            if route == EDITS:
                self.told["edit-5000"] = status

        return finish

    def statuses(self, way: str) -> dict[str, dict[int, int]]:
        return {" ".join(route): dict(found) for route, found in sorted(self.answers[way].items())}


def test_everybody_is_answered_as_documented_and_the_end_comes_in_time(tmp_path: Path) -> None:
    """Whoever waits is answered, 202 or 503, never 500; a batch of five minutes is given up after ``end_seconds``."""
    service = {
        "end_seconds": 15, "revert_wait_seconds": 300, "answer_seconds": 300, "max_queries": 64,
        "max_evaluations": 1000, "calls_per_second": None,
    }  # fmt: skip
    with hosted(tmp_path, batch_seconds=300, hold_questions=True, service=service) as served:
        with served.client() as client:
            assert client.post("/v1/edits", json=[edit(1), edit(2)]).status_code == 202
            until((tmp_path / "writing").exists)
            documented = client.get("/openapi.json").json()["paths"]
        calls = Calls(served)
        finish = [calls.half(route) for route in CALLS]
        waiting = [threading.Thread(target=calls.whole, args=(route,)) for route in CALLS]
        repeating = [threading.Thread(target=calls.again, args=(route,)) for route in CALLS]
        for thread in (*waiting, *repeating):
            thread.start()
        quick = [route for route in CALLS if route[0] == "GET" and route[1] != "/v1/inspection"]
        until(lambda: all(calls.answers["again"][route] for route in quick))
        until(lambda: _told(served, "errata_queue_commands") >= 3)
        calls.stopping.set()
        told = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        for send in finish:
            send()
        for thread in (*waiting, *repeating):
            thread.join(120)
        answered = time.monotonic() - told
        code = served.process.wait(120)
        ended = time.monotonic() - told
        log = served.log.read_text()
    for way in ("whole", "half", "again"):
        print(f"\n{way}: {json.dumps(calls.statuses(way))}")
    print(f"after SIGTERM: all answered after {answered:.1f} s, ended after {ended:.1f} s with code {code}")
    assert not calls.problems
    assert set(calls.answers["whole"]) == set(calls.answers["half"]) == set(CALLS)
    for way, routes in calls.answers.items():
        for route, found in routes.items():
            allowed = {200, 503} | {int(status) for status in _responses(documented, route)}
            if way == "half":
                allowed.add(NO_ANSWER)  # a call whose head was not there is none yet
            assert set(found) <= allowed, (way, route, found)
    assert set(calls.answers["whole"]["DELETE", "/v1/edits/{id:path}"]) == {202}, "promised, and done by the next start"
    for path in ("/v1/query", "/v1/chat/completions", "/v1/completions"):
        assert set(calls.answers["whole"]["POST", path]) <= {503, 429}, path
    assert code == 0 and answered < 40 and ended < 60, log[-3000:]
    assert "Traceback" not in log, log[-3000:]
    with Journal.open(tmp_path / "journal.sqlite", read_only=True) as journal:
        kept = {row.id for row in journal.requests()}
        assert journal.head().sequence == 0 and journal.waiting() == len(kept), "what waits stays, nothing half-written"
    assert {name for name, status in calls.told.items() if status == 202} <= kept
    assert not {name for name, status in calls.told.items() if status in (429, 503)} & kept, "nothing was taken"


def _responses(documented: dict[str, Any], route: Route) -> list[str]:
    path = route[1].replace("{id:path}", "{id}")
    return list(documented.get(path, {}).get(route[0].lower(), {}).get("responses", {}))


def _told(served: Hosted, name: str) -> float:
    """A figure of ``/metrics``."""
    with served.client() as client:
        lines = client.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])
