"""What a run leaves behind, written from its journal and the last measurement."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from errata.editing.request import EditRequest
from errata.evaluation.arms import Evaluation
from errata.evaluation.outcomes import ARMS, ProbeOutcome, ProbeResult, RecordResult
from errata.evaluation.probes import probes_of
from errata.orchestrator.config.loading import build_config, load_config
from errata.orchestrator.config.run import RunConfig
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.rows import CommitData, CovarianceRow, JournalMeta, RequestOutcome
from errata.orchestrator.measuring.measurer import Measurement, read_held_out
from errata.orchestrator.report.summary import Summary, read_facts, read_summary
from errata.orchestrator.run.outputs import write_outputs

STARTED = datetime(2024, 5, 1, 12, tzinfo=UTC)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    (tmp_path / "facts.jsonl").write_text("{}")
    return build_config(
        {
            "name": "small",
            "model": {"name": "some-model"},
            "editor": {"type": "memit", "layers": [1]},
            "stream": {"path": str(tmp_path / "facts.jsonl")},
            "covariance": {"tokens": 100},
            "evaluation": {"held_out": None, "every": 2},
        }
    )


def ask(name: str) -> EditRequest:
    return EditRequest(
        id=name,
        subject=f"Mount {name}",
        prompt="{} lies in",
        target_new="Peru <b>",
        relation="country",
        neighborhood=({"prompt": "Rome lies in", "answer": "Italy"},),  # type: ignore[arg-type]
    )


@pytest.fixture
def journal(tmp_path: Path, config: RunConfig) -> Any:
    """Two batches of two; one request refused by the editor, one record that was none; a refresh after the first."""
    meta = JournalMeta("run-1", "b" * 64, "e" * 64, config.dump())
    with Journal.create(tmp_path / "journal.sqlite", meta) as made:
        for digest, tokens in (("c1", 100), ("c2", 120)):
            made.record_covariance(CovarianceRow(digest, {}, tokens, (1,), made.base().digest, f"{digest}.st"))
        made.record_swap(0, "c1", 0)
        made.accept([ask(name) for name in "abcd"])
        made.reject("facts.jsonl:5", "the prompt does not contain the subject")
        for sequence, names, covariance in ((1, "ab", "c1"), (2, "cd", "c2")):
            outcomes = tuple(RequestOutcome(n, n != "d", None if n != "d" else "no finite value") for n in names)
            made.commit(
                CommitData(sequence, outcomes, f"delta{sequence}", covariance=covariance, norms={1: 9.0}, seconds=3.0)
            )
            if sequence == 1:
                made.record_refresh(2, "started", from_version=made.head().digest)
                made.record_swap(1, "c2", 2)
                made.record_refresh(2, "swapped", covariance="c2", seconds=4.5)
        made.record_refresh(3, "started", from_version=made.head().digest)
        yield made


def outcome(ok: bool) -> ProbeOutcome:
    return ProbeOutcome("an </script> answer", ok, 1.0 if ok else 0.0, 1.0)


def record(request: EditRequest) -> RecordResult:
    return RecordResult(
        request.id,
        tuple(
            ProbeResult(probe, {arm: outcome(arm != "base" or probe.kind == "neighborhood") for arm in ARMS})
            for probe in probes_of(request)
        ),
    )


def measured(journal: Journal) -> Measurement:
    head, requests = journal.head(), [row.request for row in journal.requests("applied")]
    evaluation = Evaluation(tuple(record(request) for request in requests), ARMS, 1.0)
    return Measurement(head.edits, head.digest, evaluation, 21.0, dict.fromkeys(ARMS, 0.5), 2.0)


def write(config: RunConfig, journal: Journal, directory: Path, final: Measurement | None) -> Summary:
    return write_outputs(
        config,
        journal,
        directory,
        model_digest="m" * 64,
        final=final,
        rows=journal.requests("applied"),
        base_perplexity=20.0,
        started_at=STARTED,
        wall_seconds=30.0,
        covariance_seconds=10.0,
        evaluation_seconds=5.0,
    )


def test_the_summary_counts_what_the_journal_holds(config, journal, tmp_path):
    summary = write(config, journal, tmp_path, measured(journal))
    assert read_summary(tmp_path / "summary.json") == summary
    assert (summary.edits_applied, summary.edits_failed, summary.batches, summary.refreshes) == (3, 2, 2, 1)
    assert summary.version == journal.head().digest and summary.config_digest == config.digest
    assert summary.edit_seconds_per_edit == 2.0 and summary.stages.edit_seconds == 6.0
    assert sorted(failure.reason for failure in summary.failures) == [
        "no finite value",
        "the prompt does not contain the subject",
    ]
    assert (summary.perplexity.base, summary.perplexity.edited) == (20.0, 21.0)
    assert (summary.arms["base"].efficacy, summary.arms["edited"].efficacy) == (0.0, 1.0)
    assert summary.arms["memory"].query_seconds == 0.5 and summary.arms["base"].portability is None
    assert summary.finished_at > summary.started_at == STARTED


def test_questions_that_were_not_asked_are_counted_and_told(config, journal, tmp_path):
    whole = measured(journal)
    records = [replace(record, skipped=n) for n, record in enumerate(whole.evaluation.records)]
    some = replace(whole, evaluation=replace(whole.evaluation, records=tuple(records)))
    assert write(config, journal, tmp_path, some).skipped_probes == 3
    assert "3 questions that the model cannot take in were not asked" in (tmp_path / "report.html").read_text()
    # of a part of the facts, those that are counted are theirs
    assert write(config, journal, tmp_path, some.only({"b"})).skipped_probes == 1
    assert write(config, journal, tmp_path, whole).skipped_probes == 0
    assert "cannot take in" not in (tmp_path / "report.html").read_text()


def test_only_refreshes_that_took_effect_are_told(config, journal, tmp_path):
    (event,) = write(config, journal, tmp_path, measured(journal)).refresh_events
    assert (event.triggered_at, event.swapped_at, event.tokens, event.digest, event.seconds) == (2, 2, 120, "c2", 4.5)
    assert event.source_version == journal.versions()[1].digest


def test_the_timeline_is_in_the_order_of_edits_and_a_point_measured_twice_is_told_once(config, journal, tmp_path):
    def note(edits: int, perplexity: float, kind: str = "timeline") -> None:
        version = next(v for v in journal.versions() if v.edits == edits)
        metrics = {
            "arms": {"base": {"efficacy": 0.5, "unknown_later": 1.0}},
            "choice": {},
            "perplexity": perplexity,
            "facts": 2,
            "norms": {"1": 9.0},
            "delta_norms": {"1": 1.0},
            "seconds": 1.0,
        }
        journal.record_evaluation(version.digest, edits, kind, metrics)

    note(2, 20.5)
    note(0, 20.0)
    note(2, 20.6)
    note(3, 99.0, "final")
    points = write(config, journal, tmp_path, measured(journal)).timeline
    assert [(point.edits, point.perplexity.edited) for point in points] == [(0, 20.0), (2, 20.6)]
    assert all(point.perplexity.base == 20.0 and point.arms["base"].efficacy == 0.5 for point in points)


def test_facts_are_those_that_hold_and_the_report_escapes_what_a_model_said(config, journal, tmp_path):
    write(config, journal, tmp_path, measured(journal))
    facts = read_facts(tmp_path / "facts.jsonl")
    assert [(fact.id, fact.sequence) for fact in facts] == [("a", 1), ("b", 1), ("c", 2)]
    assert json.loads((tmp_path / "facts.jsonl").read_text().splitlines()[0])["prompt"] == "Mount a lies in"
    page = (tmp_path / "report.html").read_text()
    assert "an </script> answer" not in page and "an &lt;/script&gt; answer" in page and "Peru <b>" not in page
    assert load_config(str(tmp_path / "resolved.yaml")) == config


def test_a_run_that_applied_nothing_is_told_as_well(config, tmp_path):
    with Journal.create(tmp_path / "j.sqlite", JournalMeta("r", "b" * 64, "e" * 64, {})) as journal:
        summary = write(config, journal, tmp_path, None)
    assert (summary.edits_applied, summary.batches, summary.edit_seconds_per_edit) == (0, 0, None)
    assert summary.arms == {} and summary.perplexity.edited is None and summary.version
    assert list(read_facts(tmp_path / "facts.jsonl")) == [] and (tmp_path / "report.html").stat().st_size > 1000


def test_held_out_text_may_be_absent_by_choice():
    assert read_held_out(None) is None
