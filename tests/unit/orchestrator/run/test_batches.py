"""Batches: by count, by age, one per fact, and the same whenever the requests came."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errata.editing.request import EditRequest
from errata.orchestrator.run.batches import Batcher, plan_batch


def ask(name: str, subject: str, relation: str = "capital") -> EditRequest:
    return EditRequest(
        id=name, subject=subject, prompt="The capital of {} is", target_new=f"town {name}", relation=relation
    )


def test_a_batch_takes_the_first_requests_in_order():
    pending = [ask("a", "France"), ask("b", "Spain"), ask("c", "Italy")]
    plan = plan_batch(pending, 2)
    assert plan and [request.id for request in plan.requests] == ["a", "b"] and plan.superseded == ()
    batch = plan.batch(7)
    assert batch.sequence == 7 and batch.requests == tuple(pending[:2])
    assert plan_batch([], 2) is None


def test_the_last_writer_of_a_fact_wins():
    pending = [
        ask("a", "France"),
        ask("b", "Spain"),
        ask("c", "France "),
        ask("d", "France"),
        ask("e", "France"),
    ]
    plan = plan_batch(pending, 4)
    assert plan and [request.id for request in plan.requests] == ["b", "d"]
    assert plan.superseded == (("a", "d"), ("c", "d")), "'e' is beyond this batch"


def test_without_a_relation_the_prompt_names_the_fact():
    def free(name: str, prompt: str) -> EditRequest:
        return EditRequest(id=name, subject="France", prompt=prompt, target_new=name)

    plan = plan_batch([free("a", "{} lies in"), free("b", "{} speaks"), free("c", "{} lies in")], 8)
    assert plan and [request.id for request in plan.requests] == ["b", "c"] and plan.superseded == (("a", "c"),)


def test_distinct_subjects_wait_for_the_next_batch():
    pending = [ask("a", "France"), ask("b", "France", "currency"), ask("c", "Spain")]
    plan = plan_batch(pending, 3, distinct_subjects=True)
    assert plan and [request.id for request in plan.requests] == ["a", "c"] and plan.superseded == ()
    # the newest of the capital waits behind the currency: nothing gives way to what is not in the batch
    plan = plan_batch([*pending, ask("d", "France")], 4, distinct_subjects=True)
    assert plan and [request.id for request in plan.requests] == ["b", "c"] and plan.superseded == ()


def test_a_batch_of_one_subject_takes_all_that_waits_about_it():
    pending = [ask("a", "France"), ask("b", "Spain"), ask("c", "france", "currency"), ask("d", "France")]
    plan = plan_batch(pending, 4, by_subject=True)
    # the first capital of France gave way, so Spain is first in line
    assert plan and [request.id for request in plan.requests] == ["b"] and plan.superseded == ()
    plan = plan_batch([pending[0], *pending[2:]], 4, by_subject=True)
    assert plan and [request.id for request in plan.requests] == ["c", "d"] and plan.superseded == (("a", "d"),)
    plan = plan_batch(pending, 2, by_subject=True)
    assert plan and [request.id for request in plan.requests] == ["a"], "what is beyond the size waits its turn"


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=30),
    st.integers(1, 7),
    st.sampled_from(["", "distinct_subjects", "by_subject"]),
)
def test_every_request_is_dealt_with_once_and_the_newest_of_a_fact_last(subjects, size, rule):
    waiting = [ask(str(number), f"land {subject}") for number, subject in enumerate(subjects)]
    order: list[str] = []
    while waiting:
        plan = plan_batch(waiting, size, **({rule: True} if rule else {}))
        assert plan is not None
        if rule == "by_subject":
            assert len({request.subject for request in plan.requests}) == 1
        facts = [request.fact_key for request in plan.requests]
        assert len(facts) == len(set(facts)) <= size
        settled = [older for older, _ in plan.superseded] + [request.id for request in plan.requests]
        order += settled
        waiting = [request for request in waiting if request.id not in settled]
    assert sorted(order, key=int) == [str(number) for number in range(len(subjects))]
    for subject in set(subjects):
        of_fact = [int(name) for name in order if subjects[int(name)] == subject]
        assert of_fact == sorted(of_fact)


def test_batches_are_due_by_count_or_at_the_end():
    batcher = Batcher(size=3)
    assert [batcher.due(waiting, ended=False) for waiting in (0, 2, 3, 9)] == [False, False, True, True]
    assert [batcher.due(waiting, ended=True) for waiting in (0, 1)] == [False, True]


def test_batches_are_due_by_age_when_asked_for():
    now = datetime(2026, 1, 1, tzinfo=UTC)
    batcher = Batcher(size=3, max_age_seconds=2.0)
    young, old = now - timedelta(seconds=1.9), now - timedelta(seconds=2)
    assert not batcher.due(1, ended=False, oldest=young, now=now)
    assert batcher.due(1, ended=False, oldest=old, now=now)
    assert not batcher.due(0, ended=False, oldest=old, now=now)
    assert not Batcher(size=3).due(1, ended=False, oldest=old - timedelta(days=1), now=now)


@pytest.mark.parametrize(
    "settings",
    [{"size": 0}, {"size": 1, "max_age_seconds": -1.0}, {"size": 1, "max_age_seconds": float("nan")}],
)
def test_senseless_settings_are_refused(settings):
    with pytest.raises(ValueError, match="got"):
        Batcher(**settings)
    with pytest.raises(ValueError, match="got size 0"):
        plan_batch([], 0)
