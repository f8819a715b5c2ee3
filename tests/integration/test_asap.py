"""The pipeline by the clock: batches by age, covariances that take over when they are there, empty starts."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from errata.editing.errors import ErrataError, UserError
from errata.orchestrator.config.loading import build_config
from errata.orchestrator.config.run import RunConfig
from errata.orchestrator.history.rebuild import BaseCheckpoint
from errata.orchestrator.history.verify import verify
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.fail_points import InjectedCrash, raise_once
from errata.orchestrator.run.pipeline import Pipeline
from tests.integration.harness import (
    PlainEstimator,
    asked,
    config,
    facts,
    go,
    opened,
    replayed,
    write_all,
    write_stream,
)
from tests.integration.harness import settings as plain_settings


def test_under_asap_a_batch_is_also_written_when_it_has_waited(tiny_checkpoint, stream, tmp_path):
    sections = {
        "covariance": {"source": "identity"},
        "refresh": {"every": None},
        "evaluation": {"every": None, "held_out": None},
        "batching": {"max_age_seconds": 3600.0},
    }
    with pytest.raises(UserError, match="max_age_seconds needs schedule 'asap'"):
        config(tiny_checkpoint, stream, **sections)
    chosen = build_config(plain_settings(tiny_checkpoint, stream, **sections) | {"schedule": "asap"})
    with opened(chosen, tmp_path / "run") as pipeline:
        heard: list[int] = []
        pipeline.after_commit.append(lambda version: heard.append(version.sequence))
        pipeline.journal.accept(asked(facts(2)))
        assert pipeline.write_next(ended=False) is None, "accepted a moment ago"
        long_ago = (datetime.now(UTC) - timedelta(hours=4)).isoformat()
        pipeline.journal._connection.execute("UPDATE requests SET accepted_at = ?", (long_ago,))
        version = pipeline.write_next(ended=False)
        assert version is not None and version.request_ids == ("fact-0", "fact-1")
        pipeline.revert(["fact-0"])
        assert heard == [1, 2]


def asap(tiny_checkpoint: Path, stream: Path, **sections: Any) -> RunConfig:
    """By the clock, with a refresh of the version after three edits; nothing is measured."""
    given = {
        "refresh": {"every": 3, "max_jsd": None, **sections.pop("refresh", {})},
        "evaluation": {"every": None, "held_out": None},
        "batching": {"max_age_seconds": 3600.0},
        **sections,
    }
    return build_config(plain_settings(tiny_checkpoint, stream, **given) | {"schedule": "asap"})


class HeldEstimates:
    """Refreshes take as long as a test wants; the first estimate of a run takes what it takes."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.release = threading.Event()
        plain = PlainEstimator.estimate

        def estimate(
            made: PlainEstimator, job: Any, weights: Any, progress: Any = None, stop: threading.Event | None = None
        ) -> Any:
            while weights and not self.release.wait(0.02):
                if stop is not None and stop.is_set():
                    raise ErrataError("given up")
            return plain(made, job, weights, progress, stop)

        patch.setattr(PlainEstimator, "estimate", estimate)


def swap_at(pipeline: Pipeline, sequence: int, held: HeldEstimates) -> None:
    """Write until that commit while a refresh is under way, then let it end and write another batch."""
    while pipeline.head().sequence < sequence:
        assert pipeline.write_next(ended=True) is not None
    assert pipeline.refreshing.pending and len(pipeline.journal.swaps()) == 1, "nobody has waited for it"
    held.release.set()
    pending = pipeline.refreshing._pending
    assert pending is not None
    pending.future.result(60)
    assert pipeline.write_next(ended=True) is not None


@pytest.mark.parametrize("boundary", [2, 3])
def test_under_asap_a_covariance_takes_over_when_it_is_there_and_a_replay_repeats_it(
    tiny_checkpoint, stream, tmp_path, monkeypatch, boundary
):
    chosen, held = asap(tiny_checkpoint, stream, refresh={"every": 3, "lag": 0}), HeldEstimates(monkeypatch)
    with opened(chosen, tmp_path / "run") as pipeline:
        pipeline.journal.accept(asked(facts()))
        swap_at(pipeline, boundary, held)
        swaps = pipeline.journal.swaps()
        assert [swap.after_sequence for swap in swaps] == [0, boundary]
        made_on = [version.covariance for version in pipeline.journal.versions()[1:]]
        assert made_on == [swaps[0].covariance] * boundary + [swaps[1].covariance]
        weights, head = pipeline.editor.weights(), pipeline.head()
    held.release.clear()  # what a restart may begin anew must not get in the way of what was
    with opened(chosen, tmp_path / "run") as pipeline:
        assert pipeline.head() == head
        again = pipeline.editor.weights()
        assert all(torch.equal(again[layer], weight) for layer, weight in weights.items())
    report = verify(tmp_path / "run", BaseCheckpoint(tiny_checkpoint))
    assert report.sound, report.problems


def test_under_asap_a_refresh_that_a_crash_cut_short_takes_over_at_a_later_boundary(
    tiny_checkpoint, stream, tmp_path, monkeypatch
):
    chosen, held = asap(tiny_checkpoint, stream, refresh={"every": 3, "lag": 0}), HeldEstimates(monkeypatch)
    with opened(chosen, tmp_path / "run") as pipeline:
        pipeline.journal.accept(asked(facts()))
        for _ in range(2):
            pipeline.write_next(ended=True)
    with Journal.open(tmp_path / "run" / "journal.sqlite", read_only=True) as journal:
        assert [(row.triggered_at, row.state) for row in journal.refreshes()] == [(3, "started")]
        asked_of = journal.versions()[1].digest
    with opened(chosen, tmp_path / "run") as pipeline:
        swap_at(pipeline, 3, held)
        (row,) = [row for row in pipeline.journal.refreshes() if row.state == "swapped"]
        assert (row.triggered_at, row.from_version) == (3, asked_of), "of the version it was begun on"
        assert [swap.after_sequence for swap in pipeline.journal.swaps()] == [0, 3]


@pytest.mark.parametrize("mode", ["replace", "ema"])
def test_under_asap_a_swap_whose_bookkeeping_a_crash_took_is_made_once(
    tiny_checkpoint, stream, tmp_path, monkeypatch, mode
):
    chosen, held = asap(tiny_checkpoint, stream, refresh={"every": None, "mode": mode}), HeldEstimates(monkeypatch)
    with opened(chosen, tmp_path / "run") as pipeline:
        pipeline.journal.accept(asked(facts(9)))
        pipeline.write_next(ended=True)
        assert pipeline.request_refresh()
        with raise_once("after_swap"), pytest.raises(InjectedCrash):
            swap_at(pipeline, 2, held)
    held.release.clear()
    with opened(chosen, tmp_path / "run") as pipeline:
        write_all(pipeline)  # before any estimate that the restart begins anew can be there
        held.release.set()
        if pipeline.refreshing._pending is not None:
            pipeline.refreshing._pending.future.result(60)
        pipeline.write_next(ended=True)
        swaps = [(swap.after_sequence, swap.covariance) for swap in pipeline.journal.swaps()]
        (refresh,) = pipeline.journal.refreshes()
        assert [after for after, _ in swaps] == [0, 2]
        assert (refresh.state, refresh.covariance) == ("swapped", swaps[1][1])


# ---------------------------------------------------------------- a pipeline that starts with nothing


def test_a_pipeline_that_starts_empty_measures_the_base_and_restarts_from_its_snapshot(
    tiny_checkpoint, stream, undisturbed, tmp_path, monkeypatch
):
    evaluation = {"every": 6, "sample": 2, "held_out": None}
    sections = {"covariance": {"source": "identity"}, "refresh": {"every": None}, "snapshots": {"every": 2}}
    chosen = config(tiny_checkpoint, stream, evaluation=evaluation, **sections)
    seen = replayed(monkeypatch)
    run = tmp_path / "run"
    with opened(chosen, run) as pipeline:
        pipeline.journal.accept(asked(facts())[:3])
        pipeline.write_next(ended=True)
        pipeline.journal.accept(asked(facts())[3:6])
        assert not pipeline.journal.evaluations("timeline")
    with opened(chosen, run) as pipeline:  # fewer facts than a point has: the base waits
        write_all(pipeline)
        pipeline.wait_background()
        points = pipeline.journal.evaluations("timeline")
        assert [(row.edits, row.version) for row in points] == [
            (0, pipeline.journal.base().digest),
            (6, pipeline.head().digest),
        ]
        assert [row.metrics["facts"] for row in points] == [2, 2]
    seen.clear()
    with opened(chosen, run) as pipeline:
        pipeline.wait_background()
        assert seen == [], "the snapshot of v2 stands for all commits, the base was measured before"
        assert len(pipeline.journal.evaluations("timeline")) == 2
    with Journal.open(run / "journal.sqlite") as journal:  # a crash took the base's point
        journal._connection.execute("DELETE FROM evaluations WHERE edits = 0")
    with opened(chosen, run) as pipeline:
        pipeline.wait_background()
        again = {row.edits: row.metrics["arms"] for row in pipeline.journal.evaluations("timeline")}
        assert seen == [] and again == {row.edits: row.metrics["arms"] for row in points}


def test_the_base_measured_late_has_the_figures_of_a_run_that_measures_it_first(tiny_checkpoint, tmp_path):
    records = [{k: v for k, v in record.items() if k != "neighborhood"} for record in facts(6)]
    stream = write_stream(tmp_path / "facts.jsonl", records)
    evaluation = {"every": 3, "sample": 3, "held_out": None}
    sections = {"covariance": {"source": "identity"}, "refresh": {"every": None}}
    chosen = config(tiny_checkpoint, stream, evaluation=evaluation, **sections)
    go(chosen, tmp_path / "first")
    with opened(chosen, tmp_path / "late") as pipeline:
        pipeline.journal.accept(asked(records))
        write_all(pipeline)
        pipeline.wait_background()
    found = []
    for name in ("first", "late"):
        with Journal.open(tmp_path / name / "journal.sqlite", read_only=True) as journal:
            found.append({row.edits: (row.version, row.metrics["arms"]) for row in journal.evaluations("timeline")})
    assert found[0] == found[1] and sorted(found[0]) == [0, 3, 6]


# ---------------------------------------------------------------- the command line
