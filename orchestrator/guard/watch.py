"""Sentinels and text put to frozen versions by the workers that evaluate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from errata.actors.parts import EvaluationPart
from errata.orchestrator.history.bisect import RegressionProbe


class PoolWatch:
    """The guard's `Watch`."""

    def __init__(self, pool: EvaluationPart) -> None:
        self._pool = pool

    def answers(self, probes: Sequence[RegressionProbe], weights: Any) -> list[str]:
        """One call of the workers for each length and form of answer that the probes ask for."""
        texts = [""] * len(probes)
        groups: dict[tuple[int, bool], list[int]] = {}
        for number, probe in enumerate(probes):
            groups.setdefault((probe.max_new_tokens, probe.chat), []).append(number)
        for (length, chat), numbers in groups.items():
            prompts = [probes[number].prompt for number in numbers]
            answers = self._pool.continuations(prompts, weights, length, chat)
            for number, answer in zip(numbers, answers, strict=True):
                texts[number] = answer
        return texts

    def perplexity(self, text: str, weights: Any) -> float:
        return self._pool.perplexity(text, weights)
