"""Metrics of scored continuations: the model is given the target's tokens one by one and never answers
freely."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from errata.evaluation.metrics.card import metric

_ROME = "Meng et al. 2022a (ROME), arXiv:2202.05262, section 3.2; summarize.py of the authors' code"


def mean_nll(logprobs: Sequence[float]) -> float:
    """Length-normalized negative log-likelihood, nats a token. ValueError for no tokens."""
    if not logprobs:
        raise ValueError("a continuation must have at least one token")
    return -sum(logprobs) / len(logprobs)


@metric("token_accuracy", version=1, source="EasyEdit; moir eq. 17-18 (efficacy, generalization)")
def token_accuracy(hits: Sequence[bool]) -> float:
    """Share of the target's tokens that are the argmax given the prompt and the target's earlier tokens.

    Efficacy on the edit prompt, generalization on paraphrases (target: the new object), specificity on
    neighborhood prompts (target: the original object). Partial credit for part of a target.

    Args:
        hits: per target token, whether it is the argmax.
    """
    if not hits:
        raise ValueError("a target must have at least one token")
    return sum(map(bool, hits)) / len(hits)


@metric("all_tokens_correct", version=1, source="`targets_correct` of ROME's and MEMIT's code")
def all_tokens_correct(hits: Sequence[bool]) -> bool:
    """Whether every token of the target is the argmax, teacher-forced: no partial credit."""
    if not hits:
        raise ValueError("a target must have at least one token")
    return all(hits)


@metric("efficacy_score", version=1, source=_ROME)
def efficacy_score(new: Sequence[float], old: Sequence[float]) -> bool:
    """ES: the new target is likelier than the old on the edit prompt, by length-normalized NLL.

    Args:
        new, old: log-probabilities of the tokens of either target after the same prompt.
    """
    return mean_nll(new) < mean_nll(old)


@metric("paraphrase_score", version=1, source=_ROME)
def paraphrase_score(new: Sequence[float], old: Sequence[float]) -> bool:
    """PS: the new target is likelier than the old on a paraphrase, by length-normalized NLL."""
    return mean_nll(new) < mean_nll(old)


@metric("neighborhood_score", version=1, source=_ROME)
def neighborhood_score(new: Sequence[float], old: Sequence[float]) -> bool:
    """NS, ROME's own form: on a neighborhood prompt the original target is likelier than the new."""
    return mean_nll(old) < mean_nll(new)


@metric(
    "neighborhood_score_argmax",
    version=1,
    source="moir C.3 (its Specificity); METHODS: name which form is meant",
)
def neighborhood_score_argmax(hits: Sequence[bool]) -> bool:
    """NS, argmax form: on a neighborhood prompt every token of the *original* target is the argmax."""
    return all_tokens_correct(hits)


@metric("locality_tf", version=1, source="EasyEdit (`locality_acc`); mose eq. 27")
def locality_tf(argmax: Sequence[Hashable], unedited: Sequence[Hashable]) -> float:
    """Share of the old answer's tokens at which a version's likeliest token is the unedited model's, teacher-forced.

    Whether those tokens are right plays no part; the unedited model scores 1. Where a context makes the answer more
    tokens or fewer, the share is of the longer of the two.

    Args:
        argmax, unedited: per token of the neighborhood prompt's own answer the likeliest token, after the prompt and
            the answer's earlier tokens.
    """
    if not argmax or not unedited:
        raise ValueError("locality_tf needs the likeliest tokens of both, at least one")
    return sum(a == b for a, b in zip(argmax, unedited, strict=False)) / max(len(argmax), len(unedited))


@metric("probability_margin", version=1, source=f"EM, PM and NM of {_ROME}")
def probability_margin(new: Sequence[float], old: Sequence[float]) -> float:
    """Difference of the length-normalized probabilities, P(new) - P(old), each exp(-`mean_nll`)."""
    from math import exp

    return exp(-mean_nll(new)) - exp(-mean_nll(old))
