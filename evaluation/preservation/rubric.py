"""Continuations scored from 0 to 5 by a chat model, and how the scores' fall goes with the growth of uncertainty.

"Uncertainty", section 4 and table 2: an edit's own question and two about its neighbors are answered before and after
the edit, and people score the answers by a rubric in which a fluent falsehood is worth less than a clumsy truth. Here a
chat model does.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from math import nan
from typing import Any

from errata.editing.digest import digest_json
from errata.editing.request import EditRequest
from errata.evaluation.endpoint import ChatEndpoint, EndpointConfig, Messages
from errata.evaluation.preservation.battery import Item, Outcomes
from errata.evaluation.sampling import SamplingEngine

logger = logging.getLogger(__name__)

MOST = 5
NEIGHBORS = 2
"""Questions about neighbors: S2 and S3 of the table."""
_TOKENS = 50
_RUBRIC = (
    "You score continuations of a text by what they state, from 0 to 5:\n"
    "5: essentially correct, even if it is not fluent;\n"
    "4: related, with a factual error that is not at its beginning;\n"
    "3: a factual error at its beginning;\n"
    "2: related to what was asked but inconsistent with it;\n"
    "1: about something else;\n"
    "0: not fluent enough to state anything.\n"
    "The reference answer is right, whatever you know. Reply with the number only."
)
_SCORE = re.compile(r"(?<![\d.])([0-5])(?![\d.])")


def rubric_messages(question: str, continuation: str, reference: str) -> Messages:
    """What a chat model is asked about one continuation."""
    told = f"Text: {question}\nContinuation: {continuation.strip()}\nReference answer: {reference}\nScore:"
    return [{"role": "system", "content": _RUBRIC}, {"role": "user", "content": told}]


def read_score(reply: str) -> int | None:
    """The last number from 0 to 5 of a reply that stands alone; None where there is none."""
    found = _SCORE.findall(reply)
    return int(found[-1]) if found else None


class RubricSuite:
    """Scores of the edits' own questions (``primary``) and of their neighbors' (``neighborhood``), from 0 to 5."""

    name = "rubric"

    def __init__(
        self, requests: Sequence[EditRequest], config: EndpointConfig, *, endpoint: ChatEndpoint | None = None
    ) -> None:
        """``endpoint``: an open one; else the one of ``config`` is opened when something is to be scored."""
        self._requests, self._config, self._endpoint = list(requests), config, endpoint
        self.items: list[Item] = [(self.name, at) for at in range(len(self._requests))]

    @property
    def fingerprint(self) -> str:
        """Of the questions, the rubric and the model that scores."""
        asked = [[request.id, *map(list, self._questions(request))] for request in self._requests]
        return digest_json(["rubric", 1, asked, _RUBRIC, self._config.model, self._config.temperature, _TOKENS])

    def run(self, engine: SamplingEngine, items: Sequence[Item], *, seed: int = 0) -> Outcomes:
        """Two values an edit; None where it has no neighbor, or the reply held no number.

        Raises:
            EndpointError: the endpoint failed after its retries.
        """
        chosen = [self._requests[number] for _, number in items]
        asked = [self._questions(request) for request in chosen]
        flat = [pair for own in asked for pair in own]
        prompts = [engine.model.text.encode_prompt(question) for question, _ in flat]
        answers = [answer.text for answer in engine.generate(prompts, max_new_tokens=_TOKENS)]
        if self._endpoint is None:
            self._endpoint = ChatEndpoint(self._config)
        replies = self._endpoint.ask_many(
            [rubric_messages(pair[0], answer, pair[1]) for pair, answer in zip(flat, answers, strict=True)]
        )
        scores = iter([read_score(reply) for reply in replies])
        own_scores = [[next(scores) for _ in own] for own in asked]
        return {
            "primary": [own[0] for own in own_scores],
            "neighborhood": [_mean([value for value in own[1:] if value is not None]) for own in own_scores],
        }

    def is_mean(self, metric: str) -> bool:
        """Not of all items: those without a score are left out."""
        return False

    def aggregate(self, metric: str, values: Sequence[Any]) -> float:
        """Mean over the edits that have a score; NaN where none has."""
        found = _mean([value for value in values if value is not None])
        return nan if found is None else found

    @staticmethod
    def _questions(request: EditRequest) -> list[tuple[str, str]]:
        near = [(item.prompt, item.answer) for item in request.neighborhood[:NEIGHBORS]]
        return [(request.text, request.target_new), *near]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def falls(before: Outcomes, after: Outcomes) -> list[float | None]:
    """By how much each edit's scores fell, its own question and its neighbors' together; None where one is missing."""

    def total(outcomes: Outcomes, at: int) -> float | None:
        both = (outcomes[name][at] for name in ("primary", "neighborhood"))
        return _mean([value for value in both if value is not None])

    pairs = [(total(before, at), total(after, at)) for at in range(len(before["primary"]))]
    return [None if first is None or last is None else first - last for first, last in pairs]
