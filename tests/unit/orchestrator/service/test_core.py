"""The threads of the service: reverts that outlive crashes, pauses that outlive restarts, ends without loss."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from errata.editing.errors import EditorFaultError, UserError
from errata.orchestrator.journal import Journal
from tests.helpers.service import FakePipeline, Running, edit, running


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def state(run: Running, name: str) -> str:
    row = run.journal.request(name)
    return "unknown" if row is None else row.state


def test_an_applied_edit_is_reverted_by_a_commit_of_its_own(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        run.client.post("/v1/edits", json=[edit(1), edit(2)])
        until(lambda: state(run, "edit-2") == "applied")
        answer = run.client.delete("/v1/edits/edit-1", params={"reason": "it was wrong"})
        assert answer.status_code == 200
        assert answer.json()["state"] == "reverted" and answer.json()["version"]["kind"] == "revert"
        again = run.client.delete("/v1/edits/edit-1")
        assert again.status_code == 200 and again.json()["state"] == "reverted"
        assert run.journal.head().sequence == 2
        assert run.client.delete("/v1/edits/nothing").status_code == 404


def test_an_edit_that_waits_is_withdrawn_and_never_written(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        run.client.post("/v1/pause")
        run.client.post("/v1/edits", json=[edit(1), edit(2)])
        answer = run.client.delete("/v1/edits/edit-1")
        assert answer.json()["state"] == "reverted"
        assert run.client.delete("/v1/edits/edit-1").json()["state"] == "reverted"
        assert run.client.get("/v1/edits/edit-1").json()["state"] == "reverted"
        run.client.post("/v1/resume")
        until(lambda: state(run, "edit-2") == "applied")
        assert run.journal.versions()[1].request_ids == ("edit-2",)


def test_a_revert_during_a_batch_is_promised_at_once_and_done_after_it(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        run.pipeline.gate.clear()
        run.client.post("/v1/edits", json=edit(1))
        assert run.pipeline.writing.wait(10)
        answer = run.client.delete("/v1/edits/edit-1", params={"wait": 0.01})
        assert answer.status_code == 202 and answer.json()["state"] == "reverting"
        run.pipeline.gate.set()
        until(lambda: state(run, "edit-1") == "reverted")
        row = run.journal.request("edit-1")
        assert row is not None and row.applied_in == 1


def test_a_promised_revert_is_carried_out_by_the_next_process(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        run.client.post("/v1/edits", json=[edit(1), edit(2)])
        until(lambda: state(run, "edit-2") == "applied")
    with Journal.open(tmp_path / "journal.sqlite") as journal:  # as after a crash between the intent and the commit
        journal.record_event("revert_wished", {"ids": ["edit-1"], "reason": "wrong", "by": "write:12345678"})
    with running(tmp_path) as run:
        until(lambda: run.core.ready)
        assert state(run, "edit-1") == "reverted"
    with running(tmp_path) as run:
        until(lambda: run.core.ready)
        assert run.journal.head().sequence == 2, "a finished intent is not carried out again"


def test_a_wish_that_cannot_be_carried_out_does_not_stop_the_service(tmp_path: Path) -> None:
    class Stubborn(FakePipeline):
        def revert(self, *_: object, **__: object) -> None:  # type: ignore[override]
            raise UserError("this editor keeps what it has")

    with running(tmp_path, prepare=lambda p: setattr(p, "__class__", Stubborn)) as run:
        run.client.post("/v1/edits", json=edit(1))
        until(lambda: state(run, "edit-1") == "applied")
        answer = run.client.delete("/v1/edits/edit-1")
        assert answer.status_code == 409 and "keeps what it has" in answer.json()["error"]["message"]
        assert run.client.get("/readyz").status_code == 200
    with running(tmp_path) as run:
        until(lambda: run.core.ready)
        assert state(run, "edit-1") == "applied", "the client was told no: it is not done behind its back"


def test_a_pause_holds_writing_but_not_accepting_and_outlives_the_process(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        assert run.client.post("/v1/pause", json={"reason": "looking into it"}).json()["state"] in (
            "paused",
            "starting",
        )
        assert run.client.post("/v1/edits", json=edit(1)).status_code == 202
        until(lambda: run.core.ready)
    with running(tmp_path) as run:
        until(lambda: run.core.ready)
        assert run.client.get("/v1/status").json()["paused"] == "looking into it"
        time.sleep(0.1)
        assert state(run, "edit-1") == "accepted"
        assert run.client.post("/v1/resume").json()["paused"] is None
        until(lambda: state(run, "edit-1") == "applied")
    assert not (tmp_path / "journal.sqlite-wal").exists()


def test_the_guards_pause_counts_and_resume_reaches_it(tmp_path: Path) -> None:
    class Guard:
        paused: str | None = "v1: perplexity is 9 times the base's"
        acted = 0

        def start(self) -> None: ...

        def act(self) -> None:
            self.acted += 1

        def resume(self, by: str) -> None:
            self.paused = None

    with running(tmp_path, start=False) as run:
        guard = Guard()
        run.core._guard = guard
        run.core.start()
        run.client.post("/v1/edits", json=edit(1))
        until(lambda: guard.acted > 2)
        assert state(run, "edit-1") == "accepted"
        assert "perplexity" in run.client.get("/v1/status").json()["paused"]
        run.client.post("/v1/resume")
        until(lambda: state(run, "edit-1") == "applied")


def test_the_end_waits_for_the_batch_under_way_and_loses_nothing(tmp_path: Path) -> None:
    with running(tmp_path, size=1) as run:
        run.pipeline.gate.clear()
        run.client.post("/v1/edits", json=[edit(1), edit(2)])
        assert run.pipeline.writing.wait(10)
        stopper = threading.Thread(target=run.core.stop)
        stopper.start()
        until(lambda: run.core.state == "draining")
        refused = run.client.post("/v1/edits", json=edit(3))
        assert refused.status_code == 503
        assert run.client.get("/readyz").status_code == 503
        run.pipeline.gate.set()
        stopper.join(10)
        assert not stopper.is_alive() and run.pipeline.closed
        assert (state(run, "edit-1"), state(run, "edit-2"), state(run, "edit-3")) == ("applied", "accepted", "unknown")
    with running(tmp_path, size=1) as run:
        until(lambda: state(run, "edit-2") == "applied")
        assert [v.request_ids for v in run.journal.versions()[1:]] == [("edit-1",), ("edit-2",)]


def test_a_pipeline_that_cannot_go_on_is_told_to_everybody(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        told = threading.Event()
        run.core.on_failure = told.set
        until(lambda: run.core.ready)
        run.pipeline.broken = RuntimeError("the disk has gone, with a secret path")
        run.core.resume()
        assert told.wait(10)
        health = run.client.get("/healthz")
        assert health.status_code == 503 and "secret" not in health.text
        assert run.client.post("/v1/edits", json=edit(1)).status_code == 503
        assert run.client.delete("/v1/edits/edit-1").status_code == 404
        assert run.client.post("/v1/refresh").status_code == 503


def test_refreshes_and_evaluations_are_asked_for(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        until(lambda: run.core.ready)
        assert run.client.post("/v1/refresh").json() == {"started": True}
        assert run.client.post("/v1/refresh").json() == {"started": False}
        assert run.client.post("/v1/evaluations").status_code == 409
        run.client.post("/v1/edits", json=[edit(n) for n in range(5)])
        until(lambda: state(run, "edit-4") == "applied")
        assert run.client.post("/v1/evaluations", json={"ids": ["edit-1", "edit-3"]}).status_code == 202
        assert run.client.post("/v1/evaluations", json={"ids": ["edit-9"]}).status_code == 404
        assert run.client.post("/v1/evaluations", json={"ids": ["edit-1"], "sample": 2}).status_code == 422
        until(lambda: run.journal.counts().evaluations == 1)
        found = run.client.get("/v1/evaluations").json()
        assert found["evaluations"][0]["kind"] == "asked" and found["evaluations"][0]["facts"] == 2
        assert found["asked"][0]["state"] == "done"


@pytest.mark.parametrize("clients", [8])
def test_clients_that_come_together_share_transactions_and_each_gets_its_own_answer(
    tmp_path: Path, clients: int
) -> None:
    with running(tmp_path, start=False) as run:
        held, real = threading.Event(), run.journal.accept

        def slowly(requests: object) -> object:
            held.wait(10)
            return real(requests)  # type: ignore[arg-type]

        run.journal.accept = slowly  # type: ignore[assignment,method-assign]
        from errata.orchestrator.service.bodies import EditIn

        futures = [run.core.accept([EditIn(**edit(n)).request()]) for n in range(clients)]
        held.set()
        assert [future.result(10)[0].id for future in futures] == [f"edit-{n}" for n in range(clients)]
        assert run.core.acceptor.transactions <= 2


def test_a_journal_that_cannot_be_written_fails_the_clients_and_not_the_service(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        until(lambda: run.core.ready)
        real = run.journal.accept

        def full(_: object) -> object:
            raise OSError("No space left on device")

        run.journal.accept = full  # type: ignore[assignment,method-assign]
        answer = run.client.post("/v1/edits", json=edit(1))
        assert answer.status_code == 503 and "space" not in answer.text
        run.journal.accept = real  # type: ignore[method-assign]
        assert run.client.post("/v1/edits", json=edit(1)).status_code == 202


def test_an_editor_at_fault_pauses_the_service_over_restarts_and_nothing_is_lost(tmp_path: Path) -> None:
    broken = EditorFaultError("the editor fails on every edit, a plain one too: MemoryError")

    def at_fault(pipeline: FakePipeline) -> None:
        pipeline.broken = broken

    with running(tmp_path, prepare=at_fault) as run:
        until(lambda: run.core.state == "paused")
        status = run.client.get("/v1/status").json()
        assert "fails on every edit" in status["paused"] and run.client.get("/healthz").status_code == 200
        assert run.client.post("/v1/edits", json=[edit(1), edit(2)]).status_code == 202
        assert run.client.delete("/v1/edits/edit-1").json()["state"] == "reverted", "waiting edits can be taken back"
        run.client.post("/v1/resume")
        until(lambda: run.core.state == "paused")
    with running(tmp_path) as run:
        until(lambda: run.core.ready)
        assert run.core.state == "paused" and state(run, "edit-2") == "accepted", "another start does not try again"
        run.client.post("/v1/resume")
        until(lambda: state(run, "edit-2") == "applied")


def test_a_revert_that_ends_the_service_is_given_up_after_three_starts(tmp_path: Path) -> None:
    class Dying(FakePipeline):
        def revert(self, *_: object, **__: object) -> None:  # type: ignore[override]
            raise MemoryError("no room")

    def dying(pipeline: FakePipeline) -> None:
        pipeline.__class__ = Dying

    with running(tmp_path) as run:
        run.client.post("/v1/edits", json=[edit(1), edit(2)])
        until(lambda: state(run, "edit-2") == "applied")
    with Journal.open(tmp_path / "journal.sqlite") as journal:
        journal.record_event("revert_wished", {"ids": ["edit-1"], "reason": "", "by": None})
    for _ in range(3):
        with running(tmp_path, prepare=dying) as run:
            until(lambda: run.core.failure is not None)
    with running(tmp_path, prepare=dying) as run:
        until(lambda: run.core.ready)
        assert state(run, "edit-1") == "applied"
        (settled,) = run.journal.events("revert_settled")
        assert "given up: 3 starts" in settled.data["problem"]
