"""The guard on made-up readings: what it finds, what it does, and that a crash anywhere changes neither."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from errata.editing.errors import UserError
from errata.editing.request import EditRequest
from errata.orchestrator.config.guard import WEBHOOK, GuardConfig
from errata.orchestrator.guard.guard import EVENT, Guard
from errata.orchestrator.guard.rules import Reading, judge, read_guard
from errata.orchestrator.guard.webhook import Webhook
from errata.orchestrator.history.bisect import RegressionProbe
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.rows import CommitData, JournalMeta, RequestOutcome, Version

PROBES = (
    RegressionProbe(prompt="France?", expected=("Paris",), id="france"),
    RegressionProbe(prompt="Italy?", expected=("Rome",)),
    RegressionProbe(prompt="how?"),
    RegressionProbe(prompt="wrong anyway", expected=("yes",)),
)
BASE = Reading(("It is Paris.", "Rome", "so", "no"), 10.0)


# ---------------------------------------------------------------- judging


def config(**changes: Any) -> GuardConfig:
    return GuardConfig(**{"every": 1, "sentinels": "x", **changes})


def test_readings_are_compared_with_the_base() -> None:
    same = judge(config(), PROBES, BASE, BASE)
    assert (same.good, same.kept, same.ratio, same.reasons) == (True, 1.0, 1.0, ())
    worse = judge(config(), PROBES, BASE, Reading(("Lyon", "rome!", "thus", "yes"), 13.0))
    assert worse.kept == pytest.approx(1 / 3) and worse.broken == ("france", "how?")
    assert worse.reasons == (
        "2 of 3 sentinels no longer hold (allowed: 10%)",
        "perplexity is 1.3 times the base's (allowed: 1.2)",
    )
    # exactly at a threshold is allowed, whatever floats make of it
    ten = tuple(RegressionProbe(prompt=str(number), expected=("a",)) for number in range(10))
    fine, bad = Reading(("a",) * 10, 10.0), Reading(("a",) * 9 + ("b",), 12.0)
    assert judge(config(max_sentinel_loss=0.1), ten, fine, bad).good
    assert not judge(config(max_sentinel_loss=0.09), ten, fine, bad).good
    broken = judge(config(), PROBES, BASE, Reading(BASE.answers, float("nan")))
    assert not broken.good and broken.reasons == ("perplexity is nan times the base's (allowed: 1.2)",)


def test_what_the_guard_reads_is_checked_before_anything_starts(tmp_path: Path) -> None:
    probes, text = tmp_path / "probes.jsonl", tmp_path / "text"
    probes.write_text('{"prompt": "p", "expected": "a"}\n{"prompt": "q"}\n')
    text.write_text("words")
    found = read_guard(config(sentinels=str(probes)), str(text))
    assert [probe.prompt for probe in found[0]] == ["p", "q"] and found[1] == "words"
    assert read_guard(config(sentinels=str(probes), max_perplexity_ratio=None), str(text))[1] is None
    assert read_guard(GuardConfig(), None) == ([], None)
    with pytest.raises(UserError, match=r"guard\.sentinels: probe file"):
        read_guard(config(sentinels=str(tmp_path / "none")), None)
    with pytest.raises(UserError, match="nothing to measure"):
        read_guard(GuardConfig(every=2), None)
    with pytest.raises(ValidationError, match="the guard measures nothing"):
        GuardConfig(every=2, max_perplexity_ratio=None)


# ---------------------------------------------------------------- acting


class World:
    """A journal whose versions are as good as `perplexity` says; weights are the numbers of versions."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal = (
            Journal.open(path) if path.exists() else Journal.create(path, JournalMeta("r", "b" * 64, "e" * 64, {}))
        )
        self.perplexity_of: dict[int, float] = {}
        self.asked: list[object] = []
        self.points: list[tuple[int, dict[str, float]]] = []
        self.said: list[str] = []
        self.guard: Guard | None = None
        self.crash = False

    # the watch
    def answers(self, probes: Sequence[RegressionProbe], weights: Any) -> list[str]:
        return ["same"] * len(probes)

    def perplexity(self, text: str, weights: Any) -> float:
        self.asked.append(weights)
        found = self.perplexity_of.get(weights, 10.0) if weights else 10.0
        if found == -1:
            raise RuntimeError("the worker died")
        return found

    # the pipeline
    def make(self, **changes: Any) -> Guard:
        self.guard = Guard(
            GuardConfig(**{"every": 2, **changes}),
            [RegressionProbe(prompt="p")],
            "text",
            journal=self.journal,
            watch=self,
            weights=lambda: self.journal.head().sequence,
            revert=self.revert,
            metrics=lambda values, step: self.points.append((step, dict(values))),
            say=self.said.append,
        )
        return self.guard

    def edit(self, name: str) -> Version:
        self.journal.accept([EditRequest(id=name, subject=name, prompt="{} is", target_new="x")])
        sequence = self.journal.next_sequence()
        data = CommitData(sequence, (RequestOutcome(name, True),), delta=f"{sequence:064x}")
        return self.tell(self.journal.commit(data))

    def revert(self, ids: Sequence[str], reason: str) -> Version:
        if self.crash:
            raise KeyboardInterrupt
        sequence = self.journal.next_sequence()
        data = CommitData(sequence, (), delta=f"{sequence:064x}", kind="revert", reverts=tuple(ids))
        return self.tell(self.journal.commit(data))

    def tell(self, version: Version) -> Version:
        assert self.guard is not None
        self.guard.after_commit(version)
        return version

    def events(self, what: str) -> list[dict[str, Any]]:
        return [dict(e.data) for e in self.journal.events(EVENT) if e.data["what"] == what]

    def states(self) -> dict[str, str]:
        return {row.id: row.state for row in self.journal.requests()}

    def reopened(self) -> World:
        assert self.guard is not None
        self.guard.close()
        self.journal.close()
        return World(self.path)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "journal.sqlite")
    yield world
    if world.guard is not None:
        world.guard.close()
    world.journal.close()


def test_all_is_well_and_nothing_happens(world: World) -> None:
    guard = world.make()
    for number in range(5):
        world.edit(f"e{number}")
    assert [e["sequence"] for e in world.events("check")] == [2, 4] and world.asked == [{}, 2, 4]
    assert guard.paused is None and guard.holds and guard.status().good_sequence == 4
    good = {"guard/breaches": 0.0, "guard/sentinels_kept_share": 1.0, "guard/perplexity_ratio": 1.0}
    assert world.points == [(2, good), (4, good)]
    assert set(world.states().values()) == {"applied"} and not world.said


def test_a_breach_pauses_until_somebody_resumes(world: World, caplog: pytest.LogCaptureFixture) -> None:
    guard = world.make()
    world.perplexity_of = {4: 15.0}
    for number in range(4):
        world.edit(f"e{number}")
    assert guard.paused == "v4: perplexity is 1.5 times the base's (allowed: 1.2)" and not guard.holds
    assert "GUARD BREACH at v4" in caplog.text and world.points[-1][1]["guard/breaches"] == 1.0
    assert "paused" in world.said[0] and set(world.states().values()) == {"applied"}
    again = world.reopened()
    try:
        second = again.make()
        second.start()
        assert second.paused == guard.paused, "a restart alone does not let it go on"
        second.resume("desk 4")
        assert second.paused is None and again.events("resume") == [{"what": "resume", "by": "desk 4"}]
        again.edit("e4")
        again.edit("e5")
        assert second.holds and second.status().good_sequence == 6
        assert again.asked == [6], "the base is not measured again"
    finally:
        again.guard.close()  # type: ignore[union-attr]
        again.journal.close()


def test_a_breach_reverts_to_the_last_good_version_and_checks_that(world: World) -> None:
    guard = world.make(revert=True, pause=False)
    world.perplexity_of = {4: 99.0}
    for number in range(6):
        world.edit(f"e{number}")
    assert [world.states()[f"e{n}"] for n in range(4)] == ["applied", "applied", "reverted", "reverted"]
    assert [(e["sequence"], e["good"]) for e in world.events("check")] == [(2, True), (4, False), (5, True), (7, True)]
    assert world.events("reverted")[0]["requests"] == ["e2", "e3"] and guard.holds and guard.paused is None


@pytest.mark.parametrize("pause", [True, False])
def test_a_revert_that_does_not_help_pauses_and_is_not_tried_again(world: World, pause: bool) -> None:
    guard = world.make(revert=True, pause=pause)
    world.perplexity_of = {2: 99.0, 3: 99.0}
    world.edit("e0")
    world.edit("e1")
    assert world.journal.head().sequence == 3 and len(world.events("reverted")) == 1
    assert guard.paused is not None and guard.paused.startswith("v3") and guard.status().breaches == 2


def test_a_crash_before_the_revert_is_made_up_for(world: World) -> None:
    world.make(revert=True)
    world.perplexity_of = {2: 99.0}
    world.edit("e0")
    world.crash = True
    with pytest.raises(KeyboardInterrupt):
        world.edit("e1")
    assert set(world.states().values()) == {"applied"}
    again = world.reopened()
    try:
        guard = again.make(revert=True)
        assert guard.unfinished
        guard.start()
        assert set(again.states().values()) == {"reverted"} and not guard.unfinished
        assert guard.paused is not None and guard.status().good_sequence == 3
    finally:
        again.guard.close()  # type: ignore[union-attr]
        again.journal.close()


def test_a_crash_after_the_revert_does_not_repeat_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = world.make(revert=True, pause=False)
    world.perplexity_of = {2: 99.0}
    note = Guard._note

    def crash_at_reverted(self: Guard, what: str, **data: Any) -> None:
        if what == "reverted":
            raise KeyboardInterrupt
        note(self, what, **data)

    monkeypatch.setattr(Guard, "_note", crash_at_reverted)
    world.edit("e0")
    with pytest.raises(KeyboardInterrupt):
        world.edit("e1")
    monkeypatch.undo()
    guard.close()
    guard = world.make(revert=True, pause=False)
    guard.start()
    assert world.journal.head().sequence == 3 and world.events("reverted")[0]["sequence"] == 3 and guard.holds


def test_a_check_that_an_interruption_swallowed_is_made_at_the_start(world: World) -> None:
    guard = world.make(every=2)
    world.edit("e0")
    guard.close()
    world.guard = None
    with pytest.raises(AssertionError):
        world.edit("e1")  # committed, and nobody was told
    guard = world.make(every=2)
    guard.start()
    assert [e["sequence"] for e in world.events("check")] == [2]


def test_not_knowing_is_no_breach_and_no_good_news(world: World) -> None:
    guard = world.make(every=1, revert=True)
    world.perplexity_of = {1: -1}
    world.edit("e0")
    assert guard.paused is None and not guard.holds and world.events("failed")[0]["reason"] == "the worker died"
    world.edit("e1")
    assert guard.holds


def test_without_waiting_the_verdict_acts_at_a_later_boundary(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    measure = world.perplexity
    monkeypatch.setattr(world, "perplexity", lambda text, weights: (gate.wait(20), measure(text, weights))[1])
    guard = world.make(every=1, wait=False)
    world.perplexity_of = {1: 99.0}
    world.edit("e0")
    world.edit("e1")
    assert guard.paused is None and not world.events("check")
    gate.set()
    guard.finish()
    assert [e["sequence"] for e in world.events("check")] == [1] and guard.paused is not None


# ---------------------------------------------------------------- alerts


class Hook(BaseHTTPRequestHandler):
    answers: list[int]
    got: list[dict[str, Any]]

    def do_POST(self) -> None:
        self.got.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(self.answers.pop(0) if self.answers else 204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[type[Hook]]:
    handler = type("Handler", (Hook,), {"answers": [], "got": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    handler.url = f"http://127.0.0.1:{server.server_port}/secret-path"  # type: ignore[attr-defined]
    yield handler
    server.shutdown()
    server.server_close()


def test_an_alert_is_posted_and_journaled_without_its_address(
    world: World, hook: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WEBHOOK, hook.url)
    guard = world.make(every=1)
    world.perplexity_of = {1: 99.0}
    world.edit("e0")
    guard.close()
    [alert] = hook.got
    assert alert["event"] == "guard_breach" and alert["sequence"] == 1 and alert["ratio"] == 9.9
    assert alert["paused"].startswith("v1") and alert["reverting"] == []
    [noted] = world.events("alert")
    assert noted["delivered"] and noted["attempts"] == 1 and "secret" not in json.dumps(noted)
    # one that was not sent before a crash is sent at the start; one that was, is not sent again
    world.make(every=1).start()
    world.guard.close()  # type: ignore[union-attr]
    assert len(hook.got) == 1


def test_an_alert_is_tried_again_and_given_up_without_holding_anybody(hook: Any, caplog: Any) -> None:
    outcomes: list[Any] = []
    hook.answers += [500, 503]
    webhook = Webhook(hook.url, pause=0.01, done=outcomes.append)
    webhook.send({"n": 1})
    webhook.close()
    assert outcomes[0].delivered and outcomes[0].attempts == 3 and len(hook.got) == 3
    hook.answers += [500] * 9
    with caplog.at_level(logging.WARNING):
        webhook = Webhook(hook.url, pause=0.001, retries=2, done=outcomes.append)
        webhook.send({"n": 2})
        webhook.close()
    assert not outcomes[1].delivered and outcomes[1].attempts == 3 and outcomes[1].why == "status 500"
    assert "was not delivered in 3 attempts" in caplog.text and "secret" not in caplog.text
    dead = Webhook("http://127.0.0.1:1/x", pause=30.0, done=outcomes.append)
    dead.send({"n": 3})
    dead.close(timeout=0.5)
