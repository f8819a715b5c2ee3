"""When a refresh is due, how two covariances are averaged, how a background estimate is given up."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from errata.actors.workers.covariance import EstimateJob
from errata.editing.covariance import KeyCovariance
from errata.editing.errors import ErrataError
from errata.orchestrator.covariance.refresh import PendingRefresh, Refresher, blend, crossed

JOB = EstimateJob(layers=(1,), tokens=5, version="v1")


@pytest.mark.parametrize(
    ("before", "after", "every", "passed"),
    [
        (0, 10, 50, None),
        (40, 50, 50, 50),
        (45, 55, 50, 50),
        (50, 60, 50, None),
        (10, 35, 10, 30),
        (0, 0, 5, None),
        (5, 5, 5, None),
        (0, 9, 1, 9),
        (0, 1000, None, None),
    ],
)
def test_the_multiple_that_was_passed(before, after, every, passed):
    assert crossed(before, after, every) == passed


@given(st.lists(st.integers(0, 7), max_size=40), st.integers(1, 9))
def test_however_batches_fall_every_multiple_is_crossed_once(sizes, every):
    edits, found = 0, []
    for size in sizes:
        found.append(crossed(edits, edits + size, every))
        edits += size
    passed = [multiple for multiple in found if multiple is not None]
    assert passed == sorted(set(passed)) and all(multiple % every == 0 for multiple in passed)
    assert (passed[-1] if passed else 0) == edits // every * every


def test_a_swap_is_due_at_the_first_boundary_at_or_after_its_place():
    pending = PendingRefresh(6, 9, "v", None)  # type: ignore[arg-type]
    assert [pending.due(edits) for edits in (6, 8, 9, 12)] == [False, False, True, True]


def test_blending_averages_means_and_not_sums():
    old = KeyCovariance({1: torch.eye(2, dtype=torch.float64) * 100}, 10, {"kind": "old"})  # mean 10 I
    new = KeyCovariance({1: torch.eye(2, dtype=torch.float64) * 4000}, 1000, {"kind": "new"})  # mean 4 I
    mixed = blend(old, new, 0.25)
    assert torch.allclose(mixed.mean(1), torch.eye(2, dtype=torch.float64) * (0.75 * 10 + 0.25 * 4), rtol=1e-15)
    assert mixed.tokens == 1000
    assert mixed.source == {"kind": "ema", "weight": 0.25, "old": old.digest, "new": new.digest}
    assert torch.equal(blend(old, new, 1.0).mean(1), new.mean(1))
    assert blend(old, new, 0.5).digest != mixed.digest


class _Slow:
    """An estimator that works until it is told to stop."""

    def __init__(self) -> None:
        self.begun, self.calls = threading.Event(), list[Any]()

    def estimate(self, job: Any, weights: Any, progress: Any, stop: threading.Event) -> Any:
        self.calls.append((job, weights))
        self.begun.set()
        if not stop.wait(30):
            return "an estimate"
        raise ErrataError("given up")


def test_closing_gives_up_what_runs_and_returns_after_it_has_ended():
    estimator = _Slow()
    refresher = Refresher(estimator)  # type: ignore[arg-type]
    pending = refresher.start(JOB, {"weights": 1}, triggered_at=6, lag=3)
    assert (pending.triggered_at, pending.swap_at, pending.version) == (6, 9, "v1")
    assert estimator.begun.wait(10)
    refresher.close()
    assert pending.future.done()
    with pytest.raises(ErrataError, match="given up"):
        pending.future.result(timeout=0)
    assert estimator.calls == [(JOB, {"weights": 1})]


def test_an_estimate_that_somebody_waits_for_is_given_up_from_another_thread():
    estimator = _Slow()
    refresher = Refresher(estimator)  # type: ignore[arg-type]
    with ThreadPoolExecutor(1) as pool:
        waited = pool.submit(refresher.estimate, JOB, {}, None)
        assert estimator.begun.wait(10)
        refresher.give_up()
        with pytest.raises(ErrataError, match="given up"):
            waited.result(timeout=10)
    with pytest.raises(ErrataError, match="given up"):  # nothing is begun after it
        refresher.estimate(JOB, {}, None)
    refresher.close()
