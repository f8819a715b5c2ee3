"""Free continuations at the end of a run: fluency, fluency*, consistency, and with them S_e."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from errata.actors.parts import EvaluationPart
from errata.editing.errors import UserError
from errata.editing.request import EditRequest
from errata.evaluation.datasets import counterfact
from errata.evaluation.datasets.reading import read_records
from errata.evaluation.free_text import SAMPLING, free_text_scores, prompts_of
from errata.evaluation.metrics import edit_score
from errata.evaluation.metrics.composite import EDIT_PARTS
from errata.evaluation.outcomes import Arm
from errata.evaluation.strata import by_age
from errata.orchestrator.config.evaluation import FreeTextConfig

Figures = dict[str, float | None]


class FreeTexts:
    """Openings and reference texts of a run's facts, and what two versions write to them.

    Raises:
        UserError: a file is not there, or not what its setting says.
    """

    def __init__(self, config: FreeTextConfig) -> None:
        self._config = config
        records = [] if config.openings is None else [raw for _, raw in _read("openings", config.openings)]
        self._openings = counterfact.openings(records)
        if config.openings is not None and not self._openings:
            raise UserError(f"evaluation.free_text.openings {config.openings!r} holds no generation_prompts")
        self._references: dict[str, list[str]] = {}
        if config.references is not None:
            snippets = [raw for _, raw in _read("references", config.references)]
            try:
                self._references = counterfact.references(records, snippets)
            except (KeyError, TypeError) as error:
                raise UserError(
                    f"evaluation.free_text.references {config.references!r}: want objects with relation_id, target_id "
                    "and samples"
                ) from error

    def measure(self, pool: EvaluationPart, requests: Sequence[EditRequest], weights: Any) -> dict[Arm, Figures]:
        """``fluency``, ``fluency_star`` and ``consistency`` of base and version; ``requests`` oldest first."""
        chosen = [requests[at] for at in by_age([request.id for request in requests], self._config.facts)]
        openings = {name: self._openings.get(name) or own for name, own in prompts_of(chosen).items()}
        sampling = SAMPLING.model_copy(update={"max_new_tokens": self._config.max_new_tokens})
        before = pool.free_texts(openings, {}, sampling)
        after = pool.free_texts(openings, weights, sampling)
        figures: dict[Arm, Figures] = {}
        arms: tuple[tuple[Arm, Any], ...] = (("base", before), ("edited", after))
        for arm, texts in arms:
            scores = free_text_scores(texts, before, references=self._references)
            figures[arm] = {
                "fluency": scores.fluency,
                "fluency_star": scores.fluency_star,
                "consistency": scores.consistency,
            }
        return figures


def with_edit_score(figures: Mapping[str, float | None]) -> Figures:
    """The figures of an arm and S_e, where all its parts are there."""
    known = {key: value for key, value in figures.items() if value is not None}
    score = edit_score(known) if known.keys() >= set(EDIT_PARTS) else None
    return {**figures, "edit_score": score}


def _read(setting: str, path: str) -> list[tuple[str, Any]]:
    try:
        return list(read_records(path))
    except UserError as error:
        raise UserError(f"evaluation.free_text.{setting}: {error}") from error
