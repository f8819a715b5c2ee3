"""Repair with a real editor: old key out, fresh value in, as replayable, revertible and sound as any other commit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from errata.orchestrator.config.loading import build_config
from errata.orchestrator.history.rebuild import BaseCheckpoint
from errata.orchestrator.history.verify import verify
from errata.orchestrator.run.repairing import REPAIR
from tests.integration.harness import asked, facts, opened, settings, write_all, write_stream


@pytest.mark.parametrize(
    "editor", [{}, {"type": "mose", "layers": [1, 2], "values": {"steps": 3, "lr": 0.5}}], ids=["alphaedit", "mose"]
)
def test_repaired_edits_replay_verify_and_revert(tiny_checkpoint: Path, tmp_path: Path, editor: dict[str, Any]) -> None:
    stream = write_stream(tmp_path / "facts.jsonl", facts(1))
    plain = settings(
        tiny_checkpoint,
        stream,
        covariance={"tokens": 40},
        refresh={"every": None},
        evaluation={"every": None, "held_out": None},
        repair={"every": 6, "sample": 8, "target": 1.0, "most": 1.0},
    )
    chosen = build_config({**plain, "editor": editor or plain["editor"]})
    run = tmp_path / "run"
    with opened(chosen, run) as pipeline:
        pipeline.journal.accept(asked(facts(12)))
        write_all(pipeline)
        repairs = [version for version in pipeline.journal.versions() if version.kind == REPAIR]
        assert repairs, "a model of random weights says little after three steps"
        weights = pipeline.editor.weights()
        state = pipeline.editor._worker.session().state
        applied = {row.id for row in pipeline.journal.requests("applied")}
        assert sorted(state.request_ids) == sorted(applied), "one key each"
        name = repairs[0].request_ids[0]
        row = pipeline.journal.request(name)
        assert row is not None and row.outcome in ("landed", "weak") and row.applied_in < repairs[0].sequence
    with opened(chosen, run) as pipeline:  # replayed from the journal
        again = pipeline.editor.weights()
        assert all(torch.equal(again[layer], weight) for layer, weight in weights.items())
        before = pipeline.editor._worker.session().state
        assert before.request_ids == state.request_ids
        assert all(torch.equal(before.keys[layer], state.keys[layer]) for layer in state.keys)
        pipeline.revert([name])
        left = pipeline.editor._worker.session().state
        assert sorted(left.request_ids) == sorted(applied - {name})
        keys = {layer: left.keys[layer] for layer in left.keys}
        reverted = pipeline.editor.weights()
    with opened(chosen, run) as pipeline:
        found = pipeline.editor._worker.session().state
        assert found.request_ids == left.request_ids
        assert all(torch.equal(found.keys[layer], keys[layer]) for layer in keys)
        assert all(torch.equal(found_, reverted[layer]) for layer, found_ in pipeline.editor.weights().items())
    report = verify(run, BaseCheckpoint(tiny_checkpoint))
    assert report.sound, report.problems
