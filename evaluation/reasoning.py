"""Reasoning models think aloud before they answer: what is judged is the answer."""

from __future__ import annotations

from pydantic import Field

from errata.editing.closed import Closed


class ReasoningMarks(Closed):
    """What stands around the reasoning of a model."""

    start: str = Field("<think>", min_length=1)
    """Begins it; some chat templates write it themselves, so that it need not be in the text."""
    end: str = Field("</think>", min_length=1)
    """Ends it."""


def answer_part(text: str, marks: ReasoningMarks | None) -> tuple[str, str | None]:
    """A generated text as (answer, reasoning).

    The answer is what follows the last end mark. Reasoning that was begun and never ended has no answer: an empty one,
    which is wrong. A text without marks is an answer without reasoning. Without ``marks`` nothing is told apart, and
    the reasoning is None.
    """
    if marks is None:
        return text, None
    before, end, after = text.rpartition(marks.end)
    if end:
        return after, before.replace(marks.start, "", 1).strip()
    if marks.start in text:
        return "", text.partition(marks.start)[2].strip()
    return text, ""
