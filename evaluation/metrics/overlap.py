"""ROUGE, for papers that report it (SAMSum in mose; long answers), by the package that published figures come from."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from errata.editing.extras import require
from errata.evaluation.metrics.card import metric

_SOURCE = "Lin 2004, ROUGE; the rouge-score package without stemming, F-measure"


@lru_cache(maxsize=1)
def _scorer() -> Any:
    return require("rouge_score.rouge_scorer").RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)


def _f_measure(kind: str, answer: str, reference: str) -> float:
    return float(_scorer().score(reference, answer)[kind].fmeasure)


@metric("rouge_1", version=1, source=_SOURCE)
def rouge_1(answer: str, reference: str) -> float:
    """F-measure of the words in common."""
    return _f_measure("rouge1", answer, reference)


@metric("rouge_2", version=1, source=_SOURCE)
def rouge_2(answer: str, reference: str) -> float:
    """F-measure of the pairs of neighboring words in common."""
    return _f_measure("rouge2", answer, reference)


@metric("rouge_l", version=1, source=_SOURCE)
def rouge_l(answer: str, reference: str) -> float:
    """F-measure of the longest common subsequence of words."""
    return _f_measure("rougeL", answer, reference)


@metric("rouge_mean", version=1, source="mose B.2 (SAMSum)")
def rouge_mean(answer: str, reference: str) -> float:
    """Mean of ROUGE-1, ROUGE-2 and ROUGE-L."""
    return (rouge_1(answer, reference) + rouge_2(answer, reference) + rouge_l(answer, reference)) / 3
