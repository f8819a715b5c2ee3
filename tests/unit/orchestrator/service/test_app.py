"""The HTTP interface over a pipeline without models: what is taken, what is refused, who may."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from errata.orchestrator.service.traces import Traces
from tests.helpers.service import ADMIN, READ, TOKENS, WRITE, Running, bearer, edit, running


@pytest.fixture(scope="module")
def open_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Without tokens, shared; a test uses ids of its own."""
    with running(tmp_path_factory.mktemp("open")) as made:
        yield made


def settled(run: Running, name: str, state: str = "applied") -> dict[str, Any]:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = run.client.get(f"/v1/edits/{name}").json()
        if found.get("state") == state:
            return dict(found)
        time.sleep(0.01)
    raise AssertionError(f"{name} did not become {state}: {found}")


# ---------------------------------------------------------------- handing in


def test_an_edit_is_journaled_answered_and_written(open_service: Running) -> None:
    answer = open_service.client.post("/v1/edits", json=edit(1))
    assert answer.status_code == 202
    (result,) = answer.json()["results"]
    assert result["id"] == "edit-1" and result["status"] == "accepted"
    story = settled(open_service, "edit-1")
    assert [fate["state"] for fate in story["fates"]] == ["waiting", "applied"]
    assert story["provenance"]["when"] is not None


def test_the_same_edit_again_is_a_duplicate_and_another_content_a_conflict(open_service: Running) -> None:
    open_service.client.post("/v1/edits", json=edit(2))
    again = open_service.client.post("/v1/edits", json=edit(2))
    assert again.status_code == 202 and again.json()["results"][0]["status"] == "duplicate"
    other = open_service.client.post("/v1/edits", json=edit(2, target_new="Paris"))
    assert other.status_code == 409
    assert other.json()["error"]["details"][0]["status"] == "conflict"


def test_an_idempotency_key_is_the_id(open_service: Running) -> None:
    body = edit(3)
    del body["id"]
    first = open_service.client.post("/v1/edits", json=body, headers={"Idempotency-Key": "key-3"})
    second = open_service.client.post("/v1/edits", json=body, headers={"Idempotency-Key": "key-3"})
    assert [a.json()["results"][0]["status"] for a in (first, second)] == ["accepted", "duplicate"]
    assert first.json()["results"][0]["id"] == "key-3"
    assert open_service.client.post("/v1/edits", json=body, headers={"Idempotency-Key": "a/b"}).status_code == 400
    several = open_service.client.post("/v1/edits", json=[body], headers={"Idempotency-Key": "key-4"})
    assert several.status_code == 400


def test_of_several_each_is_judged_by_itself(open_service: Running) -> None:
    body = {"edits": [edit(10), edit(11, subject="\x00"), edit(12, prompt="no slot"), edit(10, target_new="other")]}
    answer = open_service.client.post("/v1/edits", json=body)
    assert answer.status_code == 202
    assert [r["status"] for r in answer.json()["results"]] == ["accepted", "invalid", "invalid", "conflict"]
    assert "control characters" in answer.json()["results"][1]["error"]
    assert "slot" in answer.json()["results"][2]["error"]
    assert open_service.client.get("/v1/edits/edit-11").status_code == 404


BAD_BODIES: list[tuple[bytes, int]] = [
    (b"", 400),
    (b"{", 400),
    (b"nonsense", 400),
    (b'{"edits": [NaN]}', 400),
    (b'{"subject": "\\ud800"}', 400),
    (b"\xff\xfe", 400),
    (b"[" * 200_000, 400),
    (b"9" * 10_000, 400),
    (b"null", 422),
    (b"[]", 422),
    (b'{"edits": []}', 422),
    (b'{"edits": {}}', 422),
    (b'{"edits": [], "x\\u0007": 1}', 422),
    (json.dumps(edit(20, target_new=7)).encode(), 422),
    (json.dumps(edit(20, id="../../etc/passwd")).encode(), 422),
    (json.dumps(edit(20, id="record:1")).encode(), 422),
    (json.dumps(edit(20, id="a b")).encode(), 422),
    (json.dumps(edit(20, subject="a\nb")).encode(), 422),
    (json.dumps(edit(20, prompt="{} is\x1b[2J")).encode(), 422),
    (json.dumps(edit(20, prompt="{} is \x00")).encode(), 422),
    (json.dumps(edit(20, target_new=" \u3000\t")).encode(), 422),
    (json.dumps(edit(20, prompt="{} and {}")).encode(), 422),
    (json.dumps(edit(20, subject="x" * 301)).encode(), 422),
    (json.dumps(edit(20, sub="x")).encode(), 422),
    (json.dumps(edit(20, provenance={"when": "yesterday"})).encode(), 422),
]


@pytest.mark.parametrize(("body", "status"), BAD_BODIES, ids=range(len(BAD_BODIES)))
def test_what_does_not_fit_is_refused_in_one_line_that_is_safe_to_print(
    open_service: Running, body: bytes, status: int
) -> None:
    before = open_service.journal.counts().requests
    answer = open_service.client.post("/v1/edits", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    message = answer.json()["error"]["message"]
    assert message.isprintable() and len(message) < 1000
    assert open_service.journal.counts().requests == before


def test_a_body_that_is_no_json_by_its_type_is_refused(open_service: Running) -> None:
    text = json.dumps(edit(30))
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        answer = open_service.client.post("/v1/edits", content=text, headers={"Content-Type": kind})
        assert answer.status_code == 415
    assert open_service.client.get("/v1/edits/edit-30").status_code == 404


def test_a_large_body_is_refused_however_it_comes(tmp_path: Path) -> None:
    with running(tmp_path, max_body_bytes=2000, max_edits_per_request=3) as run:
        large = json.dumps(edit(1, prompt="{} " + "x" * 1990)).encode()

        def chunks() -> Iterator[bytes]:
            for start in range(0, len(large), 100):
                yield large[start : start + 100]

        headers = {"Content-Type": "application/json"}
        assert run.client.post("/v1/edits", content=large, headers=headers).status_code == 413
        assert run.client.post("/v1/edits", content=chunks(), headers=headers).status_code == 413
        lying = {**headers, "Content-Length": "99999999999999999999999"}
        assert run.client.post("/v1/edits", content=b"{}", headers=lying).status_code == 413
        wrong = {**headers, "Content-Length": "-1"}
        assert run.client.post("/v1/edits", content=b"{}", headers=wrong).status_code == 400
        many = [edit(n) for n in range(4)]
        assert run.client.post("/v1/edits", json=many).status_code == 413
        assert run.journal.counts().requests == 0


# ---------------------------------------------------------------- who may


def test_every_route_asks_for_its_role(tmp_path: Path) -> None:
    reads = [("GET", p) for p in ("edits", "edits/x", "versions", "versions/head", "evaluations", "status", "models")]
    reads += [
        ("GET", "models/errata"),
        ("POST", "query"),
        ("POST", "chat/completions"),
        ("POST", "completions"),
        ("GET", "publications"),
        ("GET", "refreshes"),
        ("GET", "guard"),
        ("GET", "router"),
    ]
    writes = [("POST", "edits"), ("DELETE", "edits/x"), ("POST", "evaluations"), ("DELETE", "evaluations/head")]
    admins = [("POST", "refresh"), ("POST", "pause"), ("POST", "resume"), ("POST", "publications")]
    admins += [("GET", "inspection")]
    with running(tmp_path, tokens=TOKENS) as run:
        paths = {(m, p.removeprefix("/v1/")) for p, ms in run.client.get("/openapi.json").json()["paths"].items()
                 for m in map(str.upper, ms) if p.startswith("/v1/")}  # fmt: skip
        assert paths == {
            (m, p.replace("/x", "/{id}").replace("/head", "/{name}").replace("/errata", "/{name}"))
            for m, p in reads + writes + admins
        }
        for allowed, routes in (((READ, WRITE, ADMIN), reads), ((WRITE, ADMIN), writes), ((ADMIN,), admins)):
            for method, path in routes:
                for token in (None, "wrong-token-0123456789", READ, WRITE, ADMIN):
                    headers = {} if token is None else bearer(token)
                    status = run.client.request(method, f"/v1/{path}", headers=headers).status_code
                    if token in (None, "wrong-token-0123456789"):
                        assert status == 401, (method, path, token)
                    elif token not in allowed:
                        assert status == 403, (method, path, token)
                    else:
                        assert status not in (401, 403, 500), (method, path, token, status)
        assert run.client.get("/metrics").status_code == 401
        assert run.client.get("/metrics", headers=bearer(READ)).status_code == 200
        for path in ("/", "/docs", "/healthz", "/openapi.json", "/page/app.js"):
            assert run.client.get(path).status_code == 200
        assert run.client.get("/v1/status").headers["www-authenticate"] == "Bearer"


def test_the_journal_says_who_without_giving_the_token_away(tmp_path: Path) -> None:
    with running(tmp_path, tokens=TOKENS) as run:
        run.client.post("/v1/edits", json=edit(1), headers=bearer(WRITE))
        run.client.post("/v1/pause", headers=bearer(ADMIN))
        row = run.journal.request("edit-1")
        assert row is not None and row.payload["provenance"]["who"].startswith("write:")
        (event,) = run.journal.events("service_paused")
        assert event.data["by"].startswith("admin:")
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert WRITE.encode() not in kept and ADMIN.encode() not in kept


def test_without_tokens_only_names_of_this_machine_are_answered_to(open_service: Running) -> None:
    assert open_service.client.get("/v1/status", headers={"Host": "attacker.example"}).status_code == 421
    assert open_service.client.get("/v1/status", headers={"Host": "[::1"}).status_code == 421
    assert open_service.client.get("/v1/status", headers={"Host": "127.0.0.1:8080"}).status_code == 200


def test_pages_of_other_origins_may_not_change_anything(open_service: Running) -> None:
    for origin in ("https://attacker.example", "null", "http://[", "http://127.0.0.1:81"):
        assert open_service.client.post("/v1/pause", headers={"Origin": origin}).status_code == 403
    own = open_service.client.post("/v1/resume", headers={"Origin": "http://127.0.0.1"})
    assert own.status_code == 200


def test_answers_carry_what_keeps_a_browser_from_harm(open_service: Running) -> None:
    for path in ("/", "/v1/status", "/nothing"):
        headers = open_service.client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/page/../app.py", "/page/%2e%2e/app.py", "/page//etc/passwd", "/page/settings.py"])
def test_nothing_but_the_page_is_served(open_service: Running, path: str) -> None:
    assert open_service.client.get(path).status_code == 404


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "%2e%2e%2f%2e%2e", "%00", "a'; DROP TABLE requests; --", "x" * 5000]
)
def test_strange_ids_are_not_found_and_do_no_harm(open_service: Running, name: str) -> None:
    assert open_service.client.get(f"/v1/edits/{name}").status_code in (404, 405)
    assert open_service.client.delete(f"/v1/edits/{name}").status_code in (404, 405)
    assert open_service.client.get(f"/v1/versions/{name}").status_code == 404
    assert open_service.client.get("/v1/edits").status_code == 200


# ---------------------------------------------------------------- back-pressure


def test_when_the_queue_is_full_new_edits_wait_outside_and_known_ones_are_answered(tmp_path: Path) -> None:
    with running(tmp_path, max_waiting=3) as run:
        run.pipeline.gate.clear()
        assert run.client.post("/v1/edits", json=[edit(n) for n in range(3)]).status_code == 202
        full = run.client.post("/v1/edits", json=edit(3))
        assert full.status_code == 429 and int(full.headers["retry-after"]) >= 1
        assert run.client.post("/v1/edits", json=edit(1)).json()["results"][0]["status"] == "duplicate"
        too_many = run.client.post("/v1/edits", json=[edit(n) for n in range(4, 9)])
        assert too_many.status_code == 413
        run.pipeline.gate.set()
        settled(run, "edit-2")
        assert run.client.post("/v1/edits", json=edit(3)).status_code == 202


def test_more_questions_than_allowed_are_refused_at_once(tmp_path: Path) -> None:
    with running(tmp_path, max_queries=2) as run:
        settled_head = run.client.get("/readyz")
        while settled_head.status_code != 200:
            settled_head = run.client.get("/readyz")
        run.evaluators.gate.clear()
        statuses: list[int] = []

        def ask() -> None:
            statuses.append(run.client.post("/v1/query", json={"question": "why"}).status_code)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 10
        while (
            answer := run.client.post("/v1/query", json={"question": "why", "max_new_tokens": 0})
        ).status_code != 422:
            assert time.monotonic() < deadline
        while run.service.asking._room._value and time.monotonic() < deadline:
            time.sleep(0.01)
        answer = run.client.post("/v1/query", json={"question": "why"})
        assert answer.status_code == 429 and "retry-after" in answer.headers
        run.evaluators.gate.set()
        for thread in threads:
            thread.join()
        assert statuses == [200, 200]


# ---------------------------------------------------------------- reading


def test_lists_come_in_pages_without_gaps(tmp_path: Path) -> None:
    with running(tmp_path, size=2) as run:
        run.client.post("/v1/edits", json=[edit(n) for n in range(7)])
        settled(run, "edit-6")
        seen: list[str] = []
        before: int | None = None
        while True:
            page = run.client.get("/v1/edits", params={"limit": 3, **({"before": before} if before else {})}).json()
            seen += [row["id"] for row in page["edits"]]
            before = page["next"]
            if before is None:
                break
        assert seen == [f"edit-{n}" for n in reversed(range(7))]
        versions: list[int] = []
        before = None
        while True:
            page = run.client.get("/v1/versions", params={"limit": 2, **({"before": before} if before else {})}).json()
            versions += [row["sequence"] for row in page["versions"]]
            before = page["next"]
            if before is None:
                break
        assert versions == [4, 3, 2, 1, 0]
        assert run.client.get("/v1/versions/v2").json()["request_ids"] == ["edit-2", "edit-3"]
        assert run.client.get("/v1/versions/head").json()["edits"] == 7
        assert run.client.get("/v1/versions/v9").status_code == 404
        for bad in ("limit=0", "limit=501", "before=0", "before=99999999999999999999", "state=lost", "limit=x"):
            assert run.client.get(f"/v1/edits?{bad}").status_code == 422


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("relation=capital", [4, 2, 0]),
        ("relation=capital&outcome=landed", [2, 0]),
        ("outcome=weak", [4]),
        ("outcome=landed", [2, 0]),
        ("state=rejected", [5]),
        ("state=applied&relation=lies in", [3, 1]),
        ("q=place 3", [3]),
        ("q=oslo&state=applied", [4]),
        ("q=nowhere", []),
        ("relation=cap", []),
        ("relation=capital&limit=2", [4, 2]),
    ],
)
def test_edits_are_found_by_words_state_outcome_and_relation(filtered: Running, asked: str, found: list[int]) -> None:
    rows = filtered.client.get(f"/v1/edits?{asked}").json()["edits"]
    assert [row["id"] for row in rows] == [f"edit-{n}" for n in found]


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Six edits of two relations: landed and weak ones, some that nobody looked at, and one that was rejected."""
    targets = ["landed Rome", "Rome", "landed Rome", "Rome", "weakly Oslo", "refused Oslo"]
    with running(tmp_path_factory.mktemp("filtered"), size=1) as made:
        for n, target in enumerate(targets):
            relation = ("capital", "lies in")[n % 2]
            made.client.post("/v1/edits", json=edit(n, target_new=target, relation=relation))
            settled(made, f"edit-{n}", "rejected" if n == 5 else "applied")
        yield made


def test_every_route_that_is_read_refuses_a_parameter_that_it_does_not_have(filtered: Running) -> None:
    paths = filtered.client.get("/openapi.json").json()["paths"]
    reads = [path for path, calls in paths.items() if "get" in calls and path not in ("/healthz", "/readyz")]
    assert len(reads) > 10
    for path in reads:
        answer = filtered.client.get(
            path.replace("{id}", "edit-0").replace("{name}", "head"), params={"relations": "x"}
        )
        assert answer.status_code == 400, path
        error = answer.json()["error"]
        assert "there is no parameter 'relations' here; allowed: " in error["message"], path
    said = filtered.client.get("/v1/edits?relations=x").json()["error"]["message"]
    assert said.endswith("allowed: before, limit, outcome, q, relation, state")


def test_metrics_tell_of_edits_calls_and_versions(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        run.client.post("/v1/edits", json=[edit(n) for n in range(3)])
        settled(run, "edit-2")
        run.client.post("/v1/evaluations", json={"sample": 2})
        while run.journal.counts().evaluations == 0:
            time.sleep(0.01)
        run.client.get("/no/such/path/with/a/secret")
        lines = run.client.get("/metrics").text.splitlines()
        for line in (
            'errata_edits{state="applied"} 3.0',
            "errata_queue_edits 0.0",
            "errata_version_edits 3.0",
            "errata_edits_written_total 3.0",
            "errata_batch_seconds_count 1.0",
            "errata_accept_seconds_count 1.0",
            "errata_ready 1.0",
            'errata_http_requests_total{method="POST",route="/v1/edits",status="202"} 1.0',
            'errata_http_requests_total{method="other",route="other",status="404"} 1.0',
            'errata_evaluation{arm="edited",kind="asked",metric="efficacy"} 0.5',
        ):
            assert line in lines, line
        assert "secret" not in "\n".join(lines)


# ---------------------------------------------------------------- questions


def test_arms_answer_side_by_side_with_what_was_found_and_chosen(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        run.client.post("/v1/edits", json=edit(1))
        settled(run, "edit-1")
        found = run.client.post("/v1/query", json={"question": "Place 1 lies in"}).json()
        assert found["sequence"] == 1 and found["edits"] == 1
        (answer,) = found["answers"]
        assert list(answer["arms"]) == ["base", "edited", "memory", "edited_memory", "routed"]
        assert answer["arms"]["base"] == {"answer": "base says Place 1 lies in", "tokens": 4}
        memory = answer["arms"]["memory"]
        assert memory["chosen"]["edit"] == "edit-1" and memory["chosen"]["statement"] == "Place 1 lies in Rome."
        assert memory["reason"] == "because" and len(memory["retrieved"]) == 1
        one = run.client.post("/v1/query", json={"questions": ["a", "b"], "arms": ["edited"]}).json()
        assert [list(a["arms"]) for a in one["answers"]] == [["edited"], ["edited"]]
        for bad in (
            {},
            {"question": "a", "questions": ["b"]},
            {"question": "a", "arms": []},
            {"question": "a", "arms": ["all"]},
            {"question": "a", "arms": ["base", "base"]},
            {"questions": ["x"] * 65},
            {"question": "a\x07"},
        ):
            assert run.client.post("/v1/query", json=bad).status_code == 422, bad


def test_questions_before_the_first_version_are_told_to_come_back(tmp_path: Path) -> None:
    with running(tmp_path, prepare=lambda pipeline: pipeline.start_gate.clear()) as run:
        assert run.client.get("/healthz").status_code == 200
        assert run.client.get("/readyz").status_code == 503
        answer = run.client.post("/v1/query", json={"question": "a"})
        assert answer.status_code == 503 and "retry-after" in answer.headers
        # accepted all the same: the journal is there
        assert run.client.post("/v1/edits", json=edit(1)).status_code == 202
        run.pipeline.start_gate.set()
        settled(run, "edit-1")
        assert run.client.get("/readyz").json() == {"status": "running"}


CHAT = {"messages": [{"role": "user", "content": [{"type": "text", "text": "Where?"}]}]}


def test_the_models_are_the_ways_of_answering(open_service: Running) -> None:
    client = open_service.client
    names = ["errata", "errata-base", "errata-edited", "errata-memory", "errata-edited-memory"]
    assert [m["id"] for m in client.get("/v1/models").json()["data"]] == names
    assert client.get("/v1/models/errata").json()["id"] == "errata"
    assert client.get("/v1/models/gpt-9").status_code == 404
    arms = ["routed", "base", "edited", "memory", "edited_memory"]
    for name, arm in zip(names, arms, strict=True):
        for said in (name, f"errata/{arm}", arm):
            answer = client.post("/v1/chat/completions", json={**CHAT, "model": said}).json()
            assert answer["errata"]["arm"] == arm and answer["model"] == said
            assert answer["choices"][0]["message"]["content"] == f"{arm} says Where?"


def test_usual_parameters_are_honored_neutral_ones_taken_and_others_refused(open_service: Running) -> None:
    client, body = open_service.client, {**CHAT, "model": "errata-edited"}
    answer = client.post("/v1/chat/completions", json={**body, "temperature": 0, "max_tokens": 2}).json()
    assert answer["choices"][0]["message"]["content"] == "edited says"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    neutral = {
        "n": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "logprobs": False, "tools": [],
        "tool_choice": "auto", "response_format": {"type": "text"}, "user": "me", "metadata": {"a": "b"}, "seed": 3,
        "stop": None, "top_p": 1.0, "stream": False, "service_tier": "auto",
    }  # fmt: skip
    assert client.post("/v1/chat/completions", json={**body, **neutral}).status_code == 200
    for bad in ({"n": 2}, {"tools": [{"type": "function"}]}, {"logprobs": True}, {"presence_penalty": 0.5},
                {"response_format": {"type": "json_object"}}, {"logit_bias": {"5": 1}}):  # fmt: skip
        refused = client.post("/v1/chat/completions", json={**body, **bad})
        assert refused.status_code == 400 and refused.json()["error"]["code"] == "unsupported_parameter"
        assert next(iter(bad)) in refused.json()["error"]["message"]
    for unfit in ({"messages": []}, {"messages": [{"role": "assistant", "content": "a"}]}, {"strange": 1}):
        assert client.post("/v1/chat/completions", json={**body, **unfit}).status_code == 422
    strange = client.post("/v1/chat/completions", json={**body, "model": "gpt-9"})
    assert strange.status_code == 404 and strange.json()["error"]["code"] == "model_not_found"


def test_an_answer_says_what_it_rests_on(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        run.client.post("/v1/edits", json=edit(1))
        settled(run, "edit-1")
        answer = run.client.post("/v1/chat/completions", json={**CHAT, "model": "errata"})
        view, version = answer.json()["errata"], run.client.get("/v1/versions/head").json()
        assert view["decision"] == "in" and view["router"] == "r" * 64 and view["version"] == version["digest"]
        assert view["chosen"]["edit"] == "edit-1" and view["chosen"]["similarity"] == 0.9
        assert answer.headers["x-errata-edit"] == "edit-1" and answer.headers["x-errata-decision"] == "in"
        assert answer.headers["x-errata-version"] == version["digest"] and answer.headers["x-errata-arm"] == "routed"
        assert unquote(answer.headers["x-errata-statement"]) == view["chosen"]["statement"]
        base = run.client.post("/v1/chat/completions", json={**CHAT, "model": "errata-base"})
        assert "decision" not in base.json()["errata"] and "x-errata-edit" not in base.headers
        counted = run.client.get("/metrics").text
        assert 'errata_decisions_total{arm="routed",decision="in"} 1.0' in counted and 'arm="base"' not in counted


def test_a_text_is_continued(open_service: Running) -> None:
    body = {"model": "errata-base", "prompt": "Rome lies in"}
    answer = open_service.client.post("/v1/completions", json=body).json()
    assert answer["object"] == "text_completion" and answer["choices"][0]["text"] == "base says Rome lies in"
    assert open_service.client.post("/v1/completions", json={**body, "prompt": ["a", "b"]}).status_code == 422
    events = _events(open_service.client.post("/v1/completions", json={**body, "stream": True}).text)
    assert "".join(e["choices"][0]["text"] for e in events) == "base says Rome lies in"


def _events(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_streamed_chat_adds_up_to_the_whole(open_service: Running) -> None:
    body = {
        "model": "errata-base",
        "messages": [{"role": "user", "content": "one two three four five six"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    answer = open_service.client.post("/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = _events(answer.text)
    pieces = [e["choices"][0]["delta"].get("content", "") for e in events if e["choices"]]
    assert "".join(pieces) == "base says one two three four five six" and len([p for p in pieces if p]) == 8
    assert events[-1]["usage"]["completion_tokens"] == 8
    assert [e["choices"][0]["finish_reason"] for e in events if e["choices"]][-1] == "stop"
    assert events[0]["errata"]["arm"] == "base"


def test_a_client_that_leaves_and_an_answer_that_takes_too_long_end_it(tmp_path: Path) -> None:
    with running(tmp_path, answer_seconds=1e-9, max_queries=1) as run:
        for _ in range(3):  # its room is given back each time
            late = run.client.post("/v1/chat/completions", json={**CHAT, "model": "errata-base"})
            assert late.status_code == 504 and late.json()["error"]["code"] == "deadline"
        events = _events(run.client.post("/v1/completions", json={
            "model": "errata-base", "prompt": "a b", "stream": True,
        }).text)  # fmt: skip
        assert events[-1]["error"]["code"] == "deadline"
        assert run.evaluators.closed == ["base"] * 4


def test_a_share_of_the_questions_becomes_traces(tmp_path):
    kept: list[Any] = []
    draws = iter([0.4, 0.6])
    with running(tmp_path) as run:
        run.service.traces = Traces(kept.append, 0.5, lambda: next(draws))
        run.client.post("/v1/edits", json=edit(1))
        while run.journal.counts().accepted:
            time.sleep(0.01)
        for question in ("Place 1 lies in", "Place 2 lies in"):
            assert run.client.post("/v1/query", json={"question": question, "arms": ["edited", "routed"]}).is_success
    (trace,) = kept
    assert trace["inputs"] == {"questions": ["Place 1 lies in"]} and trace["ended_ns"] > trace["started_ns"]
    assert trace["outputs"]["answers"][0]["edited"] == "edited says Place 1 lies in"
    assert [child["name"] for child in trace["children"]] == ["edited", "routed"]
    assert trace["children"][1]["outputs"][0]["chosen"]["edit"] == "edit-1"
