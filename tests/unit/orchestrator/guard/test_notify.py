"""Alerts by Apprise: in words, to every address, with nothing of an address in what is kept."""

from __future__ import annotations

import queue
from typing import Any

import pytest

from errata.editing.errors import UserError
from errata.orchestrator.guard.notify import NOTIFY, Notifier, in_words, notifiers
from errata.orchestrator.guard.webhook import Outcome

pytest.importorskip("apprise")

BREACH = {
    "run": "r1",
    "sequence": 7,
    "version": "ab" * 32,
    "edits": 70,
    "reasons": ["12 of 40 facts are lost"],
    "paused": "guard",
    "reverting": ["a", "b"],
}


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What Apprise's own JSON plugin posts, in place of a server."""
    import requests

    got: queue.Queue[Any] = queue.Queue()

    class Answer:
        status_code, content = 200, b""

    def post(url: str, data: Any = None, **_: Any) -> Answer:
        got.put((url, data))
        return Answer()

    monkeypatch.setattr(requests, "post", post)
    monkeypatch.setattr(requests.Session, "request", lambda self, method, url, **more: post(url, more.get("data")))
    return got


def test_a_breach_is_told_in_words_at_every_address(monkeypatch: pytest.MonkeyPatch, received: Any) -> None:
    monkeypatch.setenv(NOTIFY, "json://user:secret@one.example/x json://two.example/y")
    outcomes: queue.Queue[Outcome] = queue.Queue()
    made = notifiers(0, outcomes.put)
    for one in made:
        one.send(BREACH)
    told = [outcomes.get(timeout=60) for _ in made]
    for one in made:
        one.close()
    assert [outcome.delivered for outcome in told] == [True, True]
    assert {outcome.host for outcome in told} == {"json"}, "no address, no secret"
    bodies = [str(received.get(timeout=60)[1]) for _ in made]
    assert all("12 of 40 facts are lost" in body and "r1" in body for body in bodies)


def test_an_alert_says_what_happened_and_what_follows() -> None:
    title, body = in_words(BREACH)
    assert title == "Errata: guard breach in run r1"
    assert body.splitlines() == [
        "Version v7 (abababababab) after 70 edits does not hold.",
        "- 12 of 40 facts are lost",
        "2 edits are being taken back.",
        "The stream is paused until somebody resumes it.",
    ]


def test_an_address_that_apprise_does_not_know_is_one_line_without_it() -> None:
    with pytest.raises(UserError, match=r"knows no address of this form: nosuch://") as error:
        Notifier("nosuch://token-of-somebody")
    assert "token-of-somebody" not in str(error.value)
