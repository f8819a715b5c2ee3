"""Random calls, drawn from the API's own description and from nothing at all: never a 5xx, nothing taken in that
does not fit. No models and no Ray: what is tried is the edge of the service."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from errata.orchestrator.service.bodies import EditIn
from tests.helpers.service import Running, running

schemathesis = pytest.importorskip("schemathesis", reason="the fuzz test needs schemathesis")

JSON_TYPE = {"Content-Type": "application/json"}
BODIES = ("/v1/edits", "/v1/query", "/v1/evaluations", "/v1/chat/completions", "/v1/pause", "/v1/resume", "/v1/refresh")
WHOLE = {
    "id": "edit-1",
    "subject": "Rome",
    "prompt": "{} lies in",
    "target_new": "Italy",
    "paraphrases": ["Rome is in"],
}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path, max_body_bytes=20_000, max_waiting=200, revert_wait_seconds=1) as made:
        yield made


def profile(examples: int) -> settings:
    """No shrinking: a failure shows the call as it was, and 10 000 calls stay minutes."""
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def described_calls(run: Running, examples: int) -> Counter[tuple[str, int]]:
    """Calls that fit the description and calls that do not, for every operation; how often each status came."""
    schema = schemathesis.openapi.from_dict(run.client.get("/openapi.json").json())
    seen: Counter[tuple[str, int]] = Counter()
    for operation in (result.ok() for result in schema.get_all_operations()):
        calls_of(operation, run, examples, seen)
    return seen


def calls_of(operation: Any, run: Running, examples: int, seen: Counter[tuple[str, int]]) -> None:
    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]

    @profile(examples)
    @given(case=st.one_of([operation.as_strategy(mode) for mode in modes]))
    def call(case: Any) -> None:
        asked = case.as_transport_kwargs(base_url="http://127.0.0.1")
        try:
            answer = run.client.request(
                asked["method"],
                asked["url"],
                params=asked.get("params"),
                headers=asked.get("headers"),
                json=asked.get("json"),
                content=asked.get("data"),
            )
        except (ValueError, TypeError, UnicodeError, httpx.InvalidURL, httpx.TransportError):
            return  # the client itself refuses to send such a thing
        seen[operation.label, answer.status_code] += 1
        check(answer, operation.label)

    call()


def random_bodies(run: Running, examples: int) -> Counter[tuple[str, int]]:
    """Bytes that mean nothing, JSON that means nothing, and valid edits with one thing changed."""
    leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
    anything = st.recursive(leaf, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
    changed = st.tuples(st.sampled_from([*WHOLE, "x"]), anything).map(lambda pair: {**WHOLE, pair[0]: pair[1]})
    seen: Counter[tuple[str, int]] = Counter()
    body = st.binary(max_size=300) | (anything | changed | st.lists(changed)).map(lambda v: json.dumps(v).encode())

    @profile(examples)
    @given(path=st.sampled_from(BODIES), sent=body)
    def call(path: str, sent: bytes) -> None:
        answer = run.client.post(path, content=sent, headers=JSON_TYPE)
        seen[path, answer.status_code] += 1
        check(answer, path)

    call()
    return seen


def by_status(seen: Counter[tuple[str, int]]) -> Counter[int]:
    """How often each status came."""
    found: Counter[int] = Counter()
    for (_, status), times in seen.items():
        found[status] += times
    return found


def check(answer: Any, label: str) -> None:
    assert answer.status_code < 500, (label, answer.status_code, answer.text[:300])
    if answer.status_code >= 400:
        assert answer.json()["error"]["message"].isprintable(), label


def nothing_strange_was_taken(run: Running) -> int:
    """Every edit in the journal passes the strict model again, with the id it was given; how many there are."""
    rows = run.journal.requests()
    for row in rows:
        kept = {key: value for key, value in row.payload.items() if value not in (None, [], "")}
        assert kept.pop("id") == row.id
        EditIn.model_validate_json(json.dumps({**kept, "id": row.id}), strict=True)
    assert run.client.get("/healthz").status_code == 200
    return len(rows)


def test_a_few_hundred_random_calls_do_no_harm(run: Running) -> None:
    seen = described_calls(run, 12)
    random_bodies(run, 200)
    assert len({label for label, _ in seen}) >= 18, seen
    assert any(label == "POST /v1/edits" and status == 202 for label, status in seen), "some calls fit"
    assert any(status == 422 for _, status in seen), "and some do not"
    assert nothing_strange_was_taken(run) > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_random_calls_do_no_harm(run: Running) -> None:
    seen = described_calls(run, 350)
    bodies = random_bodies(run, 4000)
    taken = nothing_strange_was_taken(run)
    print(
        f"\n{sum(seen.values())} calls of {len({label for label, _ in seen})} operations, {sum(bodies.values())} bodies"
    )
    print("statuses:", dict(sorted(by_status(seen).items())), dict(sorted(by_status(bodies).items())))
    print(f"{taken} edits taken in, each of which the strict model reads again")
    assert sum(seen.values()) + sum(bodies.values()) >= 10_000, seen
    assert taken > 0
