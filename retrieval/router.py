"""The router: from a question and what the memory found for it to the statement it is about, or none, and how sure
that is.

Two logistic regressions over a few features. The first needs no pass of the model and decides what is clear; the
doubtful go to the second, which also knows how much of the subject's surprise the question explains to the base
model. One threshold is set by what the user allows: a share of out-of-scope questions that may be touched, in the
worst class of them. A fitted router is a value: it is kept as JSON, and its digest is named in what it decided.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from errata.editing.closed import Closed
from errata.editing.digest import digest_json
from errata.editing.errors import UserError
from errata.retrieval.evidence import Candidate
from errata.retrieval.ike import InContext
from errata.retrieval.memory import Hit

Features = NDArray[np.float64]
CHEAP = (
    "cosine", "margin", "letters", "named", "named_extended", "named_cosine", "named_relation", "named_words",
    "named_last", "named_lowered",
)  # fmt: skip
"""Names of the features that need no model, in their order."""
FULL = (*CHEAP, "share", "named_share")
"""With the base model's opinion."""
_MOST_ASKED = 3
"""Candidates of a doubtful question that the model is asked about."""

Answering = Literal["edited_memory", "memory", "edited"]
Decision = Literal["in", "out"]
Stage = Literal["nothing", "cheap", "model"]
Shares = Callable[[Sequence[str], Sequence[Sequence[Candidate]]], Sequence[Sequence[float]]]
"""Explained share of each candidate's subject, per question; the base model's."""


class RouterConfig(Closed):
    """How it is decided which questions the memory bears on."""

    max_false_alarms: float = Field(0.02, gt=0, lt=1)
    """Share of out-of-scope questions that may be taken for questions about an edit, in the worst class of them; the
    lower it is, the more paraphrases are missed."""
    path: str | None = None
    """A fitted router (``errata router fit``); null for the shipped one of the embedder, or, where there is none,
    one that is fitted without the model when it is first needed."""
    answer: Answering = "edited_memory"
    """What answers a question in scope: the edited weights with the statement, the base with it, or the edited weights
    alone. Which is best is a property of the model."""


class Logistic(Closed):
    """A logistic regression: ``p = 1 / (1 + exp(-(w . x + b)))`` over raw features."""

    weights: tuple[float, ...]
    bias: float

    def __call__(self, features: Features) -> Features:
        """Probabilities (n,) of features (n, f), float64."""
        return 1.0 / (1.0 + np.exp(-np.clip(features @ np.asarray(self.weights) + self.bias, -60.0, 60.0)))


class CurvePoint(Closed):
    """What one threshold would do, by class of questions."""

    threshold: float
    false_alarms: float
    """Share of the worst class of out-of-scope questions for which a statement would be chosen."""
    misses: float
    """Share of paraphrases for which the right statement would not be chosen."""


class FittedRouter(Closed):
    """A router's numbers, and where they come from."""

    format: Literal[1] = 1
    cheap: Logistic
    full: Logistic | None
    """None where it was fitted without a model: the first regression then decides alone."""
    below: float
    """Cheap probabilities up to this are out of scope at once."""
    above: float
    """Cheap probabilities from this on are in scope at once."""
    threshold: float
    """Probability from which on a question that the model was asked about is in scope."""
    max_false_alarms: float
    statements: int
    """Statements that the memory held when it was fitted."""
    facts: str
    """Digest of the facts and questions it was fitted on."""
    embedder: str
    """Digest of the embedder."""
    model: str | None
    """Digest of the base model whose opinion it was fitted with."""
    rates: dict[str, float] = {}
    """Share of each class of fitting questions for which a statement is chosen, the right one in scope."""
    curve: tuple[CurvePoint, ...] = ()

    @property
    def digest(self) -> str:
        """Names the router: digest of all that decides."""
        return digest_json(self.model_dump(mode="json", exclude={"rates", "curve"}))

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(self.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> FittedRouter:
        """Read one.

        Raises:
            UserError: it is not there, or is none.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise UserError(f"router {str(path)!r} cannot be read: {type(error).__name__}") from error
        except ValidationError as error:
            raise UserError(f"router {str(path)!r} is not a fitted router: {str(error).splitlines()[0]}") from error


@dataclass(frozen=True)
class Route:
    """What was decided about a question.

    Attributes:
        hit: the statement it is about, or None.
        probability: that it is in the scope of the best candidate, 0 where there was none.
        stage: what decided it: nothing was near, the features alone, or the model.
        reason: in words.
    """

    hit: Candidate | None
    probability: float
    stage: Stage
    reason: str

    @property
    def decision(self) -> Decision:
        """In scope or out of it."""
        return "in" if self.hit is not None else "out"


@dataclass(frozen=True)
class Routing:
    """What the memory knows for routing some questions: the router in force, and each question's candidates."""

    fitted: FittedRouter
    candidates: Mapping[str, Sequence[Candidate]] = field(default_factory=dict)
    answer: Answering | None = None
    """What answers a question in scope, where it is not as configured: the weights hold what holds now."""


class Findings(dict[str, Sequence[Hit]]):
    """Per question the nearest statements, best first, and beside them what routing and in-context editing need."""

    def __init__(
        self,
        hits: Mapping[str, Sequence[Hit]] | None = None,
        routing: Routing | None = None,
        shown: InContext | None = None,
    ) -> None:
        super().__init__(hits or {})
        self.routing = routing
        self.shown = shown


class Router:
    """Decides with a `FittedRouter`; asks the base model only about the doubtful."""

    def __init__(self, fitted: FittedRouter) -> None:
        self.fitted = fitted

    def route(
        self, questions: Sequence[str], candidates: Sequence[Sequence[Candidate]], shares: Shares | None = None
    ) -> list[Route]:
        """Decide about each question, the doubtful of all in one call of ``shares``.

        Args:
            candidates: per question, as `EvidenceFinder.candidates` gives them.
            shares: the base model's opinion; without it the features decide alone.

        Raises:
            ValueError: not one list of candidates per question.
        """
        if len(questions) != len(candidates):
            raise ValueError(f"one list of candidates per question: got {len(candidates)} for {len(questions)}")
        decisions: list[Route | None] = [self._cheap(row) for row in candidates]
        doubtful = [place for place, route in enumerate(decisions) if route is None]
        if doubtful:
            for place, route in zip(doubtful, self._asked(questions, candidates, doubtful, shares), strict=True):
                decisions[place] = route
        return [route for route in decisions if route is not None]

    def cheap(self, row: Sequence[Candidate]) -> Features:
        """Probability (n,) of each candidate of one question, without the model."""
        return self.fitted.cheap(cheap_features(row)) if row else np.zeros(0)

    def doubtful(self, row: Sequence[Candidate]) -> bool:
        """Whether the model has to be asked about a question."""
        return self._cheap(row) is None

    def _cheap(self, row: Sequence[Candidate]) -> Route | None:
        if not row:
            return Route(None, 0.0, "nothing", "the memory found nothing")
        p = self.cheap(row)
        best = int(np.argmax(p))
        if p[best] >= self.fitted.above:
            return Route(row[best], float(p[best]), "cheap", _said(row[best], p[best], None))
        if p[best] <= self.fitted.below:
            return Route(None, float(p[best]), "cheap", _said(row[best], p[best], None) + ": out of scope")
        return None

    def _asked(
        self,
        questions: Sequence[str],
        candidates: Sequence[Sequence[Candidate]],
        doubtful: Sequence[int],
        shares: Shares | None,
    ) -> list[Route]:
        chosen = []
        for place in doubtful:
            p = self.cheap(candidates[place])
            order = sorted(range(len(p)), key=lambda i: (-p[i], i))[:_MOST_ASKED]
            chosen.append([candidates[place][i] for i in order])
        if shares is None or self.fitted.full is None:
            return [self._alone(candidates[place], row) for place, row in zip(doubtful, chosen, strict=True)]
        opinions = shares([questions[place] for place in doubtful], chosen)
        routes = []
        for place, row, opinion in zip(doubtful, chosen, opinions, strict=True):
            margins = dict(zip((c.id for c in candidates[place]), cheap_features(candidates[place]), strict=True))
            p = self.fitted.full(full_features(np.stack([margins[c.id] for c in row]), np.asarray(opinion)))
            best = int(np.argmax(p))
            said = _said(row[best], p[best], opinion[best])
            if p[best] >= self.fitted.threshold:
                routes.append(Route(row[best], float(p[best]), "model", said))
            else:
                routes.append(Route(None, float(p[best]), "model", f"{said}, below {self.fitted.threshold:.2f}"))
        return routes

    def _alone(self, row: Sequence[Candidate], best: Sequence[Candidate]) -> Route:
        p = float(self.cheap(row).max())
        middle = self.fitted.threshold if self.fitted.full is None else self.fitted.above
        said = _said(best[0], p, None)
        return Route(best[0], p, "cheap", said) if p >= middle else Route(None, p, "cheap", f"{said}: out of scope")


def cheap_features(row: Sequence[Candidate]) -> Features:
    """Features (n, len(CHEAP)) of the candidates of one question, float64."""
    cosines = [candidate.score for candidate in row]
    out = np.zeros((len(row), len(CHEAP)))
    for place, candidate in enumerate(row):
        evidence, cosine = candidate.evidence, candidate.score
        rivals = [c for other, c in zip(row, cosines, strict=True) if other.subject != candidate.subject]
        margin = float(np.clip(cosine - max(rivals), -0.5, 0.5)) if rivals else 0.5
        out[place, :3] = cosine, margin, evidence.letters
        if evidence.named:
            relation = evidence.relation if evidence.relation is not None else 0.0
            out[place, 3:8] = 1.0, float(evidence.extended), cosine, relation, math.log1p(evidence.words)
            out[place, 8:] = float(evidence.last), float(evidence.lowered)
    return out


def full_features(cheap: Features, shares: Features) -> Features:
    """Features (n, len(FULL)): those without the model and its explained shares (n,), each clipped to -1..1."""
    share = np.clip(shares, -1.0, 1.0)[:, None]
    return np.concatenate([cheap, share, share * cheap[:, 3:4]], axis=1)


def _said(candidate: Candidate, probability: float, share: float | None) -> str:
    evidence = candidate.evidence
    named = "named as part of a longer name" if evidence.extended else "named" if evidence.named else "not named"
    told = f", relevance {share:.2f}" if share is not None else ""
    return (
        f"subject {candidate.subject!r} {named}, similarity {candidate.score:.2f}{told}: "
        f"in scope with probability {probability:.2f}"
    )
