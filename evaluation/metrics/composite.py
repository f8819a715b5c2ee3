"""One number for many: harmonic means, and averages with their standard error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from errata.evaluation.metrics.card import metric

EDIT_PARTS = ("efficacy", "generalization", "specificity_exact", "fluency_star", "portability")
AVERAGE_PARTS = ("reliability", "generalization_gen", "locality_true", "portability")
OVERALL_PARTS = ("reliability", "generalization_gen", "locality_true")
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


def _parts(parts: Sequence[str], scores: Mapping[str, float]) -> list[float]:
    missing = [part for part in parts if part not in scores]
    if missing:
        raise ValueError(f"composite score lacks {', '.join(missing)}")
    return [scores[part] for part in parts]


@metric("edit_score", version=2, source="moir eq. 19 (S_e)")
def edit_score(scores: Mapping[str, float]) -> float:
    """S_e: harmonic mean of efficacy, generalization, exact specificity (eq. 16), fluency* and portability.

    Version 1 took the specificity that gives credit for part of an answer.
    """
    return harmonic_mean(_parts(EDIT_PARTS, scores))


@metric("average_true", version=1, source="revisiting, tables 3 and 29-32 (Avg.)")
def average_true(scores: Mapping[str, float]) -> float:
    """Mean of reliability, generalization, locality against the true answer and portability (generated answers)."""
    return sum(_parts(AVERAGE_PARTS, scores)) / len(AVERAGE_PARTS)


@metric("overall", version=1, source="rose, table 1 (Overall)")
def overall(scores: Mapping[str, float]) -> float:
    """Mean of RoSE's efficacy, paraphrase and locality: generated answers, locality against the true answer."""
    return sum(_parts(OVERALL_PARTS, scores)) / len(OVERALL_PARTS)


@metric("preservation_score", version=1, source="moir eq. 20 (S_p)")
def preservation_score(scores: Mapping[str, float]) -> float:
    """S_p: harmonic mean of MMLU, GSM8K strict, HellaSwag, WinoGrande, ARC-C and HumanEval pass@1."""
    return harmonic_mean(_parts(PRESERVATION_PARTS, scores))


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
