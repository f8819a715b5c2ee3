"""Sequences of submissions, duplicates, reverts, refreshes and restarts come to the same with crashes and without."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from errata.orchestrator.config.run import RunConfig
from errata.orchestrator.history.rebuild import BaseCheckpoint
from errata.orchestrator.history.verify import verify
from tests.helpers.pipeline_model import OPERATIONS, SIZE, Client, play
from tests.integration.harness import PlainCluster, config, facts, opened, outcome, write_stream
from tests.integration.test_recovery import equal


@pytest.fixture(scope="module")
def chosen(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    stream = write_stream(tmp_path_factory.mktemp("stream") / "facts.jsonl", facts(1))
    return config(
        tiny_checkpoint,
        stream,
        batching={"size": SIZE},
        covariance={"tokens": 40},
        refresh={"every": 5, "lag": 2, "max_jsd": None},
        evaluation={"every": None, "held_out": None},
        snapshots={"every": 2},
    )


class Real(Client):
    """A pipeline whose parts are the real ones, called plainly."""

    def __init__(self, chosen: RunConfig, directory: Path) -> None:
        self._chosen, self._stack = chosen, ExitStack()
        super().__init__(directory)

    def open(self) -> None:
        self.pipeline = self._stack.enter_context(opened(self._chosen, self.directory))
        self.journal = self.pipeline.journal

    def close(self) -> None:
        self._stack.close()

    def kill(self) -> None:
        editor: Any = self.pipeline.editor
        editor.restore()


def without(operations: Sequence[tuple[Any, ...]], names: tuple[str, ...]) -> list[tuple[Any, ...]]:
    return [("submit", op[1], "x") if op[-1] == "bad" else op for op in operations if op[0] not in names]


@pytest.mark.slow
@pytest.mark.timeout(600)
@given(operations=st.lists(OPERATIONS, min_size=6, max_size=18))
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_crashes_change_nothing(chosen: RunConfig, operations: list[tuple[Any, ...]]) -> None:
    results = []
    with tempfile.TemporaryDirectory() as root:
        for name, aside in (("plain", ("crash", "kill", "restart")), ("crashed", ())):
            client = Real(chosen, Path(root) / name)
            try:
                play(client, without(operations, aside))
                memory: Any = PlainCluster.last.memory
                results.append((outcome(client.directory), client.pipeline.editor.weights(), memory.digest()))
            finally:
                client.close()
            report = verify(client.directory, BaseCheckpoint(Path(chosen.model.name)))
            assert report.sound, report.problems
    assert results[0][0] == results[1][0]
    assert equal(results[0][1], results[1][1])
    assert results[0][2] == results[1][2]
