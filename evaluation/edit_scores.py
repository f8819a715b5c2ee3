"""ES, PS, NS and the token accuracies of many edits on the weights the model has now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from errata.editing.model.engine import Continuation, LanguageEngine
from errata.editing.model.text import TextCodec
from errata.editing.request import EditRequest
from errata.evaluation.metrics import (
    efficacy_score,
    neighborhood_score,
    neighborhood_score_argmax,
    paraphrase_score,
    token_accuracy,
)
from errata.evaluation.probes import ProbeKind, probes_of


@dataclass(frozen=True)
class EditScores:
    """Teacher-forced scores of one edit; None where the edit has no such prompt or no old target.

    Each is the mean over the edit's prompts of the kind: share of prompts for the scores, of tokens for the
    accuracies.
    """

    request_id: str
    efficacy_score: float | None
    paraphrase_score: float | None
    neighborhood_score: float | None
    neighborhood_score_argmax: float | None
    efficacy: float | None
    generalization: float | None
    specificity: float | None


def edit_scores(engine: LanguageEngine, text: TextCodec, requests: Sequence[EditRequest]) -> list[EditScores]:
    """Score the new and the old target on every edit, paraphrase and neighborhood prompt, batched.

    ES and PS compare `target_new` with `target_true`; NS compares the neighborhood probe's own answer with
    `target_new` (in CounterFact that answer is `target_true`).
    """
    rows: list[tuple[list[int], list[int]]] = []
    plan: list[list[tuple[ProbeKind, int, int | None]]] = []
    for request in requests:
        spots: list[tuple[ProbeKind, int, int | None]] = []
        for probe in probes_of(request):
            if probe.kind == "portability" or probe.teacher is None:
                continue
            prompt = text.encode_prompt(probe.prompt)
            rival = request.target_new if probe.kind == "neighborhood" else request.target_true
            rows.append((prompt, text.encode_target(probe.teacher)))
            spot = len(rows) - 1
            if rival is not None:
                rows.append((prompt, text.encode_target(rival)))
            spots.append((probe.kind, spot, spot + 1 if rival is not None else None))
        plan.append(spots)
    scored = engine.score(rows)
    return [_of_one(request.id, spots, scored) for request, spots in zip(requests, plan, strict=True)]


def _of_one(
    request_id: str, spots: Sequence[tuple[ProbeKind, int, int | None]], scored: Sequence[Continuation]
) -> EditScores:
    def accuracy(kind: ProbeKind) -> float | None:
        return _mean([token_accuracy(scored[own].hits) for k, own, _ in spots if k == kind])

    def wins(kind: ProbeKind, score: Callable[[Sequence[float], Sequence[float]], bool]) -> float | None:
        pairs = [(scored[own].logprobs, scored[rival].logprobs) for k, own, rival in spots if k == kind and rival]
        return _mean([float(score(own, rival)) for own, rival in pairs])

    argmax = [float(neighborhood_score_argmax(scored[own].hits)) for k, own, _ in spots if k == "neighborhood"]
    return EditScores(
        request_id=request_id,
        efficacy_score=wins("edit", efficacy_score),
        paraphrase_score=wins("paraphrase", paraphrase_score),
        # the probe's own target is the old one here, so the arguments change places
        neighborhood_score=wins("neighborhood", lambda own, rival: neighborhood_score(new=rival, old=own)),
        neighborhood_score_argmax=_mean(argmax),
        efficacy=accuracy("edit"),
        generalization=accuracy("paraphrase"),
        specificity=accuracy("neighborhood"),
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def mean_scores(scores: Sequence[EditScores]) -> dict[str, float | None]:
    """Mean of every score over the edits that have it."""
    names = [name for name in EditScores.__dataclass_fields__ if name != "request_id"]
    return {name: _mean([value for item in scores if (value := getattr(item, name)) is not None]) for name in names}
