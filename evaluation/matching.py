"""When two short answers are the same: normalisation, containment, token overlap (the rules of SQuAD)."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

_ARTICLES = frozenset({"a", "an", "the"})
_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Lower-case words without punctuation and without English articles.

    Case is folded and compatible characters are unified (NFKC); accents stay, because names differ by them.
    A text of articles only keeps them, so that "The" (the pronoun, the newspaper) is still something.
    """
    every = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    kept = [word for word in every if word not in _ARTICLES]
    return kept or every


def exact_match(answer: str, expected: Sequence[str]) -> bool:
    """The answer's words are exactly those of one of the expected answers; no words never match."""
    got = words(answer)
    return bool(got) and any(got == words(item) for item in expected)


def contains(answer: str, expected: Sequence[str]) -> bool:
    """The words of one expected answer stand side by side somewhere in the answer's ("man" is not in
    "Germany")."""
    got = words(answer)
    for item in expected:
        want = words(item)
        if want and any(got[at : at + len(want)] == want for at in range(len(got) - len(want) + 1)):
            return True
    return False


def token_f1(answer: str, expected: str) -> float:
    """Harmonic mean of precision and recall of the answer's words, counted with multiplicity (0..1).

    Source: SQuAD evaluation, Rajpurkar et al. 2016; LoCoMo's "F1 exact match score" (rose, D.2).
    """
    got, want = words(answer), words(expected)
    if not got or not want:
        return float(got == want)
    common = (Counter(got) & Counter(want)).total()
    if common == 0:
        return 0.0
    precision, recall = common / len(got), common / len(want)
    return 2 * precision * recall / (precision + recall)


def best_f1(answer: str, expected: Sequence[str]) -> float:
    """Largest `token_f1` over the expected answers."""
    return max((token_f1(answer, item) for item in expected), default=0.0)
