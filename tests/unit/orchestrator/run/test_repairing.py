"""Repair: facts that fade are asked, written again and counted, and a crash anywhere changes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from errata.editing.request import EditBatch, EditRequest
from errata.editing.reverting import HistoryItem
from errata.editing.session import EditReceipt
from errata.editing.verify import Outcome
from errata.orchestrator.config.loading import check_config
from errata.orchestrator.history.receipts import history, open_store
from errata.orchestrator.history.verify import verify
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.fail_points import InjectedCrash, raise_once
from errata.orchestrator.journal.rows import JournalMeta, Version
from errata.orchestrator.progress import Display
from errata.orchestrator.run.assembly import make_pipeline
from errata.orchestrator.run.pipeline import Pipeline
from errata.orchestrator.run.repairing import REPAIR
from errata.orchestrator.tracking.tracker import NullTracker
from tests.unit.orchestrator.fakes import LAYER, FakeCluster, FakeEditor

SIZE = 3


class FadingEditor(FakeEditor):
    """Says a fact while no more others come after it than its name decides, some for ever."""

    def _reset(self, covariance: Any) -> None:
        super()._reset(covariance)
        self.written: dict[str, int] = {}

    def _take(self, receipt: EditReceipt) -> None:
        super()._take(receipt)
        known = len(self.written.keys() | receipt.request_ids)
        self.written |= dict.fromkeys(receipt.request_ids, known)

    def apply(self, batch: EditBatch, died: Any = None) -> EditReceipt:
        receipt = super().apply(batch, died)
        results = tuple(replace(result, outcome="landed") for result in receipt.results)
        self.last = replace(receipt, results=results)
        return self.last

    def ask(self, requests: Sequence[EditRequest]) -> list[Outcome]:
        return [Outcome(0.5, (self.says(request.id),), (0, 0)) for request in requests]

    def says(self, name: str) -> bool:
        life = 10 * (hashlib.sha256(name.encode()).digest()[0] % 4)
        return life == 30 or len(self.written) - self.written[name] <= life


class FadingCluster(FakeCluster):
    def editor(self, config: Any, contexts: Any, history: Callable[[], Iterable[HistoryItem]]) -> FakeEditor:
        self.editor_ = FadingEditor(history)
        return self.editor_


def config(**repair: Any) -> Any:
    return check_config(
        {
            "model": {"name": "none"},
            "editor": {"type": "alphaedit", "layers": [LAYER]},
            "stream": {"path": "none.jsonl"},
            "batching": {"size": SIZE},
            "covariance": {"source": "identity"},
            "evaluation": {"held_out": None},
            "memory": {"embedder": {"type": "hash"}},
            "repair": repair,
        }
    )


@contextmanager
def running(directory: Path, **repair: Any) -> Any:
    chosen = config(**repair)
    if not (directory / "journal.sqlite").exists():
        directory.mkdir(exist_ok=True)
        meta = JournalMeta(run_id="r", base_digest="b" * 64, editor_digest="e" * 64, config=chosen.dump())
        Journal.create(directory / "journal.sqlite", meta).close()
    with Journal.open(directory / "journal.sqlite") as journal:
        cluster: Any = FadingCluster()
        store = open_store(directory)
        store.sweep()
        pipeline = make_pipeline(chosen, journal, store, cluster, tracker=NullTracker(), display=Display(quiet=True))
        pipeline.start()
        yield pipeline


def request(number: int) -> EditRequest:
    return EditRequest(id=f"fact-{number}", subject=f"Alice {number}", prompt="{} works in", target_new="Rome")


def drive(pipeline: Pipeline, count: int) -> list[Version]:
    pipeline.journal.accept([request(number) for number in range(count)])
    made = []
    while (version := pipeline.write_next(ended=True)) is not None:
        made.append(version)
    return made


def says(pipeline: Pipeline) -> float:
    editor: Any = pipeline.editor
    rows = pipeline.journal.requests("applied")
    return sum(editor.says(row.id) for row in rows) / len(rows)


def test_what_is_not_said_any_more_is_written_again(tmp_path: Path) -> None:
    with running(tmp_path / "without", every=None) as pipeline:
        drive(pipeline, 60)
        without = says(pipeline)
    with running(tmp_path / "with", every=15, sample=20, target=0.9, most=2.0) as pipeline:
        made = drive(pipeline, 60)
        journal = pipeline.journal
        assert says(pipeline) > max(0.85, without + 0.2)
        counts = journal.counts()
        assert (counts.applied, counts.superseded, journal.head().edits) == (60, 0, 60)
        repairs = [version for version in made if version.kind == REPAIR]
        assert repairs and all(len(version.request_ids) <= SIZE for version in repairs)
        assert journal.held_count(journal.head().sequence) == 60
        some = repairs[0].request_ids[0]
        assert [fate.sequence for fate in journal.fates(some) if fate.state == "applied"][-1] >= repairs[0].sequence
        row = journal.request(some)
        assert row is not None and row.applied_in is not None and row.applied_in < repairs[0].sequence
        rounds = [event.data for event in journal.events(REPAIR)]
        assert {data["at"] for data in rounds} == {15, 30, 45, 60}
        assert sum(data["written"] for data in rounds) == sum(len(version.request_ids) for version in repairs)
        for data in rounds:
            asked, lost = set(data["asked"]), set(data["lost"])
            assert lost <= asked and sum(asked_ for _, asked_, _ in data["ages"]) == len(asked)
            assert sum(said for _, _, said in data["ages"]) == len(asked) - len(lost)
            gained = sum(said for _, _, said in data["ages_after"]) - (len(asked) - len(lost))
            assert gained == data["landed"] == data["written"]
            assert data["ended"] or len(lost) / len(asked) > 0.1
        fresh = FadingEditor(lambda: history(journal, pipeline.store))
        fresh.restore()
        assert torch.equal(fresh.weight, pipeline.editor.weights()[LAYER])
        assert fresh.written == pipeline.editor.written
    report = verify(tmp_path / "with", None)
    assert report.sound, report.problems


def test_a_sample_that_is_said_ends_the_look_and_writes_nothing(tmp_path: Path) -> None:
    with running(tmp_path / "run", every=6, sample=50, target=0.3) as pipeline:
        made = drive(pipeline, 12)
        assert all(version.kind == "edit" for version in made)
        assert [event.data["ended"] for event in pipeline.journal.events(REPAIR)] == [True, True]


def test_a_look_writes_no_more_than_it_may(tmp_path: Path) -> None:
    with running(tmp_path / "run", every=30, sample=10, target=1.0, most=0.2) as pipeline:
        made = drive(pipeline, 60)
        for at in (30, 60):
            rounds = [e.data for e in pipeline.journal.events(REPAIR) if e.data["at"] == at]
            assert sum(data["tried"] for data in rounds) == 6
            asked = [number for data in rounds for number in data["asked"]]
            assert len(asked) == len(set(asked)), "nothing is asked twice in one look"
        assert sum(len(v.request_ids) for v in made if v.kind == REPAIR) == 12


@pytest.mark.parametrize("point", ["after_repair", "after_repair_round", "commit_in_transaction", "artifact_renamed"])
@pytest.mark.parametrize("visit", [1, 2, 5])
def test_a_crash_changes_nothing(tmp_path: Path, point: str, visit: int) -> None:
    repair = {"every": 12, "sample": 8, "target": 0.95, "most": 1.0}
    with running(tmp_path / "whole", **repair) as pipeline:
        drive(pipeline, 36)
        wanted = [(v.digest, v.kind, v.request_ids) for v in pipeline.journal.versions()]
        rounds = [_timeless(event.data) for event in pipeline.journal.events(REPAIR)]
    with pytest.raises(InjectedCrash), running(tmp_path / "cut", **repair) as pipeline:
        pipeline.journal.accept([request(number) for number in range(36)])
        for _ in range(4):
            pipeline.write_next(ended=True)
        for _ in range(visit - 1):
            pipeline.write_next(ended=True)
        with raise_once(point):
            drive(pipeline, 36)
    with running(tmp_path / "cut", **repair) as pipeline:
        drive(pipeline, 36)
        assert [(v.digest, v.kind, v.request_ids) for v in pipeline.journal.versions()] == wanted
        assert [_timeless(event.data) for event in pipeline.journal.events(REPAIR)] == rounds


def _timeless(data: Any) -> dict[str, Any]:
    return {name: value for name, value in data.items() if not name.endswith("seconds")}


def test_what_was_reverted_is_neither_asked_nor_written(tmp_path: Path) -> None:
    with running(tmp_path / "run", every=12, sample=50, target=1.0, most=5.0) as pipeline:
        drive(pipeline, 12)
        repaired = next(v for v in pipeline.journal.versions() if v.kind == REPAIR).request_ids[0]
        pipeline.revert([repaired])
        assert repaired not in pipeline.editor.held
        for number in range(12, 24):
            pipeline.journal.accept([request(number)])
        while pipeline.write_next(ended=True) is not None:
            pass
        (row,) = pipeline.journal.requests("reverted")
        late = [e.data for e in pipeline.journal.events(REPAIR) if e.data["at"] == 24]
        assert late and all(row.seq not in data["asked"] for data in late)


def test_every_applied_request_is_as_likely_as_any_other(tmp_path: Path) -> None:
    with running(tmp_path / "run", every=None) as pipeline:
        journal = pipeline.journal
        drive(pipeline, 90)
        journal.accept([request(number).model_copy(update={"id": f"new-{number}"}) for number in range(0, 60)])
        while pipeline.write_next(ended=True) is not None:
            pass
        applied = {row.seq for row in journal.requests("applied")}
        assert len(applied) == 90 and max(applied) == 150
        drawn = [row.seq for draw in range(300) for row in journal.applied_sample(3, Random(draw))]
        assert set(drawn) == applied
        low = sum(number <= 90 for number in drawn) / len(drawn)
        assert low == pytest.approx(1 / 3, abs=0.05)
        rest = journal.applied_sample(200, Random(0), without=set(drawn[:30]))
        assert {row.seq for row in rest} == applied - set(drawn[:30])
