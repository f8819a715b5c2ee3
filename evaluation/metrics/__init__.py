"""Metrics: small pure functions, each with its definition, source, direction and version (`METRICS`)."""

from errata.evaluation.metrics.card import METRICS, MetricCard
from errata.evaluation.metrics.composite import (
    Average,
    average,
    average_true,
    edit_score,
    harmonic_mean,
    overall,
    preservation_score,
)
from errata.evaluation.metrics.fluency import TfIdf, consistency, fluency, fluency_star, ngram_entropy
from errata.evaluation.metrics.generated import (
    answer_contains,
    answer_exact,
    answer_f1,
    locality_exact,
    locality_match_ratio,
    locality_true,
)
from errata.evaluation.metrics.interval import interval
from errata.evaluation.metrics.overlap import rouge_1, rouge_2, rouge_l, rouge_mean
from errata.evaluation.metrics.retention import Retention, forgetting, retained, retention
from errata.evaluation.metrics.teacher_forced import (
    all_tokens_correct,
    efficacy_score,
    locality_tf,
    mean_nll,
    neighborhood_score,
    neighborhood_score_argmax,
    paraphrase_score,
    probability_margin,
    token_accuracy,
)

__all__ = [
    "METRICS",
    "Average",
    "MetricCard",
    "Retention",
    "TfIdf",
    "all_tokens_correct",
    "answer_contains",
    "answer_exact",
    "answer_f1",
    "average",
    "average_true",
    "consistency",
    "edit_score",
    "efficacy_score",
    "fluency",
    "fluency_star",
    "forgetting",
    "harmonic_mean",
    "interval",
    "locality_exact",
    "locality_match_ratio",
    "locality_tf",
    "locality_true",
    "mean_nll",
    "neighborhood_score",
    "neighborhood_score_argmax",
    "ngram_entropy",
    "overall",
    "paraphrase_score",
    "preservation_score",
    "probability_margin",
    "retained",
    "retention",
    "rouge_1",
    "rouge_2",
    "rouge_l",
    "rouge_mean",
    "token_accuracy",
]
