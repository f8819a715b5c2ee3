"""What a measurement hands on: every figure to the journal, and to the tracker under its own key."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from errata.editing.request import EditRequest, NeighborhoodProbe, PortabilityProbe
from errata.evaluation.arms import Evaluation
from errata.evaluation.outcomes import ProbeOutcome, ProbeResult, RecordResult
from errata.evaluation.probes import probes_of
from errata.orchestrator.config.evaluation import EvaluationConfig
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.rows import CommitData, JournalMeta, RequestOutcome
from errata.orchestrator.measuring.measurer import Measurement
from errata.orchestrator.measuring.timeline import FINAL, Timeline
from errata.orchestrator.progress import Display

REQUEST = EditRequest(
    id="a",
    subject="Rome",
    prompt="{} lies in",
    target_new="Peru",
    paraphrases=("Rome is in",),
    neighborhood=(NeighborhoodProbe(prompt="Lyon lies in", answer="France"),),
    portability=(PortabilityProbe(prompt="The continent of Rome is", answers=("America",)),),
)
OUTCOME = ProbeOutcome("x", True, 1.0, 1.0, exact=True, agreement=1.0, right=True, f1=0.5)
FREE = {"fluency": 5.0, "fluency_star": 1.0, "consistency": 0.25}


class Tracking:
    def __init__(self) -> None:
        self.points: dict[str, float] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.points |= metrics


class Measuring:
    """Has measured already; one question of the fact could not be asked."""

    def submit(self, requests: Any, weights: Any, *, edits: int, version: str, done: Any, **_: Any) -> Any:
        results = tuple(ProbeResult(probe, {"edited": OUTCOME}) for probe in probes_of(REQUEST))
        record = RecordResult("a", results, skipped=1)
        found = Evaluation((record, replace(record, request_id="other", skipped=5)), ("edited",), 1.0)
        measured = Measurement(edits, version, found, 21.0, {"edited": 0.5}, 2.0, free={"edited": FREE})
        done(measured)
        future: Future[Measurement] = Future()
        future.set_result(measured)
        return future


def test_every_figure_reaches_journal_and_tracker(tmp_path: Path) -> None:
    tracking = Tracking()
    with Journal.create(tmp_path / "j.sqlite", JournalMeta("r", "b" * 64, "e" * 64, {})) as journal:
        journal.accept([REQUEST])
        version = journal.commit(CommitData(1, (RequestOutcome("a", True),), "delta"))
        timeline = Timeline(
            EvaluationConfig(held_out=None),
            journal,
            Measuring(),  # type: ignore[arg-type]
            dict,
            tracker=tracking,  # type: ignore[arg-type]
            display=Display(quiet=True),
        )
        timeline.measure([REQUEST], version, FINAL, counted={"a"}).result()
        (row,) = journal.evaluations()
    kept = row.metrics["arms"]["edited"]
    assert row.metrics["skipped_probes"] == 1, "those of the facts that are counted"
    figures = ("locality_true", "locality_tf", "specificity_exact", "average_true", "overall", "reliability_f1")
    for name in (*figures, "fluency", "fluency_star", "consistency", "edit_score", "query_seconds"):
        assert tracking.points[f"final_edited/{name}"] == kept[name] is not None
