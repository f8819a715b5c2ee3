"""Metrics of freely generated answers."""

from __future__ import annotations

from collections.abc import Sequence

from errata.evaluation.matching import MATCHING_VERSION, best_f1, contains, exact_match
from errata.evaluation.metrics.card import metric

_REVISITING = "revisiting, section 2 and C.1"


@metric("answer_contains", version=MATCHING_VERSION, source=f"{_REVISITING} (judged there by a language model)")
def answer_contains(answer: str, expected: Sequence[str]) -> bool:
    """Whether the generated answer contains an expected one, word by word (no case, no articles).

    Reliability on the edit prompt, generated generalization on paraphrases, portability on portability
    questions.
    """
    return contains(answer, expected)


@metric("answer_exact", version=MATCHING_VERSION, source="SQuAD, Rajpurkar et al. 2016 (exact match)")
def answer_exact(answer: str, expected: Sequence[str]) -> bool:
    """Whether the generated answer equals an expected one after the same normalization."""
    return exact_match(answer, expected)


@metric("answer_f1", version=MATCHING_VERSION, source="SQuAD, Rajpurkar et al. 2016; rose D.2 (LoCoMo-Edit)")
def answer_f1(answer: str, expected: Sequence[str]) -> float:
    """Largest word-level F1 of the generated answer against the expected ones."""
    return best_f1(answer, expected)


@metric("locality_true", version=MATCHING_VERSION, source="revisiting C.1 (its Locality: before any edit 14, not 100)")
def locality_true(answer: str, true: Sequence[str]) -> bool:
    """Whether the generated answer to a neighborhood prompt contains the *true* one, whatever the unedited model says.

    A run's own judge decides it, as it decides reliability.
    """
    return contains(answer, true)


@metric("locality_exact", version=1, source="revisiting C.5, table 40 (exact match)")
def locality_exact(answer: str, unedited: str) -> bool:
    """Whether an answer is that of the unedited model: the same text but for white space at its ends."""
    return answer.strip() == unedited.strip()


@metric("locality_match_ratio", version=1, source="revisiting C.5, table 40 (match ratio)")
def locality_match_ratio(tokens: Sequence[int], unedited: Sequence[int]) -> float:
    """Share of positions at which the generated tokens equal the unedited model's, of the longer of the two.

    Two empty answers agree (1).
    """
    longest = max(len(tokens), len(unedited))
    if longest == 0:
        return 1.0
    return sum(a == b for a, b in zip(tokens, unedited, strict=False)) / longest
