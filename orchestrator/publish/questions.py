"""What a server is asked before clients are: a sample of the edited facts, and of facts that no edit touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from errata.evaluation.matching import contains
from errata.evaluation.metrics import locality_exact
from errata.orchestrator.history.log import History
from errata.orchestrator.journal.reading import JournalReader
from errata.orchestrator.journal.rows import Version

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Questions:
    """Prompts that are continued."""

    edited: tuple[tuple[str, str], ...]
    """(prompt, what the version was edited to say)."""
    untouched: tuple[tuple[str, str], ...]
    """(prompt, true answer) of facts beside them: to be answered as the base does, or with the truth."""


@dataclass(frozen=True, slots=True)
class Marks:
    """Shares of right answers; None where nothing was asked."""

    edited: float | None
    untouched: float | None

    def pass_(self, min_edited: float, min_untouched: float) -> bool:
        """Whether both reach their limit."""
        enough = self.edited is None or self.edited >= min_edited
        return enough and (self.untouched is None or self.untouched >= min_untouched)

    def __str__(self) -> str:
        shown = {"edited": self.edited, "untouched": self.untouched}
        return ", ".join(f"{name} {'not asked' if share is None else f'{share:.0%}'}" for name, share in shown.items())


def choose_questions(journal: JournalReader, version: Version, count: int) -> Questions:
    """Evenly over the facts that the version holds, the newest among them; their neighbors as untouched facts.

    Args:
        count: most questions of each kind.
    """
    held = [row.request for row in History(journal).held(version.sequence).values()]
    edited = [(request.text, request.target_new) for request in held]
    asked = {prompt for prompt, _ in edited}
    neighbors = {probe.prompt: probe.answer for request in held for probe in request.neighborhood}
    untouched = [(prompt, answer) for prompt, answer in neighbors.items() if prompt not in asked]
    return Questions(tuple(spread(edited, count)), tuple(spread(untouched, count)))


def spread(items: Sequence[_T], count: int) -> list[_T]:
    """At most ``count`` items, evenly from the first to the last."""
    if len(items) <= count:
        return list(items)
    if count == 1:
        return [items[-1]]
    return [items[i * (len(items) - 1) // (count - 1)] for i in range(count)]


def mark(questions: Questions, edited: Sequence[str], untouched: Sequence[str], plain: Sequence[str]) -> Marks:
    """Grade answers to the questions, in their order.

    Args:
        plain: the base's answers to the untouched ones.
    """
    right = [contains(answer, [target]) for answer, (_, target) in zip(edited, questions.edited, strict=True)]
    same = [
        locality_exact(answer, before) or contains(answer, [true])
        for answer, before, (_, true) in zip(untouched, plain, questions.untouched, strict=True)
    ]
    return Marks(_share(right), _share(same))


def _share(hits: Sequence[bool]) -> float | None:
    return sum(hits) / len(hits) if hits else None
