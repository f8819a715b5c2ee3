"""Streams that update: what is taken back leaves, the newest by event time holds, however late it came."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errata.editing.request import EditRequest, Retraction
from errata.evaluation.datasets.updating import UpdatingStream
from errata.orchestrator.history.verify import verify
from errata.orchestrator.journal.fail_points import InjectedCrash, raise_once
from errata.orchestrator.journal.intake import Intake
from errata.orchestrator.run.pipeline import Pipeline
from errata.orchestrator.sources.base import deliveries_of
from tests.unit.orchestrator.run.test_repairing import running

DAY = datetime(2026, 3, 1, tzinfo=UTC)


def edit(name: str, target: str, day: int | None = None, subject: str = "Alice") -> EditRequest:
    at = None if day is None else DAY + timedelta(days=day)
    return EditRequest(id=name, subject=subject, prompt="{} works in", target_new=target, event_at=at)


def back(name: str, retracts: str, day: int | None = None) -> Retraction:
    return Retraction(id=name, retracts=retracts, event_at=None if day is None else DAY + timedelta(days=day))


def take(pipeline: Pipeline, *records: EditRequest | Retraction, write: bool = True) -> None:
    answers = Intake(pipeline.journal).accept(records)
    assert not [answer for answer in answers if answer.refused], answers
    while write and pipeline.write_next(ended=True) is not None:
        pass


def holds(pipeline: Pipeline) -> dict[str, str]:
    """What is in the weights, by subject; memory and editor agree."""
    rows = pipeline.journal.requests("applied")
    assert set(pipeline.editor.held) == {row.id for row in rows}
    assert pipeline.memory.active() == {row.seq for row in rows}
    return {row.request.subject: row.request.target_new for row in rows}


def state(pipeline: Pipeline, name: str) -> tuple[str, str | None]:
    row = pipeline.journal.request(name)
    assert row is not None
    return row.state, row.superseded_by


def test_the_newest_by_event_time_holds_whenever_it_comes(tmp_path: Path) -> None:
    with running(tmp_path / "run", every=None) as pipeline:
        take(pipeline, edit("b", "Rome", 5))
        take(pipeline, edit("a", "Paris", 3))  # late: it was true before
        assert holds(pipeline) == {"Alice": "Rome"} and state(pipeline, "a") == ("superseded", "b")
        assert pipeline.journal.request("a").applied_in is None, "it was never written"
        take(pipeline, edit("d", "Oslo", 9), edit("c", "Bonn", 7))  # out of order in one batch
        assert holds(pipeline) == {"Alice": "Oslo"}
        assert state(pipeline, "c") == ("superseded", "d") and state(pipeline, "b") == ("superseded", "d")
        take(pipeline, edit("e", "Kyiv"))  # tells no time: it came just now
        assert holds(pipeline) == {"Alice": "Kyiv"}
        take(pipeline, edit("f", "Riga", 10))
        assert holds(pipeline) == {"Alice": "Kyiv"}
    assert verify(tmp_path / "run", None).sound


def test_what_is_taken_back_leaves_with_older_values_and_newer_ones_stay(tmp_path: Path) -> None:
    with running(tmp_path / "run", every=None) as pipeline:
        take(pipeline, edit("a", "Paris"), edit("x", "Rome", subject="Bob"))
        take(pipeline, edit("b", "Rome"))
        take(pipeline, back("r1", "b"))
        assert holds(pipeline) == {"Bob": "Rome"}, "the older value does not come back"
        assert pipeline.head().kind == "revert"
        (row,) = pipeline.journal.retractions_of([pipeline.journal.request("b").fact_key])
        assert (row.state, row.sequence) == ("done", pipeline.head().sequence)
        take(pipeline, edit("c", "Oslo"))
        take(pipeline, back("r2", "a"))
        assert holds(pipeline) == {"Bob": "Rome", "Alice": "Oslo"}
        answers = Intake(pipeline.journal).accept([back("r2", "a"), back("r2", "c"), back("a", "c")])
        assert [answer.duplicate for answer in answers] == [True, False, False]
        assert [answer.refused is None for answer in answers] == [True, False, False]
    assert verify(tmp_path / "run", None).sound


def test_a_retraction_that_comes_first_waits_for_its_request(tmp_path: Path) -> None:
    with running(tmp_path / "run", every=None) as pipeline:
        take(pipeline, back("r", "a"))
        assert pipeline.head().sequence == 0
        take(pipeline, edit("a", "Paris"), edit("x", "Rome", subject="Bob"))
        assert holds(pipeline) == {"Bob": "Rome"} and state(pipeline, "a") == ("reverted", None)


def test_what_was_true_before_it_was_taken_back_is_late(tmp_path: Path) -> None:
    with running(tmp_path / "run", every=None) as pipeline:
        take(pipeline, edit("a", "Paris", 1))
        take(pipeline, back("r", "a", 4))
        take(pipeline, edit("b", "Rome", 0))
        assert holds(pipeline) == {} and state(pipeline, "b") == ("reverted", None)
        take(pipeline, edit("c", "Oslo", 3))  # what was taken back had ended by then
        assert holds(pipeline) == {"Alice": "Oslo"}


def oracle(records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """What holds at the end, from the events in the order in which they happened."""
    value: dict[str, tuple[str, str]] = {}
    for record in sorted(records, key=lambda one: (one["event_at"], "retracts" in one)):
        if "retracts" not in record:
            value[record["subject"]] = (record["id"], record["target_new"])
        else:
            value = {subject: held for subject, held in value.items() if held[0] != record["retracts"]}
    return {subject: target for subject, (_, target) in value.items()}


@given(st.integers(0, 10**6))
@settings(max_examples=12, deadline=None)
def test_any_order_of_arrival_ends_in_what_happened_last(seed: int) -> None:
    random = Random(seed)
    records = list(
        UpdatingStream(40, 8, late=0.3, retracted=0.15, timed=True, delay=8, seed=seed, subjects=("Alice", "Bob"))
    )
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "run", every=None) as pipeline:
        while records_left := records[:]:
            records = records_left[random.randint(1, 9) :]
            part = records_left[: len(records_left) - len(records)]
            requests = [
                d.request for raw in part for d in deliveries_of(raw, "x", None, schema="own", target="default")
            ]
            take(pipeline, *[request for request in requests if request is not None], write=random.random() < 0.7)
        take(pipeline)
        everything = list(
            UpdatingStream(40, 8, late=0.3, retracted=0.15, timed=True, delay=8, seed=seed, subjects=("Alice", "Bob"))
        )
        assert holds(pipeline) == oracle(everything)


@pytest.mark.parametrize("point", ["after_retraction", "after_retraction_reverted", "after_commit", "artifact_renamed"])
def test_a_crash_changes_nothing(tmp_path: Path, point: str) -> None:
    first = [edit("a", "Paris", 1), edit("x", "Rome", 1, subject="Bob")]
    second = [back("r", "a", 4), edit("b", "Rome", 0), edit("y", "Oslo", 2, subject="Bob")]
    with running(tmp_path / "run", every=None) as pipeline:
        take(pipeline, *first)
        with raise_once(point), pytest.raises(InjectedCrash):
            take(pipeline, *second)
    with running(tmp_path / "run", every=None) as pipeline:
        take(pipeline, *second)
        assert holds(pipeline) == {"Bob": "Oslo"}
        kinds = [version.kind for version in pipeline.journal.versions()]
        assert kinds.count("revert") == 1
    assert verify(tmp_path / "run", None).sound
