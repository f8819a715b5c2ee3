"""Publications on request: what may be asked for, one at a time, in the background, and what is told of them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from errata.editing.errors import UserError
from errata.orchestrator.publish.rollout import EVENT
from tests.helpers.service import SERVERS, Running, edit, running


def with_a_version(run: Running) -> None:
    run.client.post("/v1/edits", json=edit(1))
    deadline = time.monotonic() + 10
    while run.journal.head().sequence == 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ended(run: Running, name: str) -> dict[str, Any]:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = {made["name"]: made for made in run.client.get("/v1/publications").json()["asked"]}[name]
        if found["state"] in ("done", "failed") and not run.service.publishing.busy:  # type: ignore[union-attr]
            return dict(found)
        time.sleep(0.01)
    raise AssertionError(f"{name} did not end")


def test_the_newest_version_goes_to_every_server_of_the_configuration(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        with_a_version(run)
        answer = run.client.post("/v1/publications")
        assert answer.status_code == 202 and answer.json()["version"] == run.journal.head().digest
        found = ended(run, answer.json()["name"])
        assert found["state"] == "done" and [server["ok"] for server in found["servers"]] == [True, True]
        assert run.servers.rolled == [(1, SERVERS)] and not run.servers.registered


def test_an_older_version_goes_to_one_server_and_into_the_registry(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        with_a_version(run)
        body = {"version": "v1", "to": [SERVERS[1]], "alias": "champion", "name": "facts"}
        found = ended(run, run.client.post("/v1/publications", json=body).json()["name"])
        assert run.servers.rolled == [(1, SERVERS[1:])] and run.servers.registered == [(1, "champion")]
        assert found["registered"] == {"name": "facts", "number": "1", "alias": "champion", "new": True}
        found = ended(run, run.client.post("/v1/publications", json={"alias": "champion"}).json()["name"])
        assert found["servers"] == [] and len(run.servers.rolled) == 1, "an alias alone speaks to no server"


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"to": ["vllm=http://127.0.0.1:3"]}, 422, "is not among the servers of publish.to"),
        ({"to": ["http://169.254.169.254/"]}, 422, "is not among the servers of publish.to"),
        ({"to": [SERVERS[0], SERVERS[0]]}, 422, "a server is listed twice"),
        ({"to": []}, 422, "to: "),
        ({"version": "v9"}, 404, "v9"),
        ({"version": "../../etc"}, 404, "../../etc"),
        ({"name": "facts"}, 422, "a name goes with an alias"),
        ({"alias": "a'b"}, 422, "alias: "),
        ({"format": "gguf"}, 422, "format: "),
        ({"anyway": True}, 422, "anyway: "),
    ],
)
def test_what_may_not_be_published_is_refused_and_nothing_begins(
    tmp_path: Path, body: dict[str, Any], status: int, says: str
) -> None:
    with running(tmp_path) as run:
        with_a_version(run)
        answer = run.client.post("/v1/publications", json=body)
        assert answer.status_code == status and says in answer.json()["error"]["message"], answer.text
        assert run.client.get("/v1/publications").json()["asked"] == []
        assert not run.servers.rolled and not run.servers.registered


def test_one_at_a_time_and_edits_go_on_meanwhile(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        with_a_version(run)
        run.servers.gate.clear()
        first = run.client.post("/v1/publications").json()
        second = run.client.post("/v1/publications")
        assert second.status_code == 429 and int(second.headers["retry-after"]) > 0
        run.client.post("/v1/edits", json=edit(2))
        deadline = time.monotonic() + 10
        while run.journal.head().sequence < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        run.servers.gate.set()
        assert ended(run, first["name"])["sequence"] == 1, "the version that was the newest when it was asked for"
        assert run.client.post("/v1/publications").status_code == 202


def test_it_begins_after_the_batch_under_way(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        with_a_version(run)
        run.pipeline.gate.clear()
        run.client.post("/v1/edits", json=edit(2))
        assert run.pipeline.writing.wait(10)
        made = run.client.post("/v1/publications").json()
        time.sleep(0.1)
        assert made["state"] == "waiting" and not run.servers.rolled
        assert run.service.publishing is not None and run.service.publishing.busy, "the policy begins none of its own"
        run.pipeline.gate.set()
        assert ended(run, made["name"])["state"] == "done"


def test_what_fails_is_told_and_the_service_goes_on(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        with_a_version(run)
        run.servers.broken = UserError("v1 does not fit into rank 1")
        found = ended(run, run.client.post("/v1/publications").json()["name"])
        assert (found["state"], found["problem"]) == ("failed", "v1 does not fit into rank 1")
        run.servers.broken = RuntimeError("secret of the inside")
        found = ended(run, run.client.post("/v1/publications").json()["name"])
        assert found["problem"] == "it failed: RuntimeError"
        run.servers.broken, run.servers.states = None, {"http://127.0.0.1:2": "refused"}
        found = ended(run, run.client.post("/v1/publications").json()["name"])
        assert found["state"] == "failed" and [server["state"] for server in found["servers"]] == [
            "switched",
            "refused",
        ]
        assert run.client.get("/healthz").status_code == 200


def test_the_steps_of_the_journal_are_shown_without_the_places_of_files(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        with_a_version(run)
        place = {"server": "http://127.0.0.1:1", "name": "errata", "sequence": 1, "version": "a" * 64, "id": "x"}
        path = "/srv/adapters/v1-aaaaaaaaaaaa-rall"
        run.journal.record_event(EVENT, {"what": "loading", "path": path, "rank": 2, **place})
        run.journal.record_event(EVENT, {"what": "switched", "from": None, "to": path, **place})
        found = run.client.get("/v1/publications?limit=1").json()
        assert [step["what"] for step in found["steps"]] == ["switched"] and found["next"] == found["steps"][0][
            "number"
        ]
        assert found["servers"] == [{"server": "http://127.0.0.1:1", "serves": "v1-aaaaaaaaaaaa-rall"}]
        older = run.client.get(f"/v1/publications?limit=1&before={found['next']}").json()
        assert [step["what"] for step in older["steps"]] == ["loading"] and older["next"] is None
        assert "/srv/" not in str(found) + str(older)


def test_inspection_gives_what_editor_and_memory_hold(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        with_a_version(run)
        found = run.client.get("/v1/inspection").json()
        assert found == {
            "sequence": 1,
            "version": run.journal.head().digest,
            "weights": "w" * 64,
            "memory": "m" * 64,
            "statements": 3,
        }
