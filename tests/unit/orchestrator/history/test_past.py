"""What was true at another time, and what was known by then: a table written by hand, and a plain simulation."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from random import Random

import pytest

from errata.orchestrator.history.past import GoneFacts, Moment, facts_at
from errata.orchestrator.run.pipeline import Pipeline
from tests.unit.orchestrator.run.test_repairing import running
from tests.unit.orchestrator.run.test_updating import DAY, back, edit, take


def said(pipeline: Pipeline, as_of: float | None = None, known: int | None = None) -> str | None:
    """What Alice's fact was, on a day, as known in a version."""
    journal = pipeline.journal
    moment = Moment(
        None if as_of is None else DAY + timedelta(days=as_of), None if known is None else journal.version(known)
    )
    keys = {row.fact_key for row in journal.requests() if row.fact_key is not None and row.request.subject == "Alice"}
    found = facts_at(journal, keys, moment)
    assert len(found) <= 1
    return found[0].request.target_new if found else None


def test_by_event_time_by_knowledge_and_by_both(tmp_path: Path) -> None:
    with running(tmp_path / "run", every=None) as pipeline:
        take(pipeline, edit("a", "Paris", 1))  # v1
        take(pipeline, edit("c", "Oslo", 5))  # v2
        take(pipeline, edit("x", "Lyon", 2, subject="Bob"))  # v3
        take(pipeline, edit("b", "Rome", 3))  # late: known now, and never written
        assert [said(pipeline, day) for day in (0, 1, 2.5, 3, 4.9, 5, 99)] == [
            None,
            "Paris",
            "Paris",
            "Rome",
            "Rome",
            "Oslo",
            "Oslo",
        ]
        assert [said(pipeline, None, version) for version in (0, 1, 2, 3)] == [None, "Paris", "Oslo", "Oslo"]
        assert said(pipeline, 4, 2) == "Paris", "what came late was not known then"
        assert said(pipeline, 99, 1) == "Paris" and said(pipeline, 0.5, 3) is None
        assert said(pipeline) == "Oslo"


def test_what_was_taken_back_was_true_until_its_end_and_a_mistake_never_was(tmp_path: Path) -> None:
    with running(tmp_path / "run", every=None) as pipeline:
        take(pipeline, edit("a", "Paris", 1))  # v1
        take(pipeline, edit("b", "Rome", 4))  # v2
        take(pipeline, back("r", "b", 6))  # v3
        head = pipeline.journal.head().sequence
        assert said(pipeline) is None and said(pipeline, None, 2) == "Rome"
        assert [said(pipeline, day) for day in (2, 4, 5.9, 6, 50)] == ["Paris", "Rome", "Rome", None, None]
        assert said(pipeline, 50, 2) == "Rome", "nobody knew of the end yet"
        take(pipeline, edit("c", "Bonn", 8))
        pipeline.revert(["c"], reason="a mistake")
        assert said(pipeline, 9) is None and said(pipeline, 9, head + 1) == "Bonn" and said(pipeline, 5) == "Rome"


def test_facts_of_which_nothing_holds_are_found_by_their_subject(tmp_path: Path) -> None:
    with running(tmp_path / "run", every=None) as pipeline:
        take(pipeline, edit("a", "Paris", 1), edit("x", "Lyon", 2, subject="Bob"))
        gone = GoneFacts(pipeline.journal)
        assert gone.named(["Where does Alice work?", "And Bob?"]) == set()
        pipeline.revert(["a"], reason="wrong")
        row = pipeline.journal.request("a")
        assert row is not None and gone.named(["Where does Alice work?", "And Bob?"]) == {row.fact_key}
        assert gone.named(["Where does Alicea work?"]) == set()


@pytest.mark.parametrize("seed", range(6))
def test_any_stream_gives_what_a_plain_simulation_gives(seed: int, tmp_path: Path) -> None:
    random = Random(seed)
    told: list[tuple[int, float, str]] = []  # (version by which it was known, day, value)
    with running(tmp_path / "run", every=None) as pipeline:
        for number in range(12):
            day = random.randrange(40) + number / 100
            name = f"e{number}"
            take(pipeline, edit(name, f"city {number}", 0).model_copy(update={"event_at": DAY + timedelta(days=day)}))
            row = pipeline.journal.request(name)
            assert row is not None
            known = row.applied_in if row.applied_in is not None else pipeline.journal.head().sequence + 1
            told.append((known, day, f"city {number}"))
            take(pipeline, edit(f"other{number}", f"town {number}", number, subject="Bob"))  # a commit between
        for day in (*range(0, 45, 4), 7.5):
            for version in (None, 0, 3, 9, pipeline.journal.head().sequence):
                seen = [(at, value) for since, at, value in told if at <= day and (version is None or since <= version)]
                assert said(pipeline, day, version) == (max(seen)[1] if seen else None), (day, version)
