"""Any sequence of submissions, duplicates, reverts, crashes and refreshes leaves what a plain model says."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from errata.orchestrator.config.loading import check_config
from errata.orchestrator.config.run import RunConfig
from errata.orchestrator.history.receipts import history, open_store
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.rows import JournalMeta, version_digest
from errata.orchestrator.progress import Display
from errata.orchestrator.run.assembly import make_pipeline
from errata.orchestrator.tracking.tracker import NullTracker
from tests.helpers.pipeline_model import OPERATIONS, SIZE, Client, Model, play
from tests.unit.orchestrator.fakes import LAYER, FakeCluster, FakeEditor, addition

BASE = "b" * 64


def run_config() -> RunConfig:
    return check_config(
        {
            "model": {"name": "none"},
            "editor": {"type": "alphaedit", "layers": [LAYER]},
            "stream": {"path": "none.jsonl"},
            "batching": {"size": SIZE},
            "covariance": {"tokens": 10},
            "refresh": {"every": 5, "lag": 2, "max_jsd": None},
            "evaluation": {"held_out": None},
            "memory": {"embedder": {"type": "hash"}},
            "snapshots": {"every": 2},
        }
    )


CONFIG = run_config()


class Service(Client):
    """A pipeline on fakes."""

    def __init__(self, directory: Path) -> None:
        meta = JournalMeta(run_id="r", base_digest=BASE, editor_digest="e" * 64, config=CONFIG.dump())
        Journal.create(directory / "journal.sqlite", meta).close()
        super().__init__(directory)

    def open(self) -> None:
        self.journal = Journal.open(self.directory / "journal.sqlite")
        store = open_store(self.directory)
        store.sweep()
        self.cluster = FakeCluster()
        cluster: Any = self.cluster
        self.pipeline = make_pipeline(
            CONFIG, self.journal, store, cluster, tracker=NullTracker(), display=Display(quiet=True)
        )
        self.pipeline.start()

    def kill(self) -> None:
        self.cluster.editor_.restore()


def check(service: Service, model: Model) -> None:
    """Journal, weights, memory and what a new editor would make of the history, against the model."""
    journal, editor = service.journal, service.cluster.editor_
    rows = journal.requests()
    assert {row.id: row.state for row in rows} == model.state
    assert torch.equal(editor.weight, addition(model.written))
    assert set(editor.held) == set(model.applied())
    numbers = {row.id: row.seq for row in rows}
    assert service.cluster.memory_.active() == {numbers[name] for name in model.applied()}
    versions = journal.versions()
    assert [version.sequence for version in versions] == list(range(len(versions)))
    assert journal.head().digest == version_digest(BASE, [v.delta for v in versions if v.delta is not None])
    fresh = FakeEditor(lambda: history(journal, service.pipeline.store))
    fresh.restore()
    assert torch.equal(fresh.weight, editor.weight)
    assert (fresh.held, fresh.covariance) == (editor.held, editor.covariance)
    swapped = [row.covariance for row in journal.refreshes() if row.state == "swapped"]
    assert swapped == [swap.covariance for swap in journal.swaps() if swap.after_sequence]


@given(st.lists(OPERATIONS, max_size=24))
@settings(max_examples=30, deadline=None)
@example(
    [
        *[("submit", subject, "x") for subject in (0, 1, 2, 0, 3)],
        ("write",),
        ("crash", "after_commit", 1),
        ("revert", 1),
        ("submit", 0, "y"),
        ("crash", "after_snapshot_stored", 1),
        ("write",),
        ("kill",),
        ("refresh",),
        ("crash", "after_swap", 1),
        ("write",),
        ("revert", 0),
        ("restart",),
    ]
)
def test_any_sequence_leaves_what_the_model_says(operations: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        service = Service(Path(directory))
        try:
            play(service, operations, lambda model: check(service, model))
        finally:
            service.close()
