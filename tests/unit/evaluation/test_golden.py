"""One example of every metric, computed by hand from the definition in its source; a metric without one fails."""

from __future__ import annotations

from math import isclose, log, sqrt
from typing import Any

import numpy as np
import pytest

import errata.evaluation.perplexity
import errata.evaluation.preservation.humaneval
import errata.evaluation.uncertainty  # noqa: F401  (each enters its metrics)
from errata.evaluation.metrics import METRICS
from errata.evaluation.metrics.fluency import TfIdf

LN = log
"""Natural logarithm: log-probabilities are in nats."""

GOLDEN: dict[str, list[tuple[tuple[Any, ...], float | None]]] = {
    # --- teacher-forced
    # EasyEdit; MOIR eq. 17: the share of the target's tokens that are the argmax: 1 of 2, 3 of 4
    "token_accuracy": [(([True, False],), 1 / 2), (([True, True, False, True],), 3 / 4)],
    # ROME's targets_correct: all or nothing
    "all_tokens_correct": [(([True, True],), 1), (([True, False],), 0)],
    # ROME 3.2, by nats a token: new (ln .5 + ln .5) / 2 = ln .5 against old ln .4 in one token: the new is likelier,
    # though its product .25 is less than .4
    "efficacy_score": [(([LN(0.5), LN(0.5)], [LN(0.4)]), 1), (([LN(0.2)], [LN(0.3)]), 0)],
    "paraphrase_score": [(([LN(0.5), LN(0.5)], [LN(0.4)]), 1), (([LN(0.3)], [LN(0.3)]), 0)],
    # NS asks the other way round
    "neighborhood_score": [(([LN(0.5), LN(0.5)], [LN(0.4)]), 0), (([LN(0.1)], [LN(0.6), LN(0.2)]), 1)],
    # MOIR eq. 16: a product of indicators over the old answer's tokens; [1, 0] gives 0, where EasyEdit's share gives .5
    "neighborhood_score_argmax": [(([True, False],), 0), (([True, True],), 1)],
    # MOSE eq. 27, EasyEdit's locality_acc: argmax before [5, 7, 9], after [5, 8, 9]: 2 of 3
    "locality_tf": [(([5, 8, 9], [5, 7, 9]), 2 / 3), (([5, 7], [5, 7, 9]), 2 / 3)],
    # geometric means: (.5 * .125) ** .5 = .25, less .4
    "probability_margin": [(([LN(0.5), LN(0.125)], [LN(0.4)]), 0.25 - 0.4)],
    # --- generated
    # Revisiting C.1: right if the answer states the target; as words, so no "man" in "Germany"
    "answer_contains": [
        (("It is Lyon, in France", ["Lyon"]), 1),
        (("Germany", ["man"]), 0),
        (("里昂是首都", ["里昂"]), 1),
    ],
    # SQuAD: case, punctuation and articles do not count
    "answer_exact": [(("The Eiffel Tower.", ["eiffel tower"]), 1), (("Lyon, France", ["Lyon"]), 0)],
    # SQuAD: words {in, lyon, france} and {lyon}: precision 1/3, recall 1, F1 = 2 * 1/3 / (4/3) = 1/2
    "answer_f1": [(("In Lyon, France", ["Lyon"]), 1 / 2), (("Rome", ["Lyon"]), 0)],
    # Revisiting C.1: the true answer counts, not the unedited model's
    "locality_true": [(("He plays the piano", ["piano"]), 1), (("the guitar", ["piano"]), 0)],
    # Revisiting C.5, table 40: the same text as before, and the share of equal positions: 2 of 4
    "locality_exact": [((" the guitar", "the guitar"), 1), (("a guitar", "the guitar"), 0)],
    "locality_match_ratio": [(([1, 2, 3, 4], [1, 9, 3]), 2 / 4), (([], []), 1)],
    # Lin 2004: answer "the cat sat", reference "the cat ran off": words in common 2 of 3 and 2 of 4, F = 4/7;
    # pairs 1 of 2 and 1 of 3, F = 2/5; longest common subsequence 2, F = 4/7; MOSE B.2 takes their mean
    "rouge_1": [(("the cat sat", "the cat ran off"), 4 / 7)],
    "rouge_2": [(("the cat sat", "the cat ran off"), 2 / 5)],
    "rouge_l": [(("the cat sat", "the cat ran off"), 4 / 7)],
    "rouge_mean": [(("the cat sat", "the cat ran off"), (4 / 7 + 2 / 5 + 4 / 7) / 3)],
    # --- composites
    # MOIR eq. 19: 5 / (1/1 + 1/.5 + 1/.5 + 1/1 + 1/.25) = 5 / 10
    "edit_score": [
        (
            ({"efficacy": 1, "generalization": 0.5, "specificity_exact": 0.5, "fluency_star": 1, "portability": 0.25},),
            0.5,
        )
    ],
    # Revisiting, tables 3 and 29-32: (1 + .8 + .14 + .06) / 4
    "average_true": [
        (({"reliability": 1, "generalization_gen": 0.8, "locality_true": 0.14, "portability": 0.06},), 0.5)
    ],
    # RoSE, table 1: (.9 + .6 + .6) / 3
    "overall": [(({"reliability": 0.9, "generalization_gen": 0.6, "locality_true": 0.6},), 0.7)],
    # MOIR eq. 20: six halves have the harmonic mean 1/2
    "preservation_score": [
        (
            (dict.fromkeys(("mmlu", "gsm8k", "hellaswag", "winogrande", "arc_challenge", "humaneval"), 0.5),),
            0.5,
        )
    ],
    # --- free texts
    # Zhang et al. 2018: "a b a b a": pairs ab, ba twice each: 1 bit; triples aba twice, bab once: log2 3 - 2/3 bits;
    # (2/3 * 1 + 4/3 * (log2 3 - 2/3)) / 2
    "fluency": [(("a b a b a",), (2 / 3 + 4 / 3 * (LN(3) / LN(2) - 2 / 3)) / 2), (("a a a a",), 0)],
    # MOIR C.3: mean log-probability -2 over -1
    "fluency_star": [(([-1.0, -3.0], [-1.0, -1.0]), 2)],
    # tf-idf of two references: "paris" in both has idf ln(3/3) + 1 = 1, "river" in one ln(3/2) + 1 = w; generated
    # "paris", references joined "paris river paris" = (2, w): cosine 2 / sqrt(4 + w^2)
    "consistency": [
        (
            (["paris"], ["paris river", "paris"], TfIdf(["paris river", "paris"])),
            2 / sqrt(4 + (LN(3 / 2) + 1) ** 2),
        ),
        ((["paris"], [], TfIdf(["paris"])), None),
    ],
    # --- over time
    # of what held (1, 1, .5) there remain (1, 0, .5): 1.5 of 2.5; the mean loss is (0 + 1 + 0) / 3
    "retained": [(([1, 1, 0.5], [1, 0, 0.5]), 1.5 / 2.5), (([0.0], [1.0]), None)],
    "forgetting": [(([1, 1, 0.5], [1, 0, 0.5]), 1 / 3), (([0.0], [1.0]), -1)],
    # --- what is preserved
    # exp of the mean: 4 tokens of probability 1/8
    "perplexity": [((4 * LN(8), 4), 8)],
    # Chen et al. 2021, eq. 1: 1 - C(3, 2) / C(5, 2) = 1 - 3 / 10
    "pass_at_k": [((5, 2, 2), 0.7), ((5, 4, 2), 1)],
    # --- uncertainty, section 4: two wordings, answers at -1 and 1, and at 3 and 3: centroids 0 and 3; distances
    # to them 1, 1, 0, 0
    "aleatoric_uncertainty": [((np.array([[[-1.0], [1.0]], [[3.0], [3.0]]]),), 0.5)],
    "epistemic_uncertainty": [((np.array([[[-1.0], [1.0]], [[3.0], [3.0]]]),), 3)],
    "uncertainty_growth": [((0.5, 0.75), 0.5), ((0.0, 1.0), None)],
}


def test_every_metric_has_an_example() -> None:
    assert set(GOLDEN) == set(METRICS)


@pytest.mark.parametrize(("name", "number"), [(name, n) for name, rows in GOLDEN.items() for n in range(len(rows))])
def test_by_hand(name: str, number: int) -> None:
    arguments, expected = GOLDEN[name][number]
    got = METRICS[name].function(*arguments)
    assert got is None if expected is None else isclose(got, expected, rel_tol=1e-12, abs_tol=1e-12)
