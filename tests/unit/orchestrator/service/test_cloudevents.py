"""Edits as CloudEvents: structured, binary and in batches; delivered twice they are one edit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.service import Running, edit, running

pytest.importorskip("cloudevents", reason="the library cloudevents is not installed here")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("events")) as made:
        yield made


def without_id(number: int) -> dict[str, Any]:
    return {key: value for key, value in edit(number).items() if key != "id"}


def event(number: int, data: Any, **changes: Any) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "type": "org.example.fact.changed",
        "source": "wiki",
        "id": f"change-{number}",
        "time": "2026-11-01T12:00:00Z",
        "datacontenttype": "application/json",
        "data": data,
        **changes,
    }


def send(service: Running, body: Any, kind: str) -> Any:
    return service.client.post("/v1/edits", content=json.dumps(body), headers={"Content-Type": kind})


STRUCTURED = "application/cloudevents+json; charset=utf-8"
BATCH = "application/cloudevents-batch+json"


def test_a_structured_event_is_one_edit_however_often_it_comes(service: Running) -> None:
    first = send(service, event(1, without_id(1)), STRUCTURED)
    assert first.status_code == 202, first.text
    assert first.json()["results"][0]["id"] == "wiki:change-1"
    assert send(service, event(1, without_id(1)), STRUCTURED).json()["results"][0]["status"] == "duplicate"
    story = service.client.get("/v1/edits/wiki:change-1").json()
    assert story["provenance"]["source"] == "wiki" and story["provenance"]["when"].startswith("2026-11-01T12:00")


def test_an_edit_that_has_an_id_keeps_it_and_a_source_that_is_no_id_is_digested(service: Running) -> None:
    assert send(service, event(2, edit(2)), STRUCTURED).json()["results"][0]["id"] == "edit-2"
    named = send(service, event(3, without_id(3), source="https://example.org/facts"), STRUCTURED)
    identifier = named.json()["results"][0]["id"]
    assert identifier.startswith("ce-") and len(identifier) == 35
    other = send(service, event(3, without_id(4), source="https://example.org/other"), STRUCTURED)
    assert other.json()["results"][0]["id"] != identifier


def test_a_binary_event_has_its_attributes_in_headers(service: Running) -> None:
    headers = {"ce-specversion": "1.0", "ce-type": "changed", "ce-source": "wiki", "ce-id": "binary-1"}
    answer = service.client.post("/v1/edits", json=without_id(5), headers=headers)
    assert answer.status_code == 202, answer.text
    assert answer.json()["results"][0]["id"] == "wiki:binary-1"


def test_a_batch_holds_several_events_and_an_event_several_edits(service: Running) -> None:
    body = [event(10, without_id(10)), event(11, {"edits": [edit(11), edit(12)]})]
    answer = send(service, body, BATCH)
    assert answer.status_code == 202, answer.text
    assert [result["id"] for result in answer.json()["results"]] == ["wiki:change-10", "edit-11", "edit-12"]


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        ({"specversion": "1.0", "id": "x", "data": {}}, STRUCTURED, 400),
        (event(20, None), STRUCTURED, 422),
        (event(20, "text"), STRUCTURED, 400),
        (event(20, without_id(20), specversion="7"), STRUCTURED, 400),
        (event(20, without_id(20), time="yesterday"), STRUCTURED, 400),
        ([], BATCH, 400),
        ({}, BATCH, 400),
        ([1], BATCH, 400),
        (event(20, {**without_id(20), "subject": ""}), STRUCTURED, 422),
    ],
)
def test_what_is_no_event_or_no_edit_is_refused(service: Running, body: Any, kind: str, status: int) -> None:
    before = service.journal.counts().requests
    answer = send(service, body, kind)
    assert answer.status_code == status, answer.text
    message = answer.json()["error"]["message"]
    assert message.isprintable() and len(message) < 500
    assert service.journal.counts().requests == before
