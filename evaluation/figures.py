"""What the numbers of an arm are: definition, how they are measured, by which metric of which version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import errata.evaluation.perplexity
import errata.evaluation.preservation.humaneval
import errata.evaluation.uncertainty  # noqa: F401 - each of the three enters its metrics
from errata.evaluation.metrics import METRICS

How = Literal["teacher-forced", "generated", "free text", "composite", "clock"]


@dataclass(frozen=True)
class FigureCard:
    """One key of an arm in ``summary.json``."""

    how: How
    over: str
    """Which probes, or which other figures."""
    definition: str
    metric: str | None = None
    """Key in `METRICS`; None for a clock."""

    @property
    def version(self) -> int | None:
        """Of its metric."""
        return None if self.metric is None else METRICS[self.metric].version

    @property
    def source(self) -> str:
        """Of its metric."""
        return "" if self.metric is None else METRICS[self.metric].source


_EDIT, _PARAPHRASE, _NEAR, _PORT = "edit prompts", "paraphrases", "neighborhood prompts", "portability questions"

FIGURES: Final[Mapping[str, FigureCard]] = {
    "efficacy": FigureCard(
        "teacher-forced", _EDIT, "share of the new target's tokens that are the argmax", "token_accuracy"
    ),
    "generalization": FigureCard(
        "teacher-forced", _PARAPHRASE, "share of the new target's tokens that are the argmax", "token_accuracy"
    ),
    "specificity": FigureCard(
        "teacher-forced", _NEAR, "share of the original answer's tokens that are the argmax", "token_accuracy"
    ),
    "specificity_exact": FigureCard(
        "teacher-forced",
        _NEAR,
        "every token of the original answer is the argmax (MOIR's specificity, which is NS)",
        "neighborhood_score_argmax",
    ),
    "locality_tf": FigureCard(
        "teacher-forced",
        _NEAR,
        "share of the original answer's tokens at which the argmax is the unedited model's; 1 for `base`",
        "locality_tf",
    ),
    "reliability": FigureCard("generated", _EDIT, "the judge accepts the answer", "answer_contains"),
    "generalization_gen": FigureCard("generated", _PARAPHRASE, "the judge accepts the answer", "answer_contains"),
    "locality": FigureCard(
        "generated",
        _NEAR,
        "the answer is exactly the unedited model's, right or wrong; 1 for `base`",
        "locality_exact",
    ),
    "locality_match": FigureCard(
        "generated",
        _NEAR,
        "share of the answer's tokens equal to the unedited model's, position by position; 1 for `base`",
        "locality_match_ratio",
    ),
    "locality_true": FigureCard(
        "generated",
        _NEAR,
        "the judge accepts the answer as the *true* one, whatever the unedited model says",
        "locality_true",
    ),
    "portability": FigureCard("generated", _PORT, "the judge accepts one of the answers", "answer_contains"),
    "average_true": FigureCard(
        "composite", "reliability, generalization_gen, locality_true, portability", "mean", "average_true"
    ),
    "overall": FigureCard("composite", "reliability, generalization_gen, locality_true", "mean", "overall"),
    "reliability_f1": FigureCard("generated", _EDIT, "word-level F1 of the answer with the target", "answer_f1"),
    "generalization_f1": FigureCard(
        "generated", _PARAPHRASE, "word-level F1 of the answer with the target", "answer_f1"
    ),
    "portability_f1": FigureCard(
        "generated",
        _PORT,
        "word-level F1 with the best of the answers; by kind in `portability_f1_by_kind`",
        "answer_f1",
    ),
    "fluency": FigureCard("free text", "generation prompts", "entropy of bigrams and trigrams, bits", "fluency"),
    "fluency_star": FigureCard(
        "free text",
        "generation prompts",
        "mean log-probability of own continuations over the unedited model's; above 1: less likely; 1 for `base`",
        "fluency_star",
    ),
    "consistency": FigureCard(
        "free text", "generation prompts", "tf-idf cosine with texts about the new object", "consistency"
    ),
    "edit_score": FigureCard(
        "composite",
        "efficacy, generalization, specificity_exact, fluency_star, portability",
        "harmonic mean, S_e",
        "edit_score",
    ),
    "query_seconds": FigureCard("clock", "a few questions", "mean wall seconds of one asked alone, choosing included"),
}
"""Key -> what it is, in the order of ``summary.json``."""

MEASURED_BY: Final = tuple(
    dict.fromkeys(
        [*(card.metric for card in FIGURES.values() if card.metric is not None), "answer_exact", "perplexity"]
    )
)
"""The metrics behind the figures of a summary; what their versions differ in cannot be compared."""


def figure_rows() -> list[str]:
    """The table of the keys as Markdown, as docs/metrics.md has it."""
    lines = ["| key | measured | over | definition | metric, version | source |", "|---|---|---|---|---|---|"]
    for key, card in FIGURES.items():
        metric = "" if card.metric is None else f"`{card.metric}` {card.version}"
        lines.append(f"| `{key}` | {card.how} | {card.over} | {card.definition} | {metric} | {card.source} |")
    return lines


def metric_rows() -> list[str]:
    """The table of all metrics as Markdown, as docs/metrics.md has it."""
    better = {True: "higher", False: "lower", None: "neither"}
    lines = ["| metric | version | better | definition | source |", "|---|---|---|---|---|"]
    for name, card in sorted(METRICS.items()):
        direction = better[card.higher_is_better]
        lines.append(f"| `{name}` | {card.version} | {direction} | {card.definition} | {card.source} |")
    return lines
