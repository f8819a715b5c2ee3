"""Streams: both schemas, positions, bad records that do not stop the others, bad files that stop at once."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import fsspec
import pytest

from errata.editing.errors import UserError
from errata.orchestrator.sources.streams import open_stream
from tests.helpers.object_storage import local_s3, use_s3

GOOD = {"id": "a", "subject": "France", "prompt": "The capital of {} is", "target_new": "Lyon"}
EMPTY = {**GOOD, "id": "b", "target_new": " "}
ABSENT = {**GOOD, "id": "c", "prompt": "The capital of Spain is"}
COUNTERFACT = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Danielle Darrieux",
    },
    "paraphrase_prompts": ["Danielle Darrieux, a native"],
    "neighborhood_prompts": ["The native language of Montesquieu is"],
    "attribute_prompts": [],
    "generation_prompts": [],
}


def jsonl(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_own_records_keep_their_order_and_bad_ones_do_not_stop_the_others(tmp_path):
    path = jsonl(tmp_path / "s.jsonl", GOOD, EMPTY, ABSENT, {"subject": 3}, {**GOOD, "id": "d"})
    records = list(open_stream(path))
    assert [record.request.id if record.request else None for record in records] == [
        "a",
        None,
        None,
        None,
        "d",
    ]
    assert [record.position for record in records] == [f"s.jsonl:{number}" for number in range(1, 6)]
    assert "target_new" in (records[1].problem or "")
    assert "France" in (records[2].problem or "") and "Spain" in (records[2].problem or "")
    assert all((record.request is None) != (record.problem is None) for record in records)


def test_counterfact_is_recognized(tmp_path):
    (tmp_path / "cf.json").write_text(json.dumps([COUNTERFACT]))
    (record,) = open_stream(tmp_path / "cf.json")
    request = record.request
    assert request is not None and record.position == "cf.json#1"
    assert (request.id, request.relation) == ("cf-7", "P103")
    assert (request.target_new, request.target_true) == ("English", "French")
    assert request.text == "The mother tongue of Danielle Darrieux is"
    assert request.paraphrases == ("Danielle Darrieux, a native",)
    assert [(probe.prompt, probe.answer) for probe in request.neighborhood] == [
        ("The native language of Montesquieu is", "French")
    ]


def test_limit_and_skip_count_good_and_bad_records_alike(tmp_path):
    path = jsonl(tmp_path / "s.jsonl", GOOD, EMPTY, {**GOOD, "id": "d"}, {**GOOD, "id": "e"})
    assert [record.position for record in open_stream(path, limit=2, skip=1)] == ["s.jsonl:2", "s.jsonl:3"]
    with pytest.raises(UserError, match="holds no record with limit=None and skip=4"):
        open_stream(path, skip=4)


def test_a_malformed_line_is_reported_before_anything_starts(tmp_path):
    path = jsonl(tmp_path / "s.jsonl", GOOD, GOOD)
    path.write_text(path.read_text() + '{"subject": "Fra')
    with pytest.raises(UserError, match=r"s\.jsonl:3: malformed JSON"):
        open_stream(path, limit=1)


@pytest.mark.parametrize(
    ("content", "schema", "message"),
    [
        (None, "auto", "does not exist"),
        ("", "auto", "holds no record"),
        ('{"x": 1}\n', "auto", "no schema fits"),
        (json.dumps(GOOD), "no-such", "'no-such' is unknown; allowed: auto"),
        ("[{]", "auto", "s.jsonl:1: malformed JSON"),
    ],
)
def test_a_file_that_cannot_be_a_stream_is_one_clear_line(tmp_path, content, schema, message):
    path = tmp_path / "s.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        open_stream(path, schema)
    assert "\n" not in str(caught.value)


def test_the_papers_counterfact_records(shared_data):
    records = list(open_stream(shared_data / "counterfact" / "counterfact.json", limit=100))
    assert len(records) == 100 and all(record.request for record in records)
    assert len({record.request.id for record in records if record.request}) == 100


def test_fewer_questions_of_each_kind_are_the_first_ones_and_the_request_keeps_its_name(tmp_path):
    prompts = [f"The native language of person {i} is" for i in range(5)]
    record = {**COUNTERFACT, "neighborhood_prompts": prompts}
    path = tmp_path / "cf.json"
    path.write_text(json.dumps([record]))
    (whole,), (short,) = list(open_stream(path)), list(open_stream(path, probes=2))
    assert whole.request is not None and short.request is not None
    assert [probe.prompt for probe in short.request.neighborhood] == prompts[:2]
    assert len(whole.request.neighborhood) == 5 and short.request.paraphrases == whole.request.paraphrases
    assert short.request.id == whole.request.id and short.position == whole.position


def test_portability_questions_of_another_file_are_joined_by_the_record(tmp_path):
    asked = {"Recalled Relation": "x", "New Question": "Which land is it in?", "New Answer": "Italy"}
    (tmp_path / "cf.json").write_text(json.dumps([{**COUNTERFACT, "case_id": number} for number in (7, 8)]))
    (tmp_path / "port.json").write_text(json.dumps([{**COUNTERFACT, "case_id": 8, "portability": asked}]))
    plain, joined = (
        list(open_stream(tmp_path / "cf.json", portability=more)) for more in (None, tmp_path / "port.json")
    )
    assert [len(record.request.portability) for record in plain] == [0, 0]
    assert [len(record.request.portability) for record in joined] == [0, 1]
    assert joined[1].request.portability[0].prompt == "Which land is it in?"
    assert [record.request.id for record in joined] == [record.request.id for record in plain]
    with pytest.raises(UserError, match="holds no portability questions"):
        open_stream(tmp_path / "cf.json", portability=tmp_path / "cf.json")


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_a_stream_behind_a_url(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "home"))
    with local_s3("streams") as address:
        use_s3(monkeypatch, address)
        url = f"{kind}://streams/{uuid.uuid4().hex}/s.jsonl"
        with fsspec.open(url, "w") as file:
            file.write("".join(json.dumps(record) + "\n" for record in (GOOD, EMPTY, {**GOOD, "id": "d"})))
        records = list(open_stream(url))
        assert [record.request.id if record.request else None for record in records] == ["a", None, "d"]
        assert [record.position for record in records] == [f"s.jsonl:{number}" for number in (1, 2, 3)]
        assert [record.position for record in open_stream(url, skip=1, limit=1)] == ["s.jsonl:2"]
