"""The papers' definitions on examples worked out by hand, and the documentation's tables against the code."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errata.evaluation.figures import FIGURES, MEASURED_BY, figure_rows, metric_rows
from errata.evaluation.metrics import (
    METRICS,
    answer_contains,
    answer_exact,
    answer_f1,
    average_true,
    edit_score,
    efficacy_score,
    interval,
    locality_exact,
    locality_match_ratio,
    locality_tf,
    locality_true,
    neighborhood_score,
    neighborhood_score_argmax,
    overall,
    paraphrase_score,
    token_accuracy,
)
from errata.evaluation.reasoning import ReasoningMarks, answer_part
from errata.evaluation.strata import by_age
from errata.orchestrator.report.summary import ArmMetrics

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"


def test_every_key_of_an_arm_is_defined_and_no_other() -> None:
    assert list(FIGURES) == list(ArmMetrics.model_fields)
    assert {card.metric for card in FIGURES.values()} - {None} <= set(METRICS) and set(MEASURED_BY) <= set(METRICS)


@pytest.mark.parametrize("rows", [figure_rows, metric_rows])
def test_the_page_says_what_the_code_does(rows: object) -> None:
    """To renew it: python -c 'from errata.evaluation.figures import *; print("\\n".join(figure_rows()))'."""
    lines = PAGE.read_text(encoding="utf-8").split("\n")
    wanted = rows()  # type: ignore[operator]
    at = lines.index(wanted[0])
    assert lines[at : at + len(wanted)] == wanted
    assert not lines[at + len(wanted)].startswith("|"), "the page has a row that the code does not know"


# --- moir C.3: eq. 14 to 19 ---

# target of three tokens, log-probabilities ln(1/2), ln(1/4), ln(1/8) against one of two tokens, ln(1/3), ln(1/3)
NEW, OLD = [-0.6931471805599453, -1.3862943611198906, -2.0794415416798357], [-1.0986122886681098] * 2


def test_moir_efficacy_score_is_by_mean_token_probability() -> None:
    # eq. 14: NLL(new) = ln(64)/3 = 1.386, NLL(old) = ln(9)/2 = 1.099
    assert not efficacy_score(NEW, OLD) and efficacy_score(OLD, NEW)
    assert paraphrase_score(OLD, NEW) and not paraphrase_score(NEW, OLD)  # eq. 15
    assert neighborhood_score(NEW, OLD)  # ROME's form: the original is likelier


def test_moir_specificity_is_a_product_over_tokens_and_token_accuracy_is_not() -> None:
    # eq. 16 for hits [1, 0]: 1 * 0 = 0; eq. 17 for the same hits: (1 + 0) / 2
    assert neighborhood_score_argmax([True, False]) is False
    assert token_accuracy([True, False]) == 0.5
    prompts = [[True, True], [True, False], [False], [True]]
    assert sum(map(neighborhood_score_argmax, prompts)) / 4 == 0.5
    assert sum(map(token_accuracy, prompts)) / 4 == 0.625


def test_moir_edit_score_takes_the_exact_specificity() -> None:
    # eq. 19 of .9, .6, .3, 1.0, .5: 5 / (1/.9 + 1/.6 + 1/.3 + 1 + 2) = 5 / 9.1111
    parts = {
        "efficacy": 0.9,
        "generalization": 0.6,
        "specificity": 0.9,
        "specificity_exact": 0.3,
        "fluency_star": 1.0,
        "portability": 0.5,
    }
    assert edit_score(parts) == pytest.approx(5 / 9.111111111111)
    with pytest.raises(ValueError, match="lacks specificity_exact"):
        edit_score({key: value for key, value in parts.items() if key != "specificity_exact"})


# --- revisiting: eq. 2-5 judged as in C.1, and C.5 ---


def test_revisiting_locality_is_judged_against_the_truth() -> None:
    """Table 3's unedited model has 15.5: it is right about a sixth of the questions, and agrees with itself on all."""
    unedited, true = ["It is Lyon.", "Paris, I think", "unknown"], ["Paris", "Paris", "Rome"]
    judged = [locality_true(answer, [truth]) for answer, truth in zip(unedited, true, strict=True)]
    assert judged == [False, True, False]
    assert all(locality_exact(answer, answer) for answer in unedited)
    # an edit that makes a wrong answer right gains by the one and loses by the other
    assert locality_true("Paris", ["Paris"]) and not locality_exact("Paris", "It is Lyon.")


def test_revisiting_averages_over_its_own_locality() -> None:
    # table 3, the unedited model: 3.00, 3.00, 15.50, 4.36 -> 6.47 (6.465 rounded)
    row = {"reliability": 3.0, "generalization_gen": 3.0, "locality_true": 15.5, "portability": 4.36}
    assert average_true(row | {"locality": 100.0}) == pytest.approx(6.465)


def test_revisiting_token_level_locality() -> None:
    # C.5: two of four tokens at their places; the whole answer is another
    assert locality_match_ratio([5, 6, 7, 8], [5, 9, 7, 1]) == 0.5
    assert not locality_exact("Paris is", "Paris was")


# --- mose eq. 25-27, EasyEdit ---


def test_mose_locality_compares_predictions_before_and_after() -> None:
    # eq. 27 over the old answer's tokens, teacher-forced: predictions [4, 2, 9] before and [4, 3, 9] after
    assert locality_tf([4, 3, 9], [4, 2, 9]) == pytest.approx(2 / 3)
    assert locality_tf([1, 2], [1, 2]) == 1.0
    assert locality_tf([1], [1, 2]) == 0.5
    with pytest.raises(ValueError, match="at least one"):
        locality_tf([], [1])


# --- rose: table 1, D.2 ---


@pytest.mark.parametrize(
    ("efficacy", "paraphrase", "locality", "total"),
    [(26.0, 38.7, 64.3, 43.0), (22.4, 41.2, 65.3, 43.0), (35.9, 44.4, 65.2, 48.5), (87.3, 66.9, 64.8, 73.0)],
)
def test_rose_overall_is_the_mean_of_its_three(
    efficacy: float, paraphrase: float, locality: float, total: float
) -> None:
    row = {"reliability": efficacy, "generalization_gen": paraphrase, "locality_true": locality}
    assert overall(row) == pytest.approx(total, abs=0.05)


def test_rose_f1_after_normalization() -> None:
    # "the 7 May 2023" against "7 May": precision 2/3 (the article is dropped), recall 1
    assert answer_f1("the 7 May 2023", ["7 May", "spring"]) == pytest.approx(2 * (2 / 3) * 1 / (5 / 3))
    assert answer_contains("It was on 7 May.", ["7 May"]) and not answer_exact("It was on 7 May.", ["7 May"])


# --- reasoning, samples, intervals ---


def test_the_answer_is_told_apart_from_the_reasoning() -> None:
    marks = ReasoningMarks()
    assert answer_part("<think>Rome? No.</think>\nParis", marks) == ("\nParis", "Rome? No.")
    assert answer_part("Rome? No.</think> Paris", marks) == (" Paris", "Rome? No.")  # begun by the chat template
    assert answer_part("<think>Rome? Paris? Rome?", marks) == ("", "Rome? Paris? Rome?")  # never came to an answer
    assert answer_part("Paris", marks) == ("Paris", "")
    assert answer_part("<think>Rome</think>Paris", None) == ("<think>Rome</think>Paris", None)
    assert not answer_contains(answer_part("<think>Paris", marks)[0], ["Paris"])


def test_a_sample_has_all_ages_in_it_and_hardly_changes_with_an_edit_less() -> None:
    names = [f"edit-{at}" for at in range(103)]
    chosen = by_age(names, 10)
    assert all(span * 103 // 10 <= at < (span + 1) * 103 // 10 for span, at in enumerate(chosen)) and len(chosen) == 10
    assert by_age(names, None) == by_age(names, 500) == list(range(103))
    fewer = names[:50] + names[51:]
    again = {fewer[at] for at in by_age(fewer, 10)}
    assert len(again & {names[at] for at in chosen}) >= 7
    assert by_age([], 3) == []


def test_interval_by_hand() -> None:
    # Wilson for 8 of 10: center (.8 + z^2/20) / (1 + z^2/10), as tabulated .4902 to .9433
    assert interval([1.0] * 8 + [0.0] * 2) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    # two shares whose variance, 1/16, is that of 8 questions of yes or no in place of 2: Wilson for 4 of 8
    assert interval([0.25, 0.75]) == pytest.approx((0.2152161, 0.7847839), abs=1e-6)
    # what is no share has the normal interval
    assert interval([1.25, 1.75]) == pytest.approx((1.5 - 1.959964 * 0.25, 1.5 + 1.959964 * 0.25), abs=1e-6)
    assert interval([1.0]) is None and interval([0.5, 0.5, 0.5]) == (0.5, 0.5)


@given(st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0])), min_size=2, max_size=60))
def test_interval_of_shares_holds_their_mean_and_stays_within_0_and_1(shares: list[float]) -> None:
    low, high = interval(shares) or (1.0, 0.0)
    mean = sum(shares) / len(shares)
    assert 0 <= low <= mean + 1e-9 and mean - 1e-9 <= high <= 1
