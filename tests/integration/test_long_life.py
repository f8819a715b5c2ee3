"""A life of updates in short: killed at ten random moments, nothing is lost and nothing is done twice."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from errata.evaluation.datasets.updating import UpdatingStream
from errata.orchestrator.history.rebuild import BaseCheckpoint, weights_at
from errata.orchestrator.history.receipts import memory_entries, open_store
from errata.orchestrator.history.verify import verify
from errata.orchestrator.journal import JOURNAL_FILE, Journal
from errata.retrieval.embedder import HashEmbedder
from errata.retrieval.memory import FactMemory
from tests.helpers.processes import PROCESSES
from tests.integration.harness import PlainCluster, config, go, outcome, write_stream

EDITS = 60
KILLS = 10
PATIENCE = 600.0


def chosen(tiny_checkpoint: Path, folder: Path) -> Any:
    records = list(UpdatingStream(EDITS, 24, late=0.1, delay=6, timed=True))
    return config(
        tiny_checkpoint,
        write_stream(folder / "updates.jsonl", records),
        covariance={"source": "identity", "tokens": None},
        refresh={"every": None},
        evaluation={"every": None, "held_out": None, "final": 3, "arms": ["base", "edited"], "latency_questions": 0},
        snapshots={"every": 5},
        repair={"every": 20, "sample": 6, "target": 1.0, "most": 0.2},
    )


def live(settings: Any, run: str) -> None:
    """Go on with the life until its end, or until this process is killed."""
    go(settings, Path(run), resume=(Path(run) / JOURNAL_FILE).exists())


def commits(run: Path) -> int:
    if not Journal.exists(run / JOURNAL_FILE):
        return 0
    with Journal.open(run / JOURNAL_FILE, read_only=True) as journal:
        return journal.head().sequence


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_kills_at_random_moments_lose_nothing_and_double_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = chosen(tiny_checkpoint, tmp_path)
    weights = go(settings, tmp_path / "whole")
    memory = PlainCluster.last.memory
    assert memory is not None
    wanted, digest, last = outcome(tmp_path / "whole"), memory.digest(), commits(tmp_path / "whole")
    random, run = Random(19), tmp_path / "cut"
    moments = sorted(random.sample(range(1, last), KILLS))
    for moment in moments:
        process = PROCESSES.Process(target=live, args=(settings, str(run)))
        process.start()
        deadline = time.monotonic() + PATIENCE
        while commits(run) < moment:
            assert process.is_alive() and time.monotonic() < deadline, f"{commits(run)} of {moment} commits"
            time.sleep(0.005 * random.random())
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        assert verify(run, None).sound
    after = go(settings, run, resume=True)
    assert outcome(run) == wanted
    assert all(torch.equal(after[layer], weight) for layer, weight in weights.items())
    memory = PlainCluster.last.memory
    assert memory is not None and memory.digest() == digest
    report = verify(run, BaseCheckpoint(tiny_checkpoint))
    assert report.sound, report.problems
    with Journal.open(run / JOURNAL_FILE, read_only=True) as journal:
        counts = journal.counts()
        assert counts.requests == EDITS and counts.accepted == 0, "none is lost"
        written = [fate for row in journal.requests() for fate in journal.fates(row.id) if fate.state == "applied"]
        again = [version for version in journal.versions() if version.kind == "repair"]
        assert len(written) == journal.head().edits + sum(len(version.request_ids) for version in again)
        held = FactMemory(HashEmbedder())
        held.add(memory_entries(journal))
        assert held.digest == digest, "equal to a memory made from the journal"
        base = {layer: BaseCheckpoint(tiny_checkpoint).map(layer) for layer in weights}
        made = weights_at(journal, open_store(run), base, journal.head())
        assert all(torch.equal(made[layer], weight) for layer, weight in weights.items())
