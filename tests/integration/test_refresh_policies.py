"""Refreshes by drift and by the clock, and a fresh estimate weighed with the first one.

Without Ray (`PlainCluster`) on a tiny model; documents of refreshes and probes are given likelihoods where a test needs
them to have moved.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import errata.actors.cluster
import errata.orchestrator.run.launch
from errata.actors.workers.covariance import Estimate
from errata.editing.request import EditRequest
from errata.orchestrator.config.loading import build_config
from errata.orchestrator.config.run import RunConfig
from errata.orchestrator.covariance.schedule import Refreshing
from errata.orchestrator.history.receipts import load_covariance, open_store
from errata.orchestrator.journal import Journal
from errata.orchestrator.progress import Display
from errata.orchestrator.run.launch import run_experiment
from errata.orchestrator.run.pipeline import Pipeline
from errata.orchestrator.tracking.tracker import NullTracker
from tests.integration.harness import (
    PlainCluster,
    PlainEstimator,
    Weights,
    config,
    fact,
    opened,
    outcome,
    settings,
)

NEAR = tuple((20 * (3 + 0.01 * i), 20) for i in range(60))
FAR = tuple((20 * (3.4 + 0.01 * i), 20) for i in range(60))
"""Moved by 2.3 standard deviations: more than the drift allowed, and less than the sanity check does."""


class Scripted(PlainEstimator):
    """Real sums; the likelihoods of an estimate follow from its seed, which is the number of edits."""

    far_from: int = 10**9
    jobs: list[tuple[int, int | None]]

    def estimate(self, job: Any, weights: Any, progress: Any = None, stop: Any = None) -> Estimate:
        type(self).jobs.append((job.seed, job.sequences))
        made = super().estimate(job, weights, progress, stop)
        return replace(made, documents=FAR if job.seed >= type(self).far_from else NEAR)


class ScriptedCluster(PlainCluster):
    def estimator(self) -> PlainEstimator:
        return Scripted(self._config, self._spec)


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errata.actors.cluster, "Cluster", ScriptedCluster)
    monkeypatch.setattr(errata.orchestrator.run.opening, "Tracker", lambda *_, **__: NullTracker())
    monkeypatch.setattr(Scripted, "jobs", [], raising=False)
    monkeypatch.setattr(Scripted, "far_from", 6)


def go(settings: RunConfig, output: Path, *, resume: bool = False) -> Weights:
    run_experiment(settings, output, resume=resume, display=Display(quiet=True))
    editor = ScriptedCluster.last.editor
    assert editor is not None
    return editor.weights()


@pytest.fixture
def watched(tiny_checkpoint: Path, stream: Path) -> RunConfig:
    """A look every three edits, by the likelihoods alone; they move at the sixth."""
    drift = {"every": 3, "sequences": 5, "energy": None, "nll": 1.0}
    return config(
        tiny_checkpoint,
        stream,
        refresh={"every": None, "lag": 0, "drift": drift, "max_jsd": None},
        evaluation={"every": None},
    )


def test_a_look_that_finds_nothing_ends_there_and_drift_is_followed_by_a_refresh(watched, tmp_path):
    go(watched, tmp_path / "run")
    result = outcome(tmp_path / "run")
    states = [(at, state) for at, state, _ in result.refreshes]
    assert states[:2] == [(3, "done"), (6, "swapped")]
    assert {state for _, state in states[2:]} == {"done"}, "after the refresh the same likelihoods are no drift"
    assert [edits for _, _, edits in result.swaps] == [0, 6]
    # (0, None) is the first estimate; a probe has five sequences, the refresh the budget of the run
    assert Scripted.jobs[:4] == [(0, None), (3, 5), (6, 5), (6, None)]
    with Journal.open(tmp_path / "run" / "journal.sqlite", read_only=True) as journal:
        rows, events = journal.refreshes(), journal.events("refresh_not_needed")
    assert rows[0].reason == "no drift: NLL moved by +0.00 standard deviations"
    assert rows[1].reason is not None and "NLL moved by +2.29 standard deviations, allowed 1" in rows[1].reason
    assert events[0].data["triggered_at"] == 3 and events[0].data["after_sequence"] == 1


def test_key_energy_outside_the_leading_subspace_asks_for_a_refresh(watched, tmp_path):
    seen = watched.refresh.drift
    assert seen is not None

    def bounded(energy: float) -> RunConfig:
        drift = seen.model_copy(update={"energy": energy, "nll": None, "leading": 0.5})
        return watched.model_copy(update={"refresh": watched.refresh.model_copy(update={"drift": drift})})

    go(bounded(0.999), tmp_path / "wide")
    go(bounded(0.001), tmp_path / "narrow")
    assert {state for _, state, _ in outcome(tmp_path / "wide").refreshes} == {"done"}
    assert {state for _, state, _ in outcome(tmp_path / "narrow").refreshes} == {"swapped"}
    with Journal.open(tmp_path / "narrow" / "journal.sqlite", read_only=True) as journal:
        assert all("of the key energy of layer" in str(row.reason) for row in journal.refreshes())


@pytest.mark.parametrize("crash", ["before the look's end", "before its row", "after it", "before the swap"])
def test_an_interrupted_run_comes_to_the_same_decisions(watched, tmp_path, monkeypatch, crash):
    expected_weights = go(watched, tmp_path / "whole")

    class Crash(Exception):
        pass

    with monkeypatch.context() as patch:
        record, swap = Journal.record_refresh, Refreshing.swap_if_due
        calls = []

        def recorded(self: Journal, at: int, state: Any, **given: Any) -> None:
            if (state == "done" and crash == "before its row") or (state == "swapped" and crash == "before the swap"):
                raise Crash
            record(self, at, state, **given)
            if state == "done" and crash == "after it":
                raise Crash

        def swapped(self: Refreshing) -> None:
            calls.append(1)
            if crash == "before the look's end" and len(calls) == 2:
                raise Crash
            swap(self)

        patch.setattr(Journal, "record_refresh", recorded)
        patch.setattr(Refreshing, "swap_if_due", swapped)
        with pytest.raises(Crash):
            go(watched, tmp_path / "run")
    weights = go(watched, tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    assert all(torch.equal(weights[layer], expected_weights[layer]) for layer in weights)
    with Journal.open(tmp_path / "run" / "journal.sqlite", read_only=True) as journal:
        told = [event.data["triggered_at"] for event in journal.events("refresh_not_needed")]
    assert told == sorted(set(told)) and told[0] == 3


def test_a_mixture_takes_over_with_the_weights_of_the_settings(tiny_checkpoint, stream, tmp_path):
    plain = {"every": 3, "lag": 0, "max_jsd": None}
    runs = {}
    for name, refresh in {
        "replace": plain,
        "mixture": {**plain, "mode": "mixture", "mixture_weight": 0.25},
    }.items():
        sections = settings(tiny_checkpoint, stream, refresh=refresh, evaluation={"every": None})
        sections["stream"]["limit"] = 6
        go(build_config(sections), tmp_path / name)
        with Journal.open(tmp_path / name / "journal.sqlite", read_only=True) as journal:
            store = open_store(tmp_path / name)
            runs[name] = [load_covariance(store, swap.covariance) for swap in journal.swaps()]
    first, fresh, mixed = runs["replace"][0], runs["replace"][1], runs["mixture"][1]
    assert first.digest == runs["mixture"][0].digest and mixed.source["kind"] == "mixture"
    for layer in first.layers:
        # both refreshes were estimated from the same version, which the first covariance alone has made
        wanted = 0.75 * first.mean(layer) + 0.25 * fresh.mean(layer)
        assert torch.allclose(mixed.mean(layer), wanted, rtol=1e-12, atol=0)
        again = runs["mixture"][2].mean(layer)
        old_part = again - 0.75 * first.mean(layer)
        assert float(torch.linalg.eigvalsh(old_part).min()) > -1e-9, "a quarter of the newest, never of the one between"


def test_the_clock_begins_a_refresh_after_edits_and_a_restart_finishes_it(tiny_checkpoint, stream, tmp_path):
    refresh = {"every": None, "seconds": 1e-3, "max_jsd": None}
    sections = settings(tiny_checkpoint, stream, refresh=refresh, evaluation={"every": None})
    by_clock = build_config({**sections, "schedule": "asap"})
    requests = [EditRequest.model_validate(fact(number)) for number in range(6)]

    def swapped(pipeline: Pipeline) -> list[tuple[int, int]]:
        pipeline.refreshing.swap_if_due()
        return [(swap.after_sequence, swap.edits) for swap in pipeline.journal.swaps()]

    with opened(by_clock, tmp_path / "run") as pipeline:
        time.sleep(0.01)
        pipeline.refreshing.swap_if_due()
        assert not pipeline.refreshing.pending, "nothing was edited: there is nothing to be refreshed for"
        pipeline.journal.accept(requests)
        pipeline.write_next(ended=False)
        pipeline.refreshing.swap_if_due()
        assert pipeline.refreshing.pending
    with opened(by_clock, tmp_path / "run") as pipeline:
        assert pipeline.refreshing.pending, "what was begun by the clock is in the journal"
        deadline = time.monotonic() + 30
        while swapped(pipeline) != [(0, 0), (1, 3)] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert swapped(pipeline) == [(0, 0), (1, 3)]
        time.sleep(0.01)
        pipeline.refreshing.swap_if_due()
        assert not pipeline.refreshing.pending, "no edit since"
        pipeline.write_next(ended=False)
        pipeline.refreshing.swap_if_due()
        assert pipeline.refreshing.pending and pipeline.journal.refreshes()[-1].triggered_at == 6
