"""Evidence that a statement bears on a question: pure functions from text and log-probabilities to scores."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from errata.editing.model.engine import Answer, Continuation

Row = tuple[Sequence[int], Sequence[int]]


class Found(Protocol):
    """A statement found in the memory; ``errata.retrieval.memory.Hit`` is one (and states its subject besides)."""

    @property
    def id(self) -> int: ...
    @property
    def score(self) -> float: ...
    @property
    def statement(self) -> str: ...
    @property
    def request_id(self) -> str: ...


class ScoringEngine(Protocol):
    """What choosing and answering need of an engine; ``errata.editing.model.engine.LanguageEngine`` has it."""

    def score(self, rows: Sequence[Row]) -> list[Continuation]: ...

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int = 12, stop_at_newline: bool = True
    ) -> list[Answer]: ...


@dataclass(frozen=True)
class Candidate:
    """A statement that was considered for a question.

    Attributes:
        id: of the memory entry.
        similarity: cosine of question and statement.
        logprob: mean log-probability of a token of the statement's subject, read after the question; None where
            the model was not asked.
        gain: share of the subject's surprise that the question explains, ``1 - log p(s | q) / log p(s)``: 1 for
            a subject the question names, near 0 for one it does not; None where the model was not asked.
    """

    id: int
    similarity: float
    logprob: float | None = None
    gain: float | None = None


def subject_of(hit: Found) -> str:
    """The subject a statement is about; the whole statement where its subject is not known."""
    subject = getattr(hit, "subject", "")
    return subject if isinstance(subject, str) and subject.strip() else hit.statement


def explained_share(given: Continuation, alone: Continuation) -> float:
    """``1 - log p(s | q) / log p(s)``, at most 1; 0 where the text surprises nobody to begin with."""
    before = sum(alone.logprobs)
    return 1.0 - sum(given.logprobs) / before if before < 0 else 0.0


def numbered_list(statements: Sequence[str]) -> str:
    """The statements as lines ``1. ...``."""
    return "\n".join(f"{number}. {statement}" for number, statement in enumerate(statements, start=1))


_NUMBER = re.compile(r"(?<![\w.])(\d{1,3})(?![\w])")
_NONE = re.compile(r"\b(none|no (?:statement|fact|one)|neither|0)\b", re.IGNORECASE)


def read_number(text: str, count: int) -> tuple[int | None, str]:
    """What a model said when asked for the number of a statement.

    Args:
        text: its answer, possibly junk.
        count: statements listed, numbered from 1.

    Returns:
        (index from 0 or None, why): the first of a number within the list or a word for none decides; an answer
        with neither, or with another number first, chooses nothing.
    """
    number, none = _NUMBER.search(text), _NONE.search(text)
    shown = " ".join(text.split())[:40]
    if none and (number is None or none.start() <= number.start()):
        return None, f"the model answered {shown!r}: none"
    if number is None:
        return None, f"the model's answer {shown!r} names no statement"
    value = int(number[1])
    if not 1 <= value <= count:
        return None, f"the model's answer {shown!r} is outside 1 to {count}"
    return value - 1, f"the model answered {shown!r}"
