"""ROUGE, for papers that report it (SAMSum in mose; long answers)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from errata.evaluation.metrics.card import metric

_SOURCE = "Lin 2004, ROUGE; tokens and F-measure as the rouge-score package without stemming"
_TOKEN = re.compile(r"[a-z0-9]+")


def rouge_tokens(text: str) -> list[str]:
    """Lower-case runs of ASCII letters and digits: the tokens that published ROUGE figures are made of."""
    return _TOKEN.findall(text.lower())


def _f_measure(common: float, candidate: int, reference: int) -> float:
    return 2 * common / (candidate + reference) if common else 0.0


def _ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[at : at + n]) for at in range(len(tokens) - n + 1))


def rouge_n(answer: str, reference: str, n: int) -> float:
    """F-measure of the n-grams in common, counted with multiplicity (0..1)."""
    got, want = _ngrams(rouge_tokens(answer), n), _ngrams(rouge_tokens(reference), n)
    return _f_measure((got & want).total(), got.total(), want.total())


@metric("rouge_1", version=1, source=_SOURCE)
def rouge_1(answer: str, reference: str) -> float:
    """F-measure of the words in common."""
    return rouge_n(answer, reference, 1)


@metric("rouge_2", version=1, source=_SOURCE)
def rouge_2(answer: str, reference: str) -> float:
    """F-measure of the pairs of neighboring words in common."""
    return rouge_n(answer, reference, 2)


@metric("rouge_l", version=1, source=_SOURCE)
def rouge_l(answer: str, reference: str) -> float:
    """F-measure of the longest common subsequence of words."""
    got, want = rouge_tokens(answer), rouge_tokens(reference)
    row = [0] * (len(want) + 1)
    for word in got:
        diagonal = 0
        for at, other in enumerate(want, start=1):
            above = row[at]
            row[at] = diagonal + 1 if word == other else max(above, row[at - 1])
            diagonal = above
    return _f_measure(row[-1], len(got), len(want))


@metric("rouge_mean", version=1, source="mose B.2 (SAMSum)")
def rouge_mean(answer: str, reference: str) -> float:
    """Mean of ROUGE-1, ROUGE-2 and ROUGE-L."""
    return (rouge_1(answer, reference) + rouge_2(answer, reference) + rouge_l(answer, reference)) / 3
