"""Crashes at every commit point of the run loop: after recovery everything is as in an undisturbed run.

The actors are called plainly here (`PlainCluster`), so that every point can be tried; what dies with real processes is
in `test_interruption.py` and `test_faults.py`.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from errata.editing.errors import UserError
from errata.orchestrator.config.run import RunConfig
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.fail_points import (
    DROPPING_POINTS,
    FAIL_POINTS,
    REPAIR_POINTS,
    RETRACTION_POINTS,
    REVERT_POINTS,
    InjectedCrash,
    raise_once,
)
from errata.orchestrator.report.summary import read_summary
from tests.integration.harness import (
    Outcome,
    PlainCluster,
    PlainEditor,
    PlainEvaluators,
    Weights,
    config,
    fact,
    facts,
    go,
    outcome,
    write_stream,
)

ELSEWHERE = {*REVERT_POINTS, *RETRACTION_POINTS, *REPAIR_POINTS, *DROPPING_POINTS, "after_snapshot_stored"}
"""Points that this course does not pass: see ``test_pipeline.py``, ``test_updating.py``, ``test_repairing.py`` and
``test_dropping.py``."""


def equal(left: Weights, right: Weights) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[layer], right[layer]) for layer in left)


def test_an_undisturbed_run_is_what_the_settings_say(undisturbed):
    result, weights, _ = undisturbed
    assert [len(batch) for batch in result.batches] == [3, 3, 3, 3]
    assert result.edits == (0, 3, 6, 9, 12)
    assert set(result.applications.values()) == {1}
    assert result.states.pop("fact-1") == "superseded" and set(result.states.values()) == {"applied"}
    result.states["fact-1"] = "superseded"
    assert [(after, edits) for after, _, edits in result.swaps] == [(0, 0), (3, 9)]
    assert [(at, state) for at, state, _ in result.refreshes] == [(6, "swapped"), (12, "started")]
    assert result.timeline == (0, 6, 12)
    assert len(set(result.deltas)) == 5 and all(torch.isfinite(weight).all() for weight in weights.values())


# Which visit of a point is taken: the third batch is written while a refresh is under way; a covariance is the
# second one that is stored or swapped, the refresh's.
VISITS = {
    "accept_in_transaction": 1,
    "after_accept": 1,
    "swap_in_transaction": 2,
    "after_swap": 2,
    "after_covariance_stored": 2,
    "after_refresh_started": 1,
    "after_evaluation": 2,
    "artifact_written": 7,
    "artifact_renamed": 8,
}


@pytest.mark.parametrize("point", [point for point in FAIL_POINTS if point not in ELSEWHERE])
def test_a_crash_at_any_commit_point_changes_nothing(point, tiny_checkpoint, stream, undisturbed, tmp_path):
    settings = config(tiny_checkpoint, stream)
    with raise_once(point, visit=VISITS.get(point, 3)), pytest.raises(InjectedCrash):
        go(settings, tmp_path / "run")
    weights = go(settings, tmp_path / "run", resume=True)
    expected, expected_weights, memory_digest = undisturbed
    assert outcome(tmp_path / "run") == expected
    assert equal(weights, expected_weights)
    assert PlainCluster.last.memory.digest() == memory_digest
    points = [point.edits for point in read_summary(tmp_path / "run" / "summary.json").timeline]
    assert points == [0, 6, 12]


def test_points_of_the_timeline_that_were_never_measured_are_measured_on_resume(
    tiny_checkpoint, stream, undisturbed, tmp_path, monkeypatch
):
    def fail(*_: Any) -> None:
        raise RuntimeError("no evaluation ends")

    settings = config(tiny_checkpoint, stream)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="no evaluation ends"):
        patch.setattr(PlainEvaluators, "evaluate", fail)
        go(settings, tmp_path / "run")
    assert outcome(tmp_path / "run").edits[-1] == 12 and outcome(tmp_path / "run").timeline == ()
    go(settings, tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == undisturbed[0]


def test_sigterm_ends_a_run_as_ctrl_c_does(tiny_checkpoint, stream, undisturbed, tmp_path, monkeypatch):
    def apply(self: PlainEditor, batch: Any, *told: Any, plain: Any = PlainEditor.apply) -> Any:
        if batch.sequence == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, batch, *told)

    settings = config(tiny_checkpoint, stream)
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PlainEditor, "apply", apply)
        go(settings, tmp_path / "run")
    assert signal.getsignal(signal.SIGTERM) is before
    assert outcome(tmp_path / "run").edits == (0, 3, 6)
    weights = go(settings, tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == undisturbed[0] and equal(weights, undisturbed[1])


def test_crash_after_crash(tiny_checkpoint, stream, undisturbed, tmp_path):
    settings = config(tiny_checkpoint, stream)
    for number, (point, visit) in enumerate(
        [
            ("artifact_written", 1),
            ("after_batch_applied", 1),
            ("after_commit", 2),
            ("after_refresh_started", 1),
            ("swap_in_transaction", 1),
            ("after_memory_add", 1),
        ]
    ):
        with raise_once(point, visit=visit), pytest.raises(InjectedCrash):
            go(settings, tmp_path / "run", resume=number > 0)
    weights = go(settings, tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == undisturbed[0] and equal(weights, undisturbed[1])


OVERLAP = {"refresh": {"every": 3, "lag": 6, "mode": "ema"}, "evaluation": {"every": None}}


@pytest.fixture(scope="module")
def overlapping(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Outcome, Weights]:
    """Every 3 edits with a lag of 6: the triggers at 6 and 9 fall into the time of the one at 3, which ends at 9."""
    directory = tmp_path_factory.mktemp("overlapping")
    settings = config(tiny_checkpoint, write_stream(directory / "facts.jsonl", facts(18)), **OVERLAP)
    weights = go(settings, directory / "run")
    return settings, outcome(directory / "run"), weights


def test_refreshes_that_overlap_are_passed_over(overlapping):
    assert [(at, state) for at, state, _ in overlapping[1].refreshes] == [(3, "swapped"), (12, "swapped")]
    assert [edits for _, _, edits in overlapping[1].swaps] == [0, 9, 18]


@pytest.mark.parametrize(
    ("crash", "visit"),
    [
        ("after_commit", 3),  # after 9 edits, before the swap that belongs there
        ("after_swap", 2),  # the swap stands in the journal, its refresh does not know it yet
        ("after_batch_planned", 4),  # after the swap at 9 edits: nothing is under way
        ("after_commit", 5),  # the refresh of 12 edits is under way
    ],
)
def test_refreshes_that_were_passed_over_are_passed_over_again_on_resume(crash, visit, overlapping, tmp_path):
    settings, whole, weights = overlapping
    with raise_once(crash, visit=visit), pytest.raises(InjectedCrash):
        go(settings, tmp_path / "run")
    again = go(settings, tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == whole and equal(again, weights)


def test_a_finished_run_may_be_resumed_and_a_longer_stream_goes_on(tiny_checkpoint, stream, undisturbed, tmp_path):
    go(config(tiny_checkpoint, stream, stream={"limit": 6}), tmp_path / "run")
    assert outcome(tmp_path / "run").edits == (0, 3, 6)
    weights = go(config(tiny_checkpoint, stream), tmp_path / "run", resume=True)
    expected, expected_weights, _ = undisturbed
    assert outcome(tmp_path / "run") == expected and equal(weights, expected_weights)
    go(config(tiny_checkpoint, stream), tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == expected


def test_a_damaged_delta_is_an_error_and_not_other_weights(tiny_checkpoint, stream, tmp_path):
    settings = config(tiny_checkpoint, stream)
    with raise_once("after_commit", visit=2), pytest.raises(InjectedCrash):
        go(settings, tmp_path / "run")
    with Journal.open(tmp_path / "run" / "journal.sqlite", read_only=True) as journal:
        name = journal.versions()[1].delta
    (file,) = (tmp_path / "run" / "deltas").glob(f"{name}*")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(Exception, match=r"delta|damaged|cannot be read") as caught:
        go(settings, tmp_path / "run", resume=True)
    assert type(caught.value).__name__ == "DamagedFileError"
    with Journal.open(tmp_path / "run" / "journal.sqlite", read_only=True) as journal:
        assert journal.head().sequence == 2


def test_bad_records_are_reported_and_the_others_go_on(tiny_checkpoint, tmp_path):
    absent = {**fact(1), "prompt": "Nobody works in"}
    empty = {**fact(2), "target_new": "  "}
    twice = {**fact(0), "target_new": "Somewhere else"}
    stream = write_stream(tmp_path / "mixed.jsonl", [fact(0), absent, empty, "[1, 2]", twice, fact(5)])
    go(config(tiny_checkpoint, stream, refresh={"every": None}), tmp_path / "run")
    summary = read_summary(tmp_path / "run" / "summary.json")
    assert (summary.edits_applied, summary.edits_failed) == (2, 4)
    reasons = {failure.id: failure.reason for failure in summary.failures}
    for line, words in {
        2: "neither the slot '{}' nor the subject 'Alice Munro 1'",
        3: "target_new: must not be blank",
        4: "a record must be an object, got list",
        5: "was used before",
    }.items():
        (reason,) = [text for name, text in reasons.items() if name.endswith(f"mixed.jsonl:{line}")]
        assert words in reason
    again = go(config(tiny_checkpoint, stream, refresh={"every": None}), tmp_path / "run", resume=True)
    assert again and read_summary(tmp_path / "run" / "summary.json").edits_failed == 4


def test_resume_is_refused_for_another_model_or_configuration(tiny_checkpoint, stream, tmp_path):
    small = {"stream": {"limit": 3}, "evaluation": {"every": None}}
    go(config(tiny_checkpoint, stream, **small), tmp_path / "run")
    before = outcome(tmp_path / "run")
    with pytest.raises(UserError, match=r"holds a run; add --resume"):
        go(config(tiny_checkpoint, stream, **small), tmp_path / "run")
    with pytest.raises(UserError, match=r"another configuration: batching.size was 3, is now 4"):
        go(config(tiny_checkpoint, stream, batching={"size": 4}, **small), tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == before
