"""Perplexity by domain: measured at every point of a run's timeline, on the same documents each time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from errata.editing.checkpoint.load import load_model
from errata.editing.model.engine import LanguageEngine
from errata.evaluation.perplexity import perplexity, windows_of
from errata.orchestrator.config.loading import build_config
from errata.orchestrator.experiments.collect import collect
from errata.orchestrator.experiments.tables import compare
from errata.orchestrator.experiments.timeline import at_points
from errata.orchestrator.report.summary import read_summary
from tests.integration.harness import go, settings


def test_every_point_has_the_perplexity_of_each_text(tiny_checkpoint: Path, stream: Path, tmp_path: Path) -> None:
    documents = ["The capital of France is Paris.\n\nRome lies in Italy.", "Angola is located in Africa."]
    text = tmp_path / "news.jsonl"
    text.write_text("".join(json.dumps({"text": document}) + "\n" for document in [*documents, "left out"]))
    texts = {"news": {"path": str(text), "documents": 2}}
    plain = settings(tiny_checkpoint, stream, evaluation={"texts": texts, "held_out": None}, refresh={"every": None})
    go(build_config(plain), tmp_path / "run")

    model = load_model(str(tiny_checkpoint))
    expected = perplexity(LanguageEngine(model), windows_of(model.text, documents)).value
    summary = read_summary(tmp_path / "run" / "summary.json")
    found = summary.perplexities["news"]
    assert found.base == pytest.approx(expected, rel=1e-6) and found.edited != found.base
    assert summary.timeline[0].edits == 0 and len(summary.timeline) >= 3
    assert summary.timeline[0].perplexities["news"].edited == found.base
    assert summary.timeline[-1].perplexities["news"].edited == found.edited
    assert summary.perplexity.edited is None

    tables = compare(at_points(collect([tmp_path / "run"])))
    assert {block.coordinates["edits"] for block in tables.blocks} == {
        str(point.edits) for point in summary.timeline if point.edits
    }
    assert "PPL news" in [column.heading for column in tables.columns]
