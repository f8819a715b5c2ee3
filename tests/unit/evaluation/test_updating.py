"""Made-up streams of updates have the shares that they are asked for."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errata.editing.request import EditRequest, Retraction
from errata.evaluation.datasets import ValidRecord, open_dataset
from errata.evaluation.datasets.updating import UpdatingStream
from errata.orchestrator.sources.streams import open_stream


@given(st.integers(1, 300), st.data())
@settings(deadline=None, max_examples=40)
def test_every_edit_is_there_once_and_changes_its_fact(edits: int, data: st.DataObject) -> None:
    facts = data.draw(st.integers(1, edits))
    stream = UpdatingStream(edits, facts, late=0.3, seed=data.draw(st.integers(0, 5)))
    requests = [EditRequest.model_validate(record) for record in stream]
    assert sorted(int(request.id.split("-")[1]) for request in requests) == list(range(edits))
    assert len({request.fact_key for request in requests}) == facts
    said: dict[str, str] = {}
    for request in sorted(requests, key=lambda one: int(one.id.split("-")[1])):
        assert said.get(request.subject) != request.target_new
        said[request.subject] = request.target_new


def test_the_same_settings_give_the_same_stream_and_few_facts_change_most() -> None:
    stream = UpdatingStream(5000, 1000)
    assert list(stream) == list(stream)
    counts = Counter(record["subject"] for record in stream)
    (_, most), (_, tenth) = counts.most_common(10)[0], counts.most_common(10)[9]
    assert 5 < most / tenth < 20  # the tenth fact changes a tenth as often as the first
    assert len(list(stream)) - len(counts) == 4000


def test_late_records_and_those_that_take_back(tmp_path: object) -> None:
    stream = UpdatingStream(1000, 300, late=0.2, retracted=0.1, timed=True, delay=10)
    records = list(stream)
    back = {record["retracts"]: record for record in records if "retracts" in record}
    assert 60 < len(back) < 140
    at = {record["id"]: record["event_at"] for record in records}
    assert all(at[record["id"]] >= at[name] for name, record in back.items())
    times = [record["event_at"] for record in records]
    newest = [max(times[: i + 1]) for i in range(len(times))]
    assert 100 < sum(time < before for time, before in zip(times, newest, strict=True)) < 300


@pytest.mark.parametrize(
    "wrong", [{"facts": 0}, {"facts": 11}, {"facts": 5, "late": 1.5}, {"facts": 5, "retracted": -1}]
)
def test_settings_that_make_no_sense_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=list(wrong)[-1]):
        UpdatingStream(10, **wrong)  # type: ignore[arg-type]


def test_a_file_may_take_back_and_a_data_set_to_learn_from_has_none_of_it(tmp_path: Path) -> None:
    records = list(UpdatingStream(60, 20, retracted=0.2, timed=True))
    path = tmp_path / "updates.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    back = [record for record in records if "retracts" in record]
    requests = [record.request for record in open_stream(path)]
    assert [r.retracts for r in requests if isinstance(r, Retraction)] == [record["retracts"] for record in back]
    assert back and all(record.problem is None for record in open_stream(path))
    assert sum(isinstance(record, ValidRecord) for record in open_dataset(path)) == 60
    path.write_text(json.dumps({"id": "r", "retracts": ""}) + "\n")
    (bad,) = open_stream(path)
    assert bad.request is None and bad.problem is not None and "retracts" in bad.problem
