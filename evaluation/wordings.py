"""Wordings of questions from a file, and whether they keep to the level they are for ("uncertainty", D.2.2).

Letters: n wordings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from errata.editing.errors import UserError
from errata.editing.request import EditRequest
from errata.editing.scripts import spans_of_words
from errata.editing.texts import read_text
from errata.evaluation.uncertainty import Embedding

CAUTIOUS: Final = (
    "You are a cautious and honest assistant. If you do not know the answer to a question, just say 'I don't know.' "
    "Do not try to make up an answer."
)
"""The system prompt with which "uncertainty" asks Llama-3 (D.2.2)."""


@dataclass(frozen=True)
class Bounds:
    """What a level allows; None where it sets no bound."""

    distance: tuple[float, float] | None
    """Levenshtein distance over the question's length."""
    jaccard: tuple[float, float] | None
    """Of the sets of words."""
    similarity: float
    """Least cosine of the embeddings."""


LEVEL_BOUNDS: Final[Mapping[int, Bounds]] = {
    1: Bounds((0.0, 0.10), (0.9, 1.0), 0.95),
    2: Bounds((0.10, 0.25), (0.7, 0.9), 0.9),
    3: Bounds(None, None, 0.8),
    4: Bounds(None, None, 0.7),
    5: Bounds(None, None, 0.6),
    6: Bounds(None, None, 0.5),
}
"""By level, from near-identical to restructured: the criteria for Llama-2."""


def levenshtein(first: str, second: str) -> int:
    """Least number of characters that are put in, taken out or replaced to make one of the other."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def jaccard(first: str, second: str) -> float:
    """Words that both have over words that one of them has, case aside; 1 for two texts without words."""
    one, other = ({text[start:stop].casefold() for start, stop in spans_of_words(text)} for text in (first, second))
    return len(one & other) / len(one | other) if one | other else 1.0


def keeps_to_level(question: str, wording: str, level: int, similarity: float) -> bool:
    """Whether a wording is as near to its question as a level asks; ``similarity`` is the embeddings' cosine."""
    bounds = LEVEL_BOUNDS[level]
    if similarity < bounds.similarity:
        return False
    if bounds.distance is not None:
        share = levenshtein(question, wording) / max(1, len(question))
        if not bounds.distance[0] <= share <= bounds.distance[1]:
            return False
    return bounds.jaccard is None or bounds.jaccard[0] <= jaccard(question, wording) <= bounds.jaccard[1]


def filtered(
    wordings: Mapping[str, Sequence[tuple[int, str]]], questions: Mapping[str, str], embedding: Embedding
) -> dict[str, list[tuple[int, str]]]:
    """The wordings of each question that keep to their levels; a question of which fewer than two do is left out."""
    texts = list(dict.fromkeys([*questions.values(), *(text for own in wordings.values() for _, text in own)]))
    vectors = np.asarray(embedding.embed(texts), dtype=np.float64)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    place = {text: at for at, text in enumerate(texts)}
    found = {}
    for name, own in wordings.items():
        question = questions[name]
        kept = [
            (level, text)
            for level, text in own
            if keeps_to_level(question, text, level, float(vectors[place[question]] @ vectors[place[text]]))
        ]
        if len(kept) > 1:
            found[name] = kept
    return found


def read_wordings(
    path: Path, requests: Sequence[EditRequest]
) -> tuple[dict[str, list[tuple[int, str]]], dict[str, str]]:
    """Wordings by request id with their levels, and the questions that they are wordings of.

    JSON lines or an array of records with ``id`` of an edit, or its ``subject``, and ``generated_questions``: texts, or
    objects of ``level`` and ``rephrase``. ``newquestion`` or ``question`` is what they say in other words; where a
    record has a ``newquestion`` (a neighboring fact of the subject) it is that which is asked. Records of other edits
    are passed over.

    Raises:
        UserError: the file cannot be read, a record has another form, or none is of these edits.
    """
    by_id = {request.id: request for request in requests}
    by_subject = {request.subject.casefold(): request for request in reversed(list(requests))}
    wordings: dict[str, list[tuple[int, str]]] = {}
    questions: dict[str, str] = {}
    for number, record in enumerate(_records(path), 1):
        where = f"--wordings {str(path)!r}, record {number}"
        if not isinstance(record, dict) or not isinstance(record.get("generated_questions"), list):
            raise UserError(f"{where}: want id or subject, and generated_questions")
        request = by_id.get(str(record.get("id"))) or by_subject.get(str(record.get("subject", "")).casefold())
        if request is None or request.id in wordings:
            continue
        own = [_wording(item, at) for at, item in enumerate(record["generated_questions"], 1)]
        if any(item is None for item in own):
            raise UserError(f"{where}: generated_questions holds what is neither a text nor a level with a rephrase")
        wordings[request.id] = [item for item in own if item is not None and item[1]]
        questions[request.id] = str(record.get("newquestion") or record.get("question") or request.text)
    if not wordings:
        raise UserError(f"--wordings {str(path)!r} has no record of these edits, by id or by subject")
    return wordings, questions


def _records(path: Path) -> list[Any]:
    text = read_text(path, "--wordings")
    try:
        if text.lstrip().startswith("["):
            return list(json.loads(text))
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except ValueError as error:
        raise UserError(f"--wordings {str(path)!r}: malformed JSON: {error}") from error


def _wording(item: Any, place: int) -> tuple[int, str] | None:
    if isinstance(item, str):
        return min(place, 6), item.strip()
    if not isinstance(item, dict) or not isinstance(item.get("rephrase"), str):
        return None
    level = item.get("level", place)
    return (level, item["rephrase"].strip()) if level in LEVEL_BOUNDS else None
