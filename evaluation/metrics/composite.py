"""One number for many: harmonic means, and averages with their standard error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from errata.evaluation.metrics.card import metric

EDIT_PARTS = ("efficacy", "generalization", "specificity", "fluency_star", "portability")
PRESERVATION_PARTS = ("mmlu", "gsm8k", "hellaswag", "winogrande", "arc_challenge", "humaneval")


def harmonic_mean(values: Sequence[float]) -> float:
    """``n / sum(1 / x)``; 0 if any value is 0.

    Raises:
        ValueError: no value, or a negative one.
    """
    if not values or any(value < 0 for value in values):
        raise ValueError(f"the harmonic mean needs values of at least 0, got {list(values)}")
    if any(value == 0 for value in values):
        return 0.0
    return len(values) / sum(1 / value for value in values)


def _composite(parts: Sequence[str], scores: Mapping[str, float]) -> float:
    missing = [part for part in parts if part not in scores]
    if missing:
        raise ValueError(f"composite score lacks {', '.join(missing)}")
    return harmonic_mean([scores[part] for part in parts])


@metric("edit_score", version=1, source="moir eq. 19 (S_e)")
def edit_score(scores: Mapping[str, float]) -> float:
    """S_e: harmonic mean of efficacy, generalisation, specificity, fluency* and portability."""
    return _composite(EDIT_PARTS, scores)


@metric("preservation_score", version=1, source="moir eq. 20 (S_p)")
def preservation_score(scores: Mapping[str, float]) -> float:
    """S_p: harmonic mean of MMLU, GSM8K strict, HellaSwag, WinoGrande, ARC-C and HumanEval pass@1."""
    return _composite(PRESERVATION_PARTS, scores)


@dataclass(frozen=True)
class Average:
    """A mean, the standard error of it (None for a single value), and how many values it is of."""

    mean: float
    standard_error: float | None
    count: int


def average(values: Sequence[float]) -> Average | None:
    """Mean and standard error ``s / sqrt(n)`` with the sample deviation s; None for no values."""
    if not values:
        return None
    mean = sum(values) / len(values)
    if len(values) == 1:
        return Average(mean, None, 1)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return Average(mean, sqrt(variance / len(values)), len(values))
