"""A refresh from a model that has gone bad is not let in, everybody hears of it, and a resumed run remembers.

Without Ray (`PlainCluster`); the estimates of refreshes are given likelihoods that no sound model would have.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import errata.actors.cluster
import errata.orchestrator.run.launch
from errata.actors.workers.covariance import Estimate
from errata.orchestrator.config.run import RunConfig
from errata.orchestrator.journal import Journal
from errata.orchestrator.progress import Display
from errata.orchestrator.report.summary import read_summary
from errata.orchestrator.run.launch import run_experiment
from errata.orchestrator.run.pipeline import Pipeline
from errata.orchestrator.tracking.tracker import NullTracker
from tests.integration.harness import PlainCluster, PlainEstimator, config, outcome

FIRST = tuple((20 * (3 + 0.01 * i), 20) for i in range(60))
SOUND = tuple((20 * (3.002 + 0.01 * i), 20) for i in range(60))
BAD = tuple((20 * (9 + 0.01 * i), 20) for i in range(60))


class Quiet(Display):
    """Remembers what was said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


class Scripted(PlainEstimator):
    """Real sums; the likelihoods of the first estimate and of refreshes are given."""

    refreshed: tuple[tuple[float, int], ...] = SOUND

    def estimate(self, job: Any, weights: Any, progress: Any = None, stop: Any = None) -> Estimate:
        made = super().estimate(job, weights, progress, stop)
        return replace(made, documents=FIRST if job.seed == 0 else type(self).refreshed)


class ScriptedCluster(PlainCluster):
    def estimator(self) -> PlainEstimator:
        return Scripted(self._config, self._spec)


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errata.actors.cluster, "Cluster", ScriptedCluster)
    monkeypatch.setattr(errata.orchestrator.run.opening, "Tracker", lambda *_, **__: NullTracker())


def go(settings: RunConfig, output: Path, *, resume: bool = False) -> tuple[dict[int, torch.Tensor], list[str]]:
    display = Quiet()
    run_experiment(settings, output, resume=resume, display=display)
    editor = ScriptedCluster.last.editor
    assert editor is not None
    return editor.weights(), display.said


def often(model: Path, stream: Path, **refresh: Any) -> RunConfig:
    """A trigger at every batch: while one is under way the next ones are passed over."""
    return config(model, stream, refresh={"every": 3, "lag": 3, **refresh}, evaluation={"every": None})


@pytest.fixture
def settings(tiny_checkpoint: Path, stream: Path) -> RunConfig:
    return often(tiny_checkpoint, stream)


def test_a_sound_refresh_is_let_in(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(Scripted, "refreshed", SOUND)
    go(settings, tmp_path / "run")
    result = outcome(tmp_path / "run")
    assert result.refreshes[0][:2] == (3, "swapped")
    assert len(result.swaps) > 1


@pytest.fixture(scope="module")
def refused(
    tiny_checkpoint: Path, stream: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[int, torch.Tensor], list[str]]:
    """A run whose refreshes are all bad, and that nothing disturbs: its directory, weights and what it said."""
    directory = tmp_path_factory.mktemp("refused") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(errata.actors.cluster, "Cluster", ScriptedCluster)
        patch.setattr(errata.orchestrator.run.opening, "Tracker", lambda *_, **__: NullTracker())
        patch.setattr(Scripted, "refreshed", BAD)
        weights, said = go(often(tiny_checkpoint, stream), directory)
    return directory, weights, said


def test_a_bad_refresh_is_refused_journaled_and_said(refused):
    directory, _, said = refused
    result = outcome(directory)
    assert result.swaps == result.swaps[:1] and result.swaps[0][0] == 0, "the first covariance stays in force"
    assert [(at, state) for at, state, _ in result.refreshes] == [(3, "refused"), (9, "refused")]
    with Journal.open(directory / "journal.sqlite", read_only=True) as journal:
        rows, events = journal.refreshes(), journal.events("refresh_refused")
    assert rows[0].reason is not None and "JSD of per-document NLL 0.69" in rows[0].reason
    assert [event.data["triggered_at"] for event in events] == [3, 9] and events[0].data["edits"] == 6
    assert sum("REFUSED" in line and "allowed 0.2" in line for line in said) == 2
    assert read_summary(directory / "summary.json").refreshes == 0


def test_the_check_can_be_turned_off(settings, tiny_checkpoint, stream, tmp_path, monkeypatch):
    monkeypatch.setattr(Scripted, "refreshed", BAD)
    go(often(tiny_checkpoint, stream, max_jsd=None), tmp_path / "run")
    assert len(outcome(tmp_path / "run").swaps) > 1


@pytest.mark.parametrize("where", ["before_the_row", "after_the_row", "a_batch_later"])
def test_a_run_resumed_around_a_refusal_is_the_same_run(settings, refused, tmp_path, monkeypatch, where):
    monkeypatch.setattr(Scripted, "refreshed", BAD)
    directory, expected_weights, _ = refused
    expected = outcome(directory)

    class Crash(Exception):
        pass

    with monkeypatch.context() as patch:
        record, write, writes = Journal.record_refresh, Pipeline._write, []

        def recorded(self: Journal, at: int, state: Any, **given: Any) -> None:
            if state == "refused" and where == "before_the_row":
                raise Crash
            record(self, at, state, **given)
            if state == "refused" and where == "after_the_row":
                raise Crash

        def written(self: Pipeline, plan: Any) -> Any:
            writes.append(plan)
            if where == "a_batch_later" and len(writes) == 4:
                raise Crash
            return write(self, plan)

        patch.setattr(Journal, "record_refresh", recorded)
        patch.setattr(Pipeline, "_write", written)
        with pytest.raises(Crash):
            go(settings, tmp_path / "run")
    weights, _ = go(settings, tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == expected
    assert all(torch.equal(weights[layer], expected_weights[layer]) for layer in weights)
    with Journal.open(tmp_path / "run" / "journal.sqlite", read_only=True) as journal:
        assert [event.data["triggered_at"] for event in journal.events("refresh_refused")] == [3, 9]
