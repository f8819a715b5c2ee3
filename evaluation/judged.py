"""Verdicts of another judge on the answers of an evaluation."""

from __future__ import annotations

from dataclasses import replace

from errata.evaluation.arms import Evaluation
from errata.evaluation.judge import Case, Judge
from errata.evaluation.outcomes import ProbeResult


def judged(evaluation: Evaluation, judge: Judge) -> Evaluation:
    """The same answers with this judge's verdicts; an answer that several arms gave to a question is judged once.

    Locality stays what it is, agreement with the unedited model; whether a neighborhood answer is true is judged.

    Raises:
        EndpointError: the judge is a language model that does not answer.
    """
    cases = {
        (result.probe.prompt, outcome.answer, result.probe.expected): Case(
            result.probe.prompt, outcome.answer, result.probe.expected
        )
        for record in evaluation.records
        for result in record.probes
        for outcome in result.arms.values()
    }
    verdicts = dict(zip(cases, judge.judge(list(cases.values())), strict=True))

    def again(result: ProbeResult) -> ProbeResult:
        probe = result.probe
        arms = {}
        for arm, outcome in result.arms.items():
            right = verdicts[probe.prompt, outcome.answer, probe.expected]
            arms[arm] = replace(outcome, right=right, ok=right if probe.in_scope else outcome.ok)
        return replace(result, arms=arms)

    records = tuple(replace(record, probes=tuple(map(again, record.probes))) for record in evaluation.records)
    return replace(evaluation, records=records)
