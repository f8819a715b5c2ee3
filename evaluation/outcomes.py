"""What an evaluation yields, and how single outcomes become the numbers that are reported."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Literal

from errata.editing.request import EditRequest
from errata.evaluation.metrics import average_true, interval, overall
from errata.evaluation.metrics.composite import AVERAGE_PARTS, OVERALL_PARTS
from errata.evaluation.probes import Probe, ProbeKind

AskedArm = Literal["base", "edited", "memory", "edited_memory", "routed"]
Arm = Literal["base", "edited", "memory", "edited_memory", "routed", "ike", "ike_oracle"]
ARMS: tuple[AskedArm, ...] = ("base", "edited", "memory", "edited_memory", "routed")
"""Unedited and edited weights, each without and with the memory, and the one that the router makes of them: any
question can be put to them."""
IKE_ARMS: tuple[Arm, ...] = ("ike", "ike_oracle")
"""In-context editing of the unedited weights, with the statement that is found and with the right one; for comparison,
in evaluations only."""
ALL_ARMS: tuple[Arm, ...] = (*ARMS, *IKE_ARMS)
"""In the order in which they are shown."""
MEMORY_ARMS: frozenset[Arm] = frozenset({"memory", "edited_memory", "routed"})
"""Arms for which the memory is searched."""


@dataclass(frozen=True)
class Retrieved:
    """A statement that the memory found for a question."""

    id: int
    score: float
    statement: str


@dataclass(frozen=True)
class ProbeOutcome:
    """How one arm did on one probe."""

    answer: str
    """Generated, greedy, at most the configured number of tokens or up to a newline."""
    ok: bool
    """In scope: the judge's verdict. Out of scope: the answer is that of the unedited model."""
    accuracy: float | None
    """Teacher-forced share of the target's tokens that are the argmax; None where the probe has no target."""
    match_ratio: float
    """Share of generated tokens equal to the unedited model's, position by position."""
    chosen: str | None = None
    """Statement the answer was given with; None: as the model without memory."""
    reason: str | None = None
    """Why it was chosen, or why none was; None in arms without memory."""
    retrieved: tuple[Retrieved, ...] = ()
    right: bool | None = None
    """The judge's verdict against the expected answers; out of scope too, where that is the true answer."""
    f1: float | None = None
    """Word-level F1 of the answer against the expected ones."""
    exact: bool | None = None
    """Teacher-forced: every token of the target is the argmax; None where the probe has no target."""
    agreement: float | None = None
    """Teacher-forced: share of the target's positions at which the argmax is the unedited model's."""
    reasoning: str | None = None
    """What a reasoning model wrote before its answer; None where reasoning is not told apart."""


@dataclass(frozen=True)
class ProbeResult:
    """One probe and how every arm did on it."""

    probe: Probe
    arms: Mapping[Arm, ProbeOutcome]


@dataclass(frozen=True)
class RecordResult:
    """All probes of one edit."""

    request_id: str
    probes: tuple[ProbeResult, ...]
    skipped: int = 0
    """Probes that were not asked: the model cannot take them in."""


PER_RECORD: Final[Mapping[str, tuple[ProbeKind, Callable[[ProbeOutcome], float | None]]]] = {
    # teacher-forced
    "efficacy": ("edit", lambda o: o.accuracy),
    "generalization": ("paraphrase", lambda o: o.accuracy),
    "specificity": ("neighborhood", lambda o: o.accuracy),
    "specificity_exact": ("neighborhood", lambda o: o.exact),
    "locality_tf": ("neighborhood", lambda o: o.agreement),
    # generated
    "reliability": ("edit", lambda o: o.ok),
    "generalization_gen": ("paraphrase", lambda o: o.ok),
    "locality": ("neighborhood", lambda o: o.ok),
    "locality_match": ("neighborhood", lambda o: o.match_ratio),
    "locality_true": ("neighborhood", lambda o: o.right),
    "portability": ("portability", lambda o: o.ok),
    "reliability_f1": ("edit", lambda o: o.f1),
    "generalization_f1": ("paraphrase", lambda o: o.f1),
    "portability_f1": ("portability", lambda o: o.f1),
}
"""Number of an arm -> the probes it is over, and what of an outcome it is the mean of. `errata.evaluation.figures`
says what each one means."""


def record_mean(
    records: Iterable[RecordResult], arm: Arm, kind: ProbeKind, value: Callable[[ProbeOutcome], float | None]
) -> float | None:
    """Mean over the records of the mean over a record's probes of one kind; None without such a probe.

    Records weigh alike however many probes they have (the convention of ROME and EasyEdit); records without
    a probe of the kind are left out.
    """
    means = record_means(records, arm, kind, value)
    return sum(means) / len(means) if means else None


def record_means(
    records: Iterable[RecordResult], arm: Arm, kind: ProbeKind, value: Callable[[ProbeOutcome], float | None]
) -> list[float]:
    """The means that `record_mean` is over, one for each record with such a probe."""
    means = []
    for record in records:
        measured = [
            value(result.arms[arm]) for result in record.probes if result.probe.kind == kind and arm in result.arms
        ]
        values = [float(item) for item in measured if item is not None]
        if values:
            means.append(sum(values) / len(values))
    return means


def arm_metrics(
    records: Sequence[RecordResult], arm: Arm, *, query_seconds: float | None = None
) -> dict[str, float | None]:
    """The numbers of one arm, by the names of ``summary.json``: those of `PER_RECORD` by `record_mean`, and what is
    made of them (``average_true``, ``overall``); None where no record has such a probe."""
    figures: dict[str, float | None] = {
        key: record_mean(records, arm, kind, value) for key, (kind, value) in PER_RECORD.items()
    }
    known = {key: value for key, value in figures.items() if value is not None}
    for key, score, parts in (("average_true", average_true, AVERAGE_PARTS), ("overall", overall, OVERALL_PARTS)):
        figures[key] = score(known) if known.keys() >= set(parts) else None
    return figures | {"query_seconds": query_seconds}


def arm_intervals(records: Sequence[RecordResult], arm: Arm) -> dict[str, tuple[float, float]]:
    """95 % intervals of the numbers of `PER_RECORD`, by `interval` over the records; those of fewer than two left out.

    Records drawn stratified by age scatter less than records drawn at random, so that the intervals are on the safe
    side.
    """
    intervals = {}
    for key, (kind, value) in PER_RECORD.items():
        means = record_means(records, arm, kind, value)
        if (span := interval(means)) is not None:
            intervals[key] = span
    return intervals


def portability_by_kind(
    records: Sequence[RecordResult], arm: Arm, value: Callable[[ProbeOutcome], float | None] = lambda o: o.ok
) -> dict[str, float]:
    """Portability of each kind of question, by `record_mean`; ``value`` of an outcome is the judge's verdict."""
    kinds = {r.probe.detail for record in records for r in record.probes if r.probe.kind == "portability"}
    by_kind = {}
    for kind in sorted(kinds):
        part = [
            RecordResult(record.request_id, tuple(r for r in record.probes if r.probe.detail == kind))
            for record in records
        ]
        mean = record_mean(part, arm, "portability", value)
        if mean is not None:
            by_kind[kind] = mean
    return by_kind


def locality_match_ratio_of(records: Sequence[RecordResult], arm: Arm) -> float | None:
    """Mean `match_ratio` on neighborhood prompts (revisiting C.5), beside the exact `locality`."""
    return record_mean(records, arm, "neighborhood", lambda outcome: outcome.match_ratio)


def choice_rates(records: Sequence[RecordResult], arm: Arm) -> dict[str, float | None]:
    """How often a memory arm chose no statement: shares of the in-scope and of the out-of-scope questions."""
    counts = {True: [0, 0], False: [0, 0]}
    for record in records:
        for result in record.probes:
            if arm in result.arms:
                tally = counts[result.probe.in_scope]
                tally[0] += result.arms[arm].chosen is None
                tally[1] += 1
    shares = {scope: none / total if total else None for scope, (none, total) in counts.items()}
    return {"none_in_scope": shares[True], "none_out_of_scope": shares[False]}


@dataclass(frozen=True)
class AgeBin:
    """Edits of like age, and a metric over them."""

    youngest: int
    oldest: int
    """Ages in edits: how many edits came after, at the time of measuring."""
    records: int
    value: float | None


def forgetting_curve(
    records: Sequence[RecordResult],
    sequences: Mapping[str, int],
    now: int,
    value: Callable[[Sequence[RecordResult]], float | None],
    *,
    bins: int = 10,
) -> list[AgeBin]:
    """A metric as a function of the age of the edit, in ``bins`` groups of as nearly equal size as can be.

    Args:
        records: outcomes measured on one version.
        sequences: per request id its place in the stream, from 1.
        now: the number of edits at the time of measuring.
        value: for instance ``lambda part: arm_metrics(part, "edited")["efficacy"]``.
        bins: number of groups, youngest first; fewer where there are fewer records.

    Raises:
        ValueError: ``bins`` is below 1.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    aged = sorted(((now - sequences[record.request_id], record) for record in records), key=lambda pair: pair[0])
    bins = min(bins, len(aged))
    edges = [round(at * len(aged) / bins) for at in range(bins + 1)] if bins else [0]
    curve = []
    for start, stop in pairwise(edges):
        part = aged[start:stop]
        curve.append(AgeBin(part[0][0], part[-1][0], len(part), value([record for _, record in part])))
    return curve


def fact_line(request: EditRequest, sequence: int, record: RecordResult) -> dict[str, Any]:
    """One line of ``facts.jsonl``: the edit, and every arm's actual answer to each of its questions."""
    return {
        "id": request.id,
        "subject": request.subject,
        "prompt": request.text,
        "target_new": request.target_new,
        "target_true": request.target_true,
        "relation": request.relation,
        "sequence": sequence,
        "probes": [
            {
                "kind": result.probe.kind,
                "prompt": result.probe.prompt,
                "expected": list(result.probe.expected),
                "arms": {arm: _arm_line(outcome) for arm, outcome in result.arms.items()},
            }
            for result in record.probes
        ],
    }


def _arm_line(outcome: ProbeOutcome) -> dict[str, Any]:
    return {
        "answer": outcome.answer,
        "ok": outcome.ok,
        "right": outcome.right,
        "f1": outcome.f1,
        "accuracy": outcome.accuracy,
        "exact": outcome.exact,
        "agreement": outcome.agreement,
        **({} if outcome.reasoning is None else {"reasoning": outcome.reasoning}),
        "chosen": outcome.chosen,
        "reason": outcome.reason,
        "retrieved": [
            {"id": item.id, "score": round(item.score, 4), "statement": item.statement} for item in outcome.retrieved
        ],
    }
