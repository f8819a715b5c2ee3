"""Another judge for the answers of a finished run: what it says of them, and how far it agrees with the run's own.

A run keeps every answer in ``facts.jsonl``, so judging costs neither a model nor a second run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from errata.editing.wording import counted
from errata.evaluation.judge import Agreement, Case, ContainsJudge, Judge, agreement
from errata.evaluation.outcomes import ALL_ARMS, Arm
from errata.orchestrator.report.summary import FactRecord

KINDS = {"reliability": "edit", "generalization_gen": "paraphrase", "portability": "portability"}
"""Figures that a judge decides, and the questions they are over. Locality is agreement with the unedited model."""


@dataclass(frozen=True)
class Judged:
    """One figure of one arm, each the mean over the facts of the mean over a fact's questions."""

    arm: Arm
    metric: str
    questions: int
    by_strings: float
    """What containment says, which is what a run reports."""
    by_judge: float
    agreement: Agreement
    """Over the single answers."""


@dataclass(frozen=True)
class Judgment:
    """Everything one judge said of a run."""

    judge: str
    figures: tuple[Judged, ...]
    overall: Agreement | None
    """Over all answers of all arms; None where nothing was to be judged."""


def judge_again(facts: Iterable[FactRecord], judge: Judge) -> Judgment:
    """Put the answers of all arms to a judge; an answer that several arms gave to a question is judged once.

    Raises:
        EndpointError: the judge is a language model that does not answer.
    """
    records = list(facts)
    cases = {
        (probe.prompt, said.answer, probe.expected): Case(probe.prompt, said.answer, probe.expected)
        for record in records
        for probe in record.probes
        if probe.kind in KINDS.values()
        for said in probe.arms.values()
    }
    verdicts = dict(zip(cases, judge.judge(list(cases.values())), strict=True))
    by_strings = dict(zip(cases, ContainsJudge().judge(list(cases.values())), strict=True))
    figures = []
    ours: list[bool] = []
    strings: list[bool] = []
    for arm in ALL_ARMS:
        for metric, kind in KINDS.items():
            groups = [
                [(p.prompt, p.arms[arm].answer, p.expected) for p in r.probes if p.kind == kind and arm in p.arms]
                for r in records
            ]
            groups = [group for group in groups if group]
            if not groups:
                continue
            flat = [key for group in groups for key in group]
            one, other = [verdicts[key] for key in flat], [by_strings[key] for key in flat]
            ours += one
            strings += other
            figures.append(
                Judged(
                    arm,
                    metric,
                    len(flat),
                    _mean([_mean([by_strings[key] for key in group]) for group in groups]),
                    _mean([_mean([verdicts[key] for key in group]) for group in groups]),
                    agreement(one, other),
                )
            )
    return Judgment(judge.name, tuple(figures), agreement(ours, strings) if ours else None)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def judgment_lines(judgment: Judgment) -> list[str]:
    """A line a figure, and one for the agreement over everything."""
    lines = [f"{'arm':<15}{'figure':<20}{'contains':>9}{judgment.judge:>24}{'agree':>8}{'questions':>11}"]
    for row in judgment.figures:
        lines.append(
            f"{row.arm:<15}{row.metric:<20}{row.by_strings:>9.3f}{row.by_judge:>24.3f}"
            f"{row.agreement.share:>8.3f}{row.questions:>11}"
        )
    if judgment.overall is not None:
        kappa = "" if judgment.overall.kappa is None else f", Cohen's kappa {judgment.overall.kappa:.3f}"
        lines.append(
            f"agreement with containment over {counted(judgment.overall.cases, 'answer')}: "
            f"{judgment.overall.share:.3f}{kappa}"
        )
    return lines
