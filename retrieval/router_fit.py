"""Fitting a router: the made-up facts are put beside a memory's statements, and the questions about them are decided.

Its own statements are what a memory's growth does harm with: a neighbor's question finds something near among ten
thousand statements that it does not find among a hundred. So they stand beside the facts when the threshold is set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from errata.editing.digest import digest_json
from errata.editing.errors import UserError
from errata.retrieval.evidence import Candidate, EvidenceFinder, entries_of
from errata.retrieval.memory import FactMemory
from errata.retrieval.router import (
    CHEAP,
    FULL,
    CurvePoint,
    Features,
    FittedRouter,
    Logistic,
    RouterConfig,
    Shares,
    cheap_features,
    full_features,
)
from errata.retrieval.router_facts import (
    IN_SCOPE,
    OUT_OF_SCOPE,
    FittingFact,
    FittingQuestion,
    fitting_facts,
)

_FIRST_ID = 1 << 60
"""Ids of the fitting facts, beyond any edit's."""
_POINTS = 80
"""Thresholds of the curve: quantiles of the probabilities that occur, so that none falls between two of them."""
_SPARE = 0.01
"""Share of paraphrases that are given for fewer false alarms: the strictest threshold with so few more misses than
the least."""
_CLEAR_SHARE = 0.25
"""Part of the false alarms allowed, and the share of edit prompts that may be lost, where the features decide at
once."""
_LOST = 0.003


@dataclass(frozen=True)
class Trial:
    """A question with its candidates, and which of them are right."""

    question: FittingQuestion
    candidates: tuple[Candidate, ...]
    right: tuple[bool, ...]


def trials_of(
    memory: FactMemory, facts: Sequence[FittingFact], questions: Sequence[FittingQuestion], k: int
) -> list[Trial]:
    """Put the facts beside what a memory holds and find the candidates of every question; the memory is unchanged."""
    entries = entries_of([(fact.subject, fact.relation, fact.statement) for fact in facts], _FIRST_ID)
    together = FactMemory(memory.embedder)
    held = memory.active()
    together.add(held, memory.vectors([entry.id for entry in held]))
    together.add(entries)
    texts = [question.text for question in questions]
    rows = EvidenceFinder(together).candidates(texts, memory.embedder.embed(texts), k)
    trials = []
    for question, row in zip(questions, rows, strict=True):
        # of another statement with the same subject it is open whether it bears on the question
        right = tuple(question.kind in IN_SCOPE and hit.id == _FIRST_ID + (question.fact or 0) for hit in row)
        trials.append(Trial(question, tuple(row), right))
    return trials


def fit_router(
    memory: FactMemory,
    *,
    max_false_alarms: float,
    shares: Shares | None = None,
    model: str | None = None,
    k: int = 3,
    facts: tuple[Sequence[FittingFact], Sequence[FittingQuestion]] | None = None,
) -> FittedRouter:
    """Fit a router for a memory as it is now.

    Args:
        memory: its embedder and statements; may be empty.
        max_false_alarms: share of the worst class of out-of-scope questions that may be touched.
        shares: the base model's opinion; without it the features decide alone.
        model: digest of that model.
        facts: what it is fitted on; the shipped ones by default.
    """
    given = facts if facts is not None else fitting_facts()
    trials = [t for t in trials_of(memory, *given, k) if t.candidates]
    cheap_rows = [cheap_features(trial.candidates) for trial in trials]
    cheap = _logistic(trials, cheap_rows, len(CHEAP))
    cheap_p = [cheap(row) for row in cheap_rows]
    full: Logistic | None = None
    full_p = cheap_p
    if shares is not None:
        asked = [sorted(range(len(p)), key=lambda i, p=p: (-p[i], i))[:3] for p in cheap_p]  # type: ignore[misc]
        chosen = [[t.candidates[i] for i in places] for t, places in zip(trials, asked, strict=True)]
        opinions = shares([t.question.text for t in trials], chosen)
        full_rows = [
            full_features(row[places], np.asarray(opinion))
            for row, places, opinion in zip(cheap_rows, asked, opinions, strict=True)
        ]
        seen = [
            Trial(t.question, tuple(t.candidates[i] for i in places), tuple(t.right[i] for i in places))
            for t, places in zip(trials, asked, strict=True)
        ]
        full = _logistic(seen, full_rows, len(FULL))
        full_p = [np.full(len(t.candidates), -1.0) for t in trials]
        for p, places, row in zip(full_p, asked, full_rows, strict=True):
            p[places] = full(row)
    below, above = _clear(trials, cheap_p, max_false_alarms) if full is not None else (-1.0, 2.0)
    curve, chosen_point = _operating_point(trials, cheap_p, full_p, below, above, max_false_alarms)
    if full is None:
        below = above = chosen_point.threshold
    return FittedRouter(
        cheap=cheap,
        full=full,
        below=below,
        above=above,
        threshold=chosen_point.threshold,
        max_false_alarms=max_false_alarms,
        statements=len(memory),
        facts=digest_json([[vars(fact) for fact in given[0]], [vars(question) for question in given[1]]]),
        embedder=memory.embedder.digest,
        model=model if full is not None else None,
        rates=_rates(trials, cheap_p, full_p, below, above, chosen_point.threshold),
        curve=curve,
    )


def _operating_point(
    trials: Sequence[Trial],
    cheap: Sequence[Features],
    full: Sequence[Features],
    below: float,
    above: float,
    max_false_alarms: float,
) -> tuple[tuple[CurvePoint, ...], CurvePoint]:
    """The curve, and its point with the fewest misses among those that are allowed; of equal ones the strictest."""
    levels = np.quantile([row.max() for row in full], np.linspace(0, 1, _POINTS))
    curve = tuple(_point(trials, cheap, full, below, above, t) for t in np.unique(np.round(levels, 6)))
    chosen = _best_threshold(curve, max_false_alarms)
    return curve, _point(trials, cheap, full, below, above, chosen)


def router_for(config: RouterConfig, memory: FactMemory) -> FittedRouter:
    """The router of a configuration: the file it names, the shipped one of the memory's embedder, or one fitted here.

    A shipped one was fitted with one base model's opinion, which is a share and compares between models;
    docs/routed.md has what it does with others.

    Raises:
        UserError: the file is none, or was fitted with another embedder.
    """
    if config.path is not None:
        fitted = FittedRouter.load(Path(config.path))
        if fitted.embedder != memory.embedder.digest:
            raise UserError(
                f"router.path {config.path!r} was fitted with the embedder {fitted.embedder[:12]}, the memory's is "
                f"{memory.embedder.digest[:12]}: fit one with `errata router fit`"
            )
    else:
        fitted = next((one for one in shipped() if one.embedder == memory.embedder.digest), None) or fit_router(
            FactMemory(memory.embedder), max_false_alarms=config.max_false_alarms
        )
    if fitted.max_false_alarms != config.max_false_alarms:
        fitted = at_operating_point(fitted, config.max_false_alarms)
    return fitted


def at_operating_point(fitted: FittedRouter, max_false_alarms: float) -> FittedRouter:
    """The same regressions at another share of false alarms, by the router's own curve."""
    threshold = _best_threshold(fitted.curve, max_false_alarms)
    update: dict[str, float] = {"threshold": threshold, "max_false_alarms": max_false_alarms}
    if fitted.full is None:
        update |= {"below": threshold, "above": threshold}
    return fitted.model_copy(update=update)


def shipped() -> list[FittedRouter]:
    """The routers that come with the package, one an embedder."""
    return [FittedRouter.load(path) for path in sorted((Path(__file__).parent / "routers").glob("*.json"))]


def _logistic(trials: Sequence[Trial], rows: Sequence[Features], width: int) -> Logistic:
    """Over all candidates; those of a question weigh one together, both sides alike; other relations are left out."""
    from sklearn.linear_model import LogisticRegression

    x: list[Any] = []
    y: list[bool] = []
    weight: list[float] = []
    for trial, row in zip(trials, rows, strict=True):
        if trial.question.kind == "other_relation":
            continue
        rare = 0.2 if trial.question.kind == "mention" else 1.0
        for features, right in zip(row, trial.right, strict=True):
            x.append(features)
            y.append(right)
            weight.append(rare / len(row))
    labels, weights = np.asarray(y), np.asarray(weight)
    for side in (True, False):
        weights[labels == side] /= max(weights[labels == side].sum(), 1e-9)
    # a ridge of a hundredth of the data: classes are nearly separable, and the probabilities must stay finite
    fitted = LogisticRegression(C=1.0, max_iter=2000).fit(np.asarray(x), labels, sample_weight=weights * 300)
    return Logistic(weights=tuple(map(float, fitted.coef_[0])), bias=float(fitted.intercept_[0]))


def _clear(trials: Sequence[Trial], p: Sequence[Features], max_false_alarms: float) -> tuple[float, float]:
    """Probabilities below and above which the features decide at once."""
    inside = np.sort([row.max() for t, row in zip(trials, p, strict=True) if t.question.kind in IN_SCOPE])
    below = float(inside[int(_LOST * len(inside))]) * 0.999
    above = 0.0
    for kind in OUT_OF_SCOPE:
        outside = np.sort([row.max() for t, row in zip(trials, p, strict=True) if t.question.kind == kind])
        if len(outside):
            keep = min(len(outside) - 1, int(np.ceil((1 - _CLEAR_SHARE * max_false_alarms) * len(outside))))
            above = max(above, float(outside[keep]) * 1.001)
    below = min(below, above)
    return below, min(above, 1.0)


def _best_threshold(curve: Sequence[CurvePoint], max_false_alarms: float) -> float:
    """Halfway between the strictest threshold with the least misses and the strictest with hardly more.

    The made-up paraphrases are clearer than people's: between the two hardly one of them lies, and on CounterFact's
    records 300 to 449 a threshold at the lower end touched 3 % of WikiText's paragraphs, one at the upper end missed
    9 % of the paraphrases.
    """
    allowed = [point for point in curve if point.false_alarms <= max_false_alarms]
    if not allowed:
        return max(point.threshold for point in curve)
    least = min(point.misses for point in allowed)
    low, high = (max(point.threshold for point in allowed if point.misses <= least + spare) for spare in (1e-9, _SPARE))
    return (low + high) / 2


def _chosen(cheap: Features, full: Features, below: float, above: float, threshold: float) -> int | None:
    """Index of the statement that would be chosen, as `Router` does it."""
    best = int(np.argmax(cheap))
    if cheap[best] >= above:
        return best
    if cheap[best] <= below:
        return None
    best = int(np.argmax(full))
    return best if full[best] >= threshold else None


def _by_class(
    trials: Sequence[Trial], cheap: Sequence[Features], full: Sequence[Features], *at: float
) -> dict[str, list[bool]]:
    by_class: dict[str, list[bool]] = {}
    for trial, p, q in zip(trials, cheap, full, strict=True):
        place = _chosen(p, q, *at)
        right = place is not None and (trial.question.kind not in IN_SCOPE or trial.right[place])
        by_class.setdefault(trial.question.kind, []).append(right)
    return by_class


def _rates(
    trials: Sequence[Trial], cheap: Sequence[Features], full: Sequence[Features], *at: float
) -> dict[str, float]:
    return {kind: sum(hits) / len(hits) for kind, hits in sorted(_by_class(trials, cheap, full, *at).items())}


def _point(
    trials: Sequence[Trial],
    cheap: Sequence[Features],
    full: Sequence[Features],
    below: float,
    above: float,
    threshold: float,
) -> CurvePoint:
    # the curve moves the threshold of the doubtful; where features decide alone there are no others
    rates = _rates(trials, cheap, full, below, above, float(threshold))
    return CurvePoint(
        threshold=float(threshold),
        false_alarms=max(rates.get(kind, 0.0) for kind in OUT_OF_SCOPE),
        misses=1.0 - rates.get("paraphrase", 0.0),
    )
