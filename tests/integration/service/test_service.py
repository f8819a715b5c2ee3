"""A service lives through a day: edits, questions, a revert, SIGKILL in the middle of a batch, SIGTERM in the next.

One story, told once for all tests, since every process starts a Ray of its own.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from errata.orchestrator.journal import Journal
from tests.integration.service.conftest import Services

WRITER, ADMIN, READER = "writer-token-of-the-test", "admin-token-of-the-test1", "reader-token-of-the-test"
TOKENS = {"ERRATA_TOKENS": f"read:{READER},write:{WRITER},admin:{ADMIN}"}
PEOPLE = ("Danielle Darrieux", "Alice Munro", "Thierry Henry", "Angola", "Rome", "France")


def edit(number: int) -> dict[str, Any]:
    name = f"{PEOPLE[number % 6]} {number}"
    return {
        "id": f"edit-{number}",
        "subject": name,
        "prompt": "{} works in",
        "target_new": PEOPLE[(number + 3) % 6],
        "paraphrases": [f"The place where {name} works is"],
        "neighborhood": [{"prompt": f"Person {number} works in", "answer": "Rome"}],
    }


@dataclass
class Day:
    """What was seen."""

    told: dict[str, str] = field(default_factory=dict)
    """What clients were told of every edit they handed in: the last status."""
    answers: list[dict[str, Any]] = field(default_factory=list)
    asked_during_batch: int = 0
    reverted: dict[str, Any] = field(default_factory=dict)
    withdrawn: str = ""
    before_kill: list[dict[str, Any]] = field(default_factory=list)
    after_restart: list[dict[str, Any]] = field(default_factory=list)
    again: Counter[str] = field(default_factory=Counter)
    metrics: str = ""
    chat: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    log: str = ""
    run: Path = Path()


def until(true: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def hand_in(day: Day, client: httpx.Client, numbers: range) -> None:
    answer = client.post("/v1/edits", json=[edit(n) for n in numbers])
    assert answer.status_code == 202, answer.text
    for result in answer.json()["results"]:
        day.told[result["id"]] = result["status"]


@pytest.fixture(scope="module")
def day(services: Services) -> Day:
    day = Day(run=services.output)
    first = services.start(environment=TOKENS)
    first.until_ready()
    as_writer = {"Authorization": f"Bearer {WRITER}"}
    as_admin = {"Authorization": f"Bearer {ADMIN}"}
    with first.client(headers=as_writer) as client:
        # the first question finds the workers still loading
        assert client.post("/v1/query", json={"question": "Rome lies in", "max_new_tokens": 1}).status_code == 200
        hand_in(day, client, range(6))
        # questions while batches are being edited
        waiting = True
        while waiting:
            body = {"question": "Danielle Darrieux 0 works in", "max_new_tokens": 3}
            answer = client.post("/v1/query", json=body)
            assert answer.status_code == 200, answer.text
            day.answers.append(answer.json())
            waiting = client.get("/v1/status").json()["edits"]["waiting"] > 0
            day.asked_during_batch += waiting
        hand_in(day, client, range(6, 9))
        until(lambda: client.get("/v1/status").json()["edits"]["waiting"] == 0)
        day.reverted = client.delete("/v1/edits/edit-1", params={"reason": "wrong", "wait": 60}).json()
        day.answers.append(client.post("/v1/query", json={"question": "Alice Munro 1 works in"}).json())
        chat = {"model": "edited_memory", "messages": [{"role": "user", "content": "Where does Rome 4 work?"}]}
        day.chat = client.post("/v1/chat/completions", json={**chat, "max_tokens": 3}).json()
        until(lambda: bool(client.get("/v1/evaluations?kind=timeline").json()["evaluations"]))
        day.metrics = client.get("/metrics").text
        client.post("/v1/pause", headers=as_admin)
        hand_in(day, client, range(9, 15))
        day.withdrawn = client.delete("/v1/edits/edit-14", params={"wait": 60}).json()["state"]
        client.post("/v1/resume", headers=as_admin)
        until(lambda: client.get("/v1/status").json()["edits"]["waiting"] < 5)
        # in the middle of what is left
        day.before_kill = client.get("/v1/edits?limit=100").json()["edits"]
    os.killpg(first.process.pid, signal.SIGKILL)
    first.process.wait(30)

    second = services.start(environment=TOKENS)
    with second.client(headers=as_writer) as client:
        second.until_ready()
        day.after_restart = client.get("/v1/edits?limit=100").json()["edits"]
        answer = client.post("/v1/edits", json=[edit(n) for n in range(15)])
        day.again = Counter(result["status"] for result in answer.json()["results"])
        until(lambda: client.get("/v1/status").json()["edits"]["waiting"] == 0)
        stop = threading.Event()

        def keep_handing_in() -> None:
            for number in range(15, 200):
                if stop.is_set():
                    return
                try:
                    hand_in(day, client, range(number, number + 1))
                except (httpx.TransportError, AssertionError):
                    return  # the service ends

        feeder = threading.Thread(target=keep_handing_in)
        feeder.start()
        until(lambda: len(day.told) > 20)
        day.exit_code = second.end(signal.SIGTERM)
        stop.set()
        feeder.join()
    day.log = second.log.read_text()
    return day


def test_questions_are_answered_by_all_arms_while_batches_are_edited(day: Day) -> None:
    assert day.asked_during_batch > 0
    assert {tuple(found["answers"][0]["arms"]) for found in day.answers} == {
        ("base", "edited", "memory", "edited_memory", "routed")
    }
    sequences = [found["sequence"] for found in day.answers]
    assert sequences == sorted(sequences) and sequences[-1] > sequences[0]
    base = {found["answers"][0]["arms"]["base"]["answer"] for found in day.answers[:-1]}
    assert len(base) == 1, "the unedited model says the same whatever is being edited"


def test_a_question_shows_what_the_memory_found_and_a_reverted_fact_is_not_found(day: Day) -> None:
    found = day.answers[-2]["answers"][0]["arms"]["memory"]
    assert "edit-0" in [hit["edit"] for hit in found["retrieved"]]
    assert day.reverted["state"] == "reverted" and day.reverted["version"]["kind"] == "revert"
    forgotten = day.answers[-1]["answers"][0]["arms"]["memory"]
    assert "edit-1" not in [hit["edit"] for hit in forgotten["retrieved"]]
    assert day.answers[-1]["sequence"] == day.reverted["version"]["sequence"]
    assert day.chat["choices"][0]["message"]["role"] == "assistant"
    assert day.chat["errata"]["arm"] == "edited_memory"


def test_metrics_have_the_figures_of_the_run(day: Day) -> None:
    assert 'errata_edits{state="reverted"} 1.0' in day.metrics
    assert 'errata_evaluation{arm="edited",kind="timeline",metric="efficacy"}' in day.metrics


def test_after_sigkill_nothing_is_lost_and_nothing_doubled(day: Day) -> None:
    before = {row["id"]: row["state"] for row in day.before_kill}
    after = {row["id"]: row["state"] for row in day.after_restart}
    assert set(after) == set(before) and len(after) == 15
    settled = {name for name, state in before.items() if state != "waiting"}
    assert all(after[name] == before[name] for name in settled)
    assert day.again == Counter(duplicate=15)
    assert day.withdrawn == "reverted" and after["edit-14"] == "reverted"


def test_sigterm_ends_it_after_the_batch_with_everything_kept(day: Day) -> None:
    assert day.exit_code == 0, day.log[-2000:]
    assert "Traceback" not in day.log
    with Journal.open(day.run / "journal.sqlite", read_only=True) as journal:
        rows = {row.id: row for row in journal.requests()}
        assert set(day.told) <= set(rows), "every edit a client was promised is in the journal"
        for name, row in rows.items():
            applied = sum(fate.state == "applied" for fate in journal.fates(name))
            assert applied == (row.applied_in is not None), (name, row.state)
        edits = sum(row.applied_in is not None for row in rows.values())
        assert journal.head().edits == edits


def test_no_token_is_in_any_file_of_the_run(day: Day, services: Services) -> None:
    kept = [path for path in day.run.rglob("*") if path.is_file()] + [served.log for served in services.started]
    for path in kept:
        data = path.read_bytes()
        for token in (WRITER, ADMIN, READER):
            assert token.encode() not in data, path


def test_the_kept_run_is_whole(day: Day) -> None:
    """Every version can be rebuilt from the files and has the digest the journal says."""
    from typer.testing import CliRunner

    from errata.orchestrator.cli import app

    done = CliRunner().invoke(app, ["verify", str(day.run)])
    assert done.exit_code == 0, done.output
