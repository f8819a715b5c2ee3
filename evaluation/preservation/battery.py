"""What was kept: suites of benchmark items, put to one version or another, and scores with their uncertainty."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Any, Protocol

from errata.evaluation.metrics import interval as interval_of_mean
from errata.evaluation.metrics import preservation_score
from errata.evaluation.metrics.interval import NORMAL_95
from errata.evaluation.sampling import SamplingEngine

Item = tuple[str, int]
"""(subtask, number of the document)."""
Outcomes = dict[str, list[Any]]
"""Metric -> one value for each item, in the order of the items."""

S_P_METRICS: Mapping[str, str] = {
    "mmlu": "acc",
    "gsm8k": "exact_match,strict-match",
    "hellaswag": "acc_norm",
    "winogrande": "acc",
    "arc_challenge": "acc_norm",
    "humaneval": "pass@1",
}
"""Which metric of each benchmark S_p takes (moir, table 3)."""


class Suite(Protocol):
    """One benchmark."""

    name: str
    items: list[Item]

    @property
    def fingerprint(self) -> str:
        """Digest of everything but the items, the seed and the weights that decides an outcome."""

    def run(self, engine: SamplingEngine, items: Sequence[Item], *, seed: int = 0) -> Outcomes:
        """Put items to the model as it is now."""

    def is_mean(self, metric: str) -> bool:
        """Whether a metric's score is the mean of its items' values."""

    def aggregate(self, metric: str, values: Sequence[Any]) -> float:
        """The score of a metric that is not a mean."""


@dataclass(frozen=True)
class Score:
    """A benchmark's score on one version, and how sure it is."""

    task: str
    metric: str
    value: float
    low: float | None
    high: float | None
    """95 % interval of the score on the whole benchmark, from the items that were asked; None where not known."""
    items: int
    """Items asked."""
    of: int
    """Items that the benchmark has."""


def sampled(items: Sequence[Item], limit: int | None, seed: int) -> list[Item]:
    """At most ``limit`` items, drawn without replacement, in their order; the same for every version."""
    if limit is None or limit >= len(items):
        return list(items)
    chosen = sorted(random.Random(seed).sample(range(len(items)), limit))
    return [items[at] for at in chosen]


def interval(values: Sequence[float], of: int) -> tuple[float, float] | None:
    """95 % interval of a mean over a benchmark of ``of`` items, from some of them; None for fewer than two values.

    The items were drawn from a benchmark that ends, but the interval is for the ability that the benchmark samples.
    """
    return interval_of_mean(values) if of >= len(values) else None


def scores_of(suite: Suite, outcomes: Mapping[str, Sequence[Any]]) -> list[Score]:
    """Every metric of a suite over the items that were asked."""
    scores = []
    for metric, values in outcomes.items():
        if not values:
            continue
        if suite.is_mean(metric):
            numbers = [float(value) for value in values]
            low, high = interval(numbers, len(suite.items)) or (None, None)
            value = sum(numbers) / len(numbers)
        else:
            low = high = None
            value = suite.aggregate(metric, values)
            if not isfinite(value):
                continue  # nothing of the kind was there to be measured
        scores.append(Score(suite.name, metric, value, low, high, len(values), len(suite.items)))
    return scores


def s_p(scores: Sequence[Score]) -> float | None:
    """`preservation_score` (S_p) where all six of its benchmarks were asked, else None."""
    values = {score.task: score.value for score in scores if S_P_METRICS.get(score.task) == score.metric}
    return preservation_score(values) if set(values) == set(S_P_METRICS) else None


def merged(parts: Sequence[Outcomes]) -> Outcomes:
    """The outcomes of several shares of a suite's items, one after the other.

    Raises:
        ValueError: the shares do not have the same metrics.
    """
    names = list(parts[0]) if parts else []
    if any(list(part) != names for part in parts):
        raise ValueError(f"shares of one suite differ in their metrics: {[list(part) for part in parts]}")
    return {name: [value for part in parts for value in part[name]] for name in names}


@dataclass(frozen=True)
class Change:
    """How a score moved between two versions on the same items."""

    task: str
    metric: str
    before: float
    after: float
    low: float | None
    high: float | None
    """95 % interval of the difference, from the items' paired differences; None where the metric is not a mean."""


def change(suite: Suite, metric: str, before: Sequence[Any], after: Sequence[Any]) -> Change:
    """After minus before, item by item: the same items were asked, which makes the interval narrow.

    Raises:
        ValueError: the two have different numbers of items.
    """
    if len(before) != len(after):
        raise ValueError(f"paired comparison of {len(before)} and {len(after)} items")
    if not suite.is_mean(metric):
        return Change(suite.name, metric, suite.aggregate(metric, before), suite.aggregate(metric, after), None, None)
    first, second = [float(v) for v in before], [float(v) for v in after]
    n = len(first)
    moves = [b - a for a, b in zip(first, second, strict=True)]
    mean = sum(moves) / n
    if n < 2:
        return Change(suite.name, metric, sum(first) / n, sum(second) / n, None, None)
    spread = NORMAL_95 * sqrt(sum((move - mean) ** 2 for move in moves) / (n - 1) / n)
    return Change(suite.name, metric, sum(first) / n, sum(second) / n, mean - spread, mean + spread)
