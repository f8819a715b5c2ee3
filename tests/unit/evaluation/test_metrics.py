"""Each metric on examples worked out by hand, against an independent slow form, and by its properties."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errata.evaluation.matching import contains, exact_match, token_f1, words
from errata.evaluation.metrics import (
    METRICS,
    TfIdf,
    all_tokens_correct,
    answer_contains,
    average,
    consistency,
    edit_score,
    efficacy_score,
    fluency,
    fluency_star,
    harmonic_mean,
    locality_exact,
    locality_match_ratio,
    mean_nll,
    neighborhood_score,
    neighborhood_score_argmax,
    ngram_entropy,
    paraphrase_score,
    preservation_score,
    probability_margin,
    rouge_1,
    rouge_2,
    rouge_l,
    rouge_mean,
    token_accuracy,
)
from errata.evaluation.perplexity import perplexity_of


def test_every_metric_says_what_it_is() -> None:
    assert len(METRICS) >= 20
    for name, card in METRICS.items():
        text = card.function.__doc__ or ""
        assert card.name == name and card.version >= 1
        assert f"Version: {card.version}\n" in text and f"Source: {card.source}\n" in text and "Direction: " in text
        assert len(card.definition) > 20 and "Source:" not in card.definition


# --- teacher-forced ---


def test_token_accuracy_by_hand() -> None:
    assert token_accuracy([True, False, True]) == pytest.approx(2 / 3)
    assert (token_accuracy([True]), token_accuracy([False, False])) == (1.0, 0.0)
    assert all_tokens_correct([True, True]) and not all_tokens_correct([True, False])
    assert neighborhood_score_argmax([True]) and not neighborhood_score_argmax([False, True])
    with pytest.raises(ValueError, match="at least one token"):
        token_accuracy([])


def test_scores_normalize_by_length() -> None:
    # -1 a token over three tokens beats -2 over one, although its sum is lower
    long, short = [-1.0, -1.0, -1.0], [-2.0]
    assert mean_nll(long) == 1.0
    assert efficacy_score(new=long, old=short) and paraphrase_score(new=long, old=short)
    assert not efficacy_score(new=short, old=long)
    assert neighborhood_score(new=short, old=long) and not neighborhood_score(new=long, old=short)
    assert probability_margin(new=long, old=short) == pytest.approx(math.exp(-1) - math.exp(-2))


_logprobs = st.lists(st.floats(-50, -1e-3), min_size=1, max_size=6)


@given(new=_logprobs, old=_logprobs)
def test_score_against_the_probabilities_themselves(new: list[float], old: list[float]) -> None:
    """Independent form: compare geometric means of the probabilities."""
    slow_new = math.prod(math.exp(x) for x in new) ** (1 / len(new))
    slow_old = math.prod(math.exp(x) for x in old) ** (1 / len(old))
    if abs(math.log(slow_new) - math.log(slow_old)) > 1e-9:
        assert efficacy_score(new, old) == (slow_new > slow_old) == (not neighborhood_score(new, old))
    assert probability_margin(new, old) == pytest.approx(slow_new - slow_old, abs=1e-9)


# --- generated ---


def test_words() -> None:
    assert words("The  U.S.A. (a Republic)!") == ["u", "s", "republic"] or words("The Republic!") == ["republic"]
    assert words("The") == ["the"]
    assert words("\uff30\uff41ris") == ["paris"]
    assert words(" ... ") == []


def test_matching_by_hand() -> None:
    assert exact_match("the Paris.", ["Paris"]) and not exact_match("Paris, France", ["Paris"])
    assert contains("It is in Paris, France.", ["Lyon", "paris"])
    assert not contains("Germany", ["man"])
    assert contains("He speaks the French language", ["French language"])
    assert not contains("language French", ["French language"])
    assert not contains("", ["x"]) and not contains("x", [""]) and not exact_match("", [""])


def test_f1_by_hand() -> None:
    # common {cat, sat}: precision 2/3, recall 2/4
    assert token_f1("the cat sat down", "a cat sat on it") == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert token_f1("x", "y") == 0.0 and token_f1("X!", "x") == 1.0
    assert token_f1("a b b", "b") == pytest.approx(2 * (1 / 2) * 1 / (3 / 2))  # "a" is an article


_sentence = st.lists(st.sampled_from(["cat", "dog", "sun", "a"]), max_size=6).map(" ".join)


@given(answer=_sentence, expected=_sentence)
def test_f1_against_a_slow_form_and_the_order_of_the_judges(answer: str, expected: str) -> None:
    left, right = words(answer), words(expected)
    pool = list(right)
    common = 0
    for word in left:
        if word in pool:
            pool.remove(word)
            common += 1
    slow = 2 * common / (len(left) + len(right)) if left and right else float(left == right)
    assert token_f1(answer, expected) == pytest.approx(slow)
    assert token_f1(answer, expected) == pytest.approx(token_f1(expected, answer))
    if exact_match(answer, [expected]):
        assert answer_contains(answer, [expected]) and token_f1(answer, expected) == 1.0


def test_locality_by_hand() -> None:
    assert locality_exact(" Paris\n", "Paris") and not locality_exact("paris", "Paris")
    assert locality_match_ratio([1, 2, 3, 4], [1, 9, 3]) == 0.5
    assert locality_match_ratio([], []) == 1.0 and locality_match_ratio([], [1]) == 0.0


@given(a=st.lists(st.integers(0, 3), max_size=6), b=st.lists(st.integers(0, 3), max_size=6))
def test_match_ratio_is_a_similarity(a: list[int], b: list[int]) -> None:
    ratio = locality_match_ratio(a, b)
    assert 0.0 <= ratio <= 1.0
    assert ratio == locality_match_ratio(b, a)
    assert (ratio == 1.0) == (a == b)


# --- overlap ---


def test_rouge_by_hand() -> None:
    answer, reference = "police killed the gunman", "police kill the gunman"  # Lin's own example
    assert rouge_1(answer, reference) == pytest.approx(3 / 4)
    assert rouge_2(answer, reference) == pytest.approx(1 / 3)
    assert rouge_l(answer, reference) == pytest.approx(3 / 4)
    assert rouge_l("the gunman police killed", reference) == pytest.approx(2 / 4)
    assert rouge_mean(answer, reference) == pytest.approx((3 / 4 + 1 / 3 + 3 / 4) / 3)
    # clipped counts and unequal lengths: 1 common of 3 and 2
    assert rouge_1("no no no", "no way") == pytest.approx(2 * 1 / (3 + 2))
    assert rouge_1("", "x") == rouge_2("x", "x") == rouge_l("", "") == 0.0


def _slow_lcs(a: Sequence[str], b: Sequence[str]) -> int:
    """By enumeration of all subsequences of the shorter."""
    short, long = sorted((list(a), list(b)), key=len)
    for size in range(len(short), 0, -1):
        for picked in combinations(short, size):
            rest = iter(long)
            if all(word in rest for word in picked):
                return size
    return 0


@settings(deadline=None)
@given(a=_sentence, b=_sentence)
def test_rouge_against_a_slow_form(a: str, b: str) -> None:
    left, right = a.split(), b.split()
    lcs = _slow_lcs(left, right)
    assert rouge_l(a, b) == pytest.approx(2 * lcs / (len(left) + len(right)) if lcs else 0.0)
    pairs_a, pairs_b = list(pairwise(left)), list(pairwise(right))
    common = sum(min(pairs_a.count(pair), pairs_b.count(pair)) for pair in set(pairs_a))
    assert rouge_2(a, b) == pytest.approx(2 * common / (len(pairs_a) + len(pairs_b)) if common else 0.0)


# --- fluency ---


def test_entropy_by_hand() -> None:
    # bigrams of "a b a b a": ab, ba, ab, ba: two kinds alike, 1 bit; trigrams aba, bab, aba: 2/3 and 1/3
    third = -(2 / 3) * math.log2(2 / 3) - (1 / 3) * math.log2(1 / 3)
    assert ngram_entropy("a b a b a", 2) == pytest.approx(1.0)
    assert ngram_entropy("a b a b a", 3) == pytest.approx(third)
    assert fluency("a b a b a") == pytest.approx((2 / 3 * 1.0 + 4 / 3 * third) / 2)
    assert fluency("word") == 0.0


def test_entropy_against_exact_counts() -> None:
    rng = random.Random(0)
    tokens = [rng.choice("abcd") for _ in range(60)]
    for n in (2, 3):
        grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
        shares = [Fraction(c, len(grams)) for c in Counter(grams).values()]
        assert sum(shares) == 1
        slow = sum(float(s) * math.log2(1 / float(s)) for s in shares)
        assert ngram_entropy(" ".join(tokens), n) == pytest.approx(slow)


def test_repetition_lowers_fluency() -> None:
    varied = "every word here differs from all the other ones that stand around it"
    assert fluency(varied) > fluency("again and again and again and again and again") > fluency("no " * 20)


def test_fluency_star() -> None:
    assert fluency_star([-2.0, -2.0], [-1.0]) == 2.0  # less likely text scores above 1
    assert fluency_star([-1.0], [-1.0, -1.0]) == 1.0
    with pytest.raises(ValueError, match="tokens of both"):
        fluency_star([], [-1.0])
    with pytest.raises(ValueError, match="undefined"):
        fluency_star([-1.0], [0.0])


def test_consistency_against_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.feature_extraction.text", reason="scikit-learn is not installed")
    corpus = ["the cat sat on the mat", "a dog and a cat met", "rome is old", "the old dog sat"]
    generated, references = ["the cat met a dog", "an unseen word"], ["a dog sat on the old mat"]
    vectorizer = sklearn.TfidfVectorizer().fit(corpus)
    left, right = vectorizer.transform([" ".join(generated), " ".join(references)]).toarray()
    assert consistency(generated, references, TfIdf(corpus)) == pytest.approx(float(left @ right))


def test_consistency_is_not_made_up() -> None:
    tfidf = TfIdf(["some text"])
    assert consistency(["some"], [], tfidf) is None
    assert consistency(["nothing known"], ["some text"], tfidf) == 0.0
    assert consistency(["some text"], ["text some"], tfidf) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="at least one reference"):
        TfIdf([])


# --- composites ---


def test_harmonic_mean_by_hand() -> None:
    assert harmonic_mean([1.0, 0.5]) == pytest.approx(2 / 3)
    assert harmonic_mean([0.4, 0.0]) == 0.0
    for wrong in ([], [0.5, -0.1]):
        with pytest.raises(ValueError, match="at least 0"):
            harmonic_mean(wrong)


@given(values=st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=6))
def test_harmonic_mean_lies_between_least_and_arithmetic_mean(values: list[float]) -> None:
    slow = float(len(values) / sum(1 / Fraction(value) for value in values))
    assert harmonic_mean(values) == pytest.approx(slow)
    assert min(values) - 1e-12 <= harmonic_mean(values) <= sum(values) / len(values) + 1e-12


def test_composites() -> None:
    parts = {
        "efficacy": 1.0,
        "generalization": 0.5,
        "specificity_exact": 0.5,
        "fluency_star": 1.0,
        "portability": 0.25,
    }
    assert edit_score(parts | {"specificity": 0.9, "other": 0.0}) == pytest.approx(5 / (1 + 2 + 2 + 1 + 4))
    six = dict.fromkeys(("mmlu", "gsm8k", "hellaswag", "winogrande", "arc_challenge", "humaneval"), 0.5)
    assert preservation_score(six) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="lacks portability"):
        edit_score({key: value for key, value in parts.items() if key != "portability"})


def test_average_by_hand() -> None:
    found = average([1.0, 2.0, 3.0, 4.0])
    assert found is not None
    assert (found.mean, found.count) == (2.5, 4)
    assert found.standard_error == pytest.approx(math.sqrt(5 / 3) / 2)
    single = average([1.0])
    assert single is not None and single.standard_error is None
    assert average([]) is None


def test_perplexity_by_hand() -> None:
    assert perplexity_of(4 * math.log(10), 4) == pytest.approx(10.0)
    with pytest.raises(ValueError, match="at least one"):
        perplexity_of(0.0, 0)
