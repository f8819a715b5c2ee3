"""Scores, intervals and paired changes, by hand and by simulation."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from errata.evaluation.metrics import harmonic_mean
from errata.evaluation.preservation.battery import (
    S_P_METRICS,
    Item,
    Outcomes,
    Score,
    change,
    interval,
    merged,
    s_p,
    sampled,
    scores_of,
)


class Plain:
    """A suite of numbered items; ``ratio`` is not a mean."""

    name = "plain"
    fingerprint = "f"

    def __init__(self, items: int) -> None:
        self.items: list[Item] = [("plain", at) for at in range(items)]

    def run(self, engine: Any, items: Sequence[Item], *, seed: int = 0) -> Outcomes:
        raise NotImplementedError

    def is_mean(self, metric: str) -> bool:
        return metric != "ratio"

    def aggregate(self, metric: str, values: Sequence[Any]) -> float:
        return float(sum(a for a, _ in values) / sum(b for _, b in values))


def test_wilson_by_hand() -> None:
    # 8 of 10: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    assert interval([1.0] * 8 + [0.0] * 2, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    low, high = interval([0.0] * 10, 100) or (1.0, 0.0)
    assert low == 0.0 and high == pytest.approx(0.2775328, abs=1e-6)
    # others: mean and normal quantile, s = 1
    assert interval([1.0, 2.0, 3.0], 3) == pytest.approx((2 - 1.959964 / 3**0.5, 2 + 1.959964 / 3**0.5), abs=1e-5)
    assert interval([1.0], 5) is None


def test_the_interval_covers_about_19_of_20() -> None:
    draw = random.Random(0)
    covered = 0
    for _ in range(1000):
        low, high = interval([float(draw.random() < 0.3) for _ in range(40)], 1000) or (1.0, 0.0)
        covered += low <= 0.3 <= high
    assert 920 <= covered <= 980


def test_items_are_drawn_once_and_the_same_each_time() -> None:
    items = Plain(50).items
    drawn = sampled(items, 7, 3)
    assert len(set(drawn)) == 7 and drawn == sorted(drawn) == sampled(items, 7, 3) != sampled(items, 7, 4)
    assert sampled(items, None, 0) == sampled(items, 50, 0) == items


def test_scores() -> None:
    suite = Plain(9)
    mean, ratio = scores_of(suite, {"acc": [1, 0, 1, 1], "ratio": [(1, 2), (3, 6)], "empty": []})
    assert (mean.value, mean.items, mean.of) == (0.75, 4, 9) and mean.low is not None
    assert ratio.value == 0.5 and ratio.low is None


def test_changes_are_paired() -> None:
    suite = Plain(4)
    moved = change(suite, "acc", [1, 1, 0, 1], [1, 0, 0, 1])
    # differences 0, -1, 0, 0: mean -1/4, s = 1/2
    assert (moved.before, moved.after) == (0.75, 0.5)
    assert (moved.low, moved.high) == pytest.approx((-0.25 - 1.959964 / 4, -0.25 + 1.959964 / 4), abs=1e-5)
    same = change(suite, "acc", [1, 0, 1, 0], [1, 0, 1, 0])
    assert (same.low, same.high) == (0.0, 0.0)  # unpaired, it could not be told from a change
    assert change(suite, "ratio", [(1, 2)], [(2, 2)]).low is None
    with pytest.raises(ValueError, match="2 and 1 items"):
        change(suite, "acc", [1, 1], [1])


def test_shares_are_put_together() -> None:
    assert merged([{"acc": [1]}, {"acc": [0, 1]}]) == {"acc": [1, 0, 1]}
    with pytest.raises(ValueError, match="differ in their metrics"):
        merged([{"acc": [1]}, {"f1": [1]}])


def test_s_p_needs_all_six() -> None:
    values = dict(zip(S_P_METRICS, (0.6, 0.5, 0.7, 0.65, 0.5, 0.3), strict=True))
    scores = [Score(t, S_P_METRICS[t], v, None, None, 10, 10) for t, v in values.items()]
    other = Score("hellaswag", "acc", 0.01, None, None, 10, 10)
    assert s_p([other, *scores]) == pytest.approx(harmonic_mean(list(values.values())))
    assert s_p(scores[1:]) is None
