"""Metrics of free text: how varied it is, how likely, and how close to texts about the new object."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import log, log2, sqrt

import regex

from errata.editing.scripts import SINGLE
from errata.evaluation.metrics.card import metric

_WORD = regex.compile(rf"(?=[{SINGLE}])\X|[[\w\p{{M}}]--[{SINGLE}]]+|[^\w\s]", regex.VERSION1)
_TERM = regex.compile(rf"(?=[{SINGLE}])\X|[[\w\p{{M}}]--[{SINGLE}]]{{2,}}", regex.VERSION1)
_WEIGHTS = {2: 2 / 3, 3: 4 / 3}


def _tokens(text: str) -> list[str]:
    return _WORD.findall(text)


def ngram_entropy(text: str, n: int) -> float:
    """Entropy, bits, of the distribution of a text's n-grams; 0 for a text shorter than n words."""
    tokens = _tokens(text)
    counts = Counter(tuple(tokens[at : at + n]) for at in range(len(tokens) - n + 1))
    total = counts.total()
    return -sum(count / total * log2(count / total) for count in counts.values())


@metric("fluency", version=2, source="Zhang et al. 2018; ROME's `n_gram_entropy`; EasyEdit")
def fluency(text: str) -> float:
    """Mean of the weighted entropies of the text's bigrams (2/3) and trigrams (4/3), in bits.

    Falls when a model repeats itself. Words and single punctuation marks are the tokens, in scripts that do not
    write words apart characters with their marks (the published code uses NLTK's word tokenizer, which splits
    contractions differently: compare values of this project with each other).
    """
    return sum(weight * ngram_entropy(text, n) for n, weight in _WEIGHTS.items()) / len(_WEIGHTS)


@metric("fluency_star", version=1, source="moir C.3", higher_is_better=None)
def fluency_star(edited: Sequence[float], unedited: Sequence[float]) -> float:
    """Mean log-probability of the tokens of the edited model's own continuations over the unedited model's.

    The unedited model scores 1. Log-probabilities are negative, so a value above 1 means *less* likely text
    and a value below 1 likelier, as repetition is: read it beside `fluency`. Each argument holds the
    log-probabilities that a model gave to the tokens of its own continuations.
    """
    if not edited or not unedited:
        raise ValueError("fluency_star needs tokens of both models")
    base = sum(unedited) / len(unedited)
    if base == 0:
        raise ValueError("the unedited model's mean log-probability is 0; the ratio is undefined")
    return (sum(edited) / len(edited)) / base


class TfIdf:
    """Term weights from reference texts: smoothed idf ``ln((1 + N) / (1 + df)) + 1``, unit vectors."""

    def __init__(self, corpus: Sequence[str]) -> None:
        if not corpus:
            raise ValueError("tf-idf needs at least one reference text")
        seen: Counter[str] = Counter()
        for text in corpus:
            seen.update(set(self._terms(text)))
        self.idf: Mapping[str, float] = {term: log((1 + len(corpus)) / (1 + count)) + 1 for term, count in seen.items()}

    @staticmethod
    def _terms(text: str) -> list[str]:
        # words of two letters and more: scikit-learn's default, on which the published scores rest; characters where
        # a script does not write words apart
        return _TERM.findall(text.lower())

    def vector(self, text: str) -> dict[str, float]:
        """Unit vector of a text over the corpus's terms; empty if it has none of them."""
        weights = {t: n * self.idf[t] for t, n in Counter(self._terms(text)).items() if t in self.idf}
        norm = sqrt(sum(w * w for w in weights.values()))
        return {t: w / norm for t, w in weights.items()} if norm else {}


@metric("consistency", version=2, source="ROME's reference score (RS); EasyEdit")
def consistency(generated: Sequence[str], references: Sequence[str], tfidf: TfIdf) -> float | None:
    """Cosine of the tf-idf vectors of the generated texts joined and of the reference texts joined.

    References are texts about other subjects that have the new object. None where no reference text is
    given: the score is then not reported rather than made up.
    """
    if not references:
        return None
    left, right = tfidf.vector(" ".join(generated)), tfidf.vector(" ".join(references))
    return sum(weight * right.get(term, 0.0) for term, weight in left.items())
