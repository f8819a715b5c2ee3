"""What a run leaves in its directory: ``summary.json``, ``facts.jsonl``, ``resolved.yaml``, ``report.html``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from errata.editing.session import NOT_LANDED
from errata.evaluation.figures import MEASURED_BY
from errata.evaluation.judge import judge_name
from errata.evaluation.metrics import METRICS
from errata.evaluation.outcomes import ProbeOutcome, fact_line, portability_by_kind
from errata.orchestrator.config.run import RunConfig
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.rows import RequestRow
from errata.orchestrator.measuring.measurer import Measurement
from errata.orchestrator.measuring.repairs import repair_figures
from errata.orchestrator.report import render_report
from errata.orchestrator.report.summary import (
    ArmMetrics,
    ChoiceRates,
    FactRecord,
    Failure,
    ModelName,
    Perplexity,
    RefreshEvent,
    RepairSummary,
    Stages,
    Summary,
    TimelinePoint,
    write_facts,
    write_summary,
)
from errata.orchestrator.run.repairing import REPAIR


def errata_version() -> str:
    """Version of the installed distribution."""
    try:
        return version("errata-llm")
    except PackageNotFoundError:
        return "0+unknown"


def write_outputs(
    config: RunConfig,
    journal: Journal,
    output: Path,
    *,
    model_digest: str,
    final: Measurement | None,
    rows: Sequence[RequestRow],
    base_perplexity: float | None,
    base_perplexities: Mapping[str, float] | None = None,
    started_at: datetime,
    wall_seconds: float,
    covariance_seconds: float,
    evaluation_seconds: float,
) -> Summary:
    """Write every file; the journal is the source of all that is not passed."""
    head, counts = journal.head(), journal.counts()
    edit_seconds = sum(version.seconds for version in journal.versions() if version.kind != REPAIR)
    repair = repair_figures((event.data for event in journal.events(REPAIR)), edit_seconds)
    refreshes = [row for row in journal.refreshes() if row.state == "swapped"]
    summary = Summary(
        name=config.name,
        errata_version=errata_version(),
        started_at=started_at,
        finished_at=datetime.now(UTC),
        config_digest=config.digest,
        model=ModelName(name=config.model.name, digest=model_digest),
        editor=config.editor.type,
        edits_applied=head.edits,
        edits_failed=counts.rejected,
        **_verified(config, journal),
        batches=head.sequence,
        refreshes=len(refreshes),
        version=head.digest,
        wall_seconds=wall_seconds,
        edit_seconds_per_edit=edit_seconds / head.edits if head.edits else None,
        arms={} if final is None else _arms(final.arms()),
        intervals={} if final is None else _intervals(final),
        portability_by_kind={} if final is None else _by_kind(final, lambda outcome: outcome.ok),
        portability_f1_by_kind={} if final is None else _by_kind(final, lambda outcome: outcome.f1),
        choice={} if final is None else _choices(final.choices()),
        perplexity=Perplexity(base=base_perplexity, edited=None if final is None else final.perplexity),
        perplexities=_by_text(base_perplexities or {}, {} if final is None else final.perplexities),
        timeline=_timeline(journal, base_perplexity, base_perplexities or {}),
        refresh_events=_refresh_events(journal),
        failures=tuple(Failure(id=r.id, reason=r.reason or "") for r in journal.requests("rejected")),
        stages=Stages(
            covariance_seconds=covariance_seconds,
            evaluation_seconds=evaluation_seconds,
            edit_seconds=edit_seconds,
            repair_seconds=None if repair is None else repair["ask_seconds"] + repair["write_seconds"],
        ),
        repair=None if repair is None else RepairSummary.model_validate(repair),
        facts_measured=None if final is None else len(final.evaluation.records),
        skipped_probes=None if final is None else final.evaluation.skipped,
        judge=judge_name(config.evaluation.judge),
        metric_versions={name: METRICS[name].version for name in MEASURED_BY},
    )
    records = {} if final is None else {record.request_id: record for record in final.evaluation.records}
    facts = [fact_line(r.request, r.applied_in or 1, records[r.id]) for r in rows if r.id in records]
    write_summary(output / "summary.json", summary)
    write_facts(output / "facts.jsonl", [FactRecord.model_validate(fact) for fact in facts])
    resolved = config.to_yaml()
    (output / "resolved.yaml").write_text(resolved, encoding="utf-8")
    page = render_report(summary.model_dump(mode="json"), facts, resolved)
    (output / "report.html").write_text(page, encoding="utf-8")
    return summary


def _verified(config: RunConfig, journal: Journal) -> dict[str, int]:
    """How many edits landed, are weak and were refused, where batches are looked at."""
    if not config.verify.enabled:
        return {}
    counts = journal.counts()
    refused = sum(row.reason in (NOT_LANDED, "damage") for row in journal.requests("rejected"))
    return {"edits_landed": counts.landed, "edits_weak": counts.weak, "edits_refused": refused}


def _arms(metrics: dict[str, dict[str, float | None]]) -> Any:
    known = ArmMetrics.model_fields
    return {arm: ArmMetrics(**{k: v for k, v in values.items() if k in known}) for arm, values in metrics.items()}


def _intervals(final: Measurement) -> Any:
    return {arm: {k: (low, high) for k, (low, high) in spans.items()} for arm, spans in final.intervals().items()}


def _by_kind(final: Measurement, value: Callable[[ProbeOutcome], float | None]) -> Any:
    kinds = {arm: portability_by_kind(final.evaluation.records, arm, value) for arm in final.evaluation.arms}
    return {arm: figures for arm, figures in kinds.items() if figures}


def _choices(rates: dict[str, dict[str, float | None]]) -> Any:
    known = ChoiceRates.model_fields
    return {arm: ChoiceRates(**{k: v for k, v in values.items() if k in known}) for arm, values in rates.items()}


def _by_text(base: Mapping[str, float], edited: Mapping[str, float]) -> dict[str, Perplexity]:
    return {name: Perplexity(base=base.get(name), edited=edited.get(name)) for name in {**base, **edited}}


def _timeline(
    journal: Journal, base_perplexity: float | None, base_perplexities: Mapping[str, float]
) -> tuple[TimelinePoint, ...]:
    points = {}
    for row in journal.evaluations():
        if row.kind != "timeline":
            continue
        m = row.metrics
        points[row.edits] = TimelinePoint(
            edits=row.edits,
            version=row.version,
            facts=int(m["facts"]),
            arms=_arms(m["arms"]),
            choice=_choices(m["choice"]),
            perplexity=Perplexity(base=base_perplexity, edited=m["perplexity"]),
            # journals of older releases have none
            perplexities=_by_text(base_perplexities, m.get("perplexities", {})) if m.get("perplexities") else {},
            norms=dict(m["norms"]),
            delta_norms=dict(m["delta_norms"]),
            seconds=m["seconds"],
            skipped_probes=m.get("skipped_probes"),
        )
    return tuple(points[edits] for edits in sorted(points))


def _refresh_events(journal: Journal) -> tuple[RefreshEvent, ...]:
    covariances = {row.digest: row for row in journal.covariances()}
    swapped_at = {swap.covariance: swap.edits for swap in journal.swaps()}
    return tuple(
        RefreshEvent(
            triggered_at=row.triggered_at,
            swapped_at=swapped_at[row.covariance],
            tokens=covariances[row.covariance].tokens,
            digest=row.covariance,
            source_version=row.from_version,
            seconds=row.seconds,
        )
        for row in journal.refreshes()
        if row.state == "swapped" and row.covariance in swapped_at
    )
