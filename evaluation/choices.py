"""What the arms need of a memory: a statement found, which of them bears on a question, and who decides that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


class HitLike(Protocol):
    """A statement found in the memory."""

    @property
    def id(self) -> int: ...
    @property
    def score(self) -> float: ...
    @property
    def statement(self) -> str: ...


class ChoiceLike(Protocol):
    """Which of the statements found bears on a question, if any, and why."""

    @property
    def hit(self) -> HitLike | None: ...
    @property
    def reason(self) -> str: ...


class Chooser(Protocol):
    """Selective contextual reasoning, with whatever weights the model has at the moment."""

    def choose(self, questions: Sequence[str], hits: Sequence[Sequence[HitLike]]) -> Sequence[ChoiceLike]:
        """One choice a question."""
        ...

    def prompt_ids(self, question: str, choice: ChoiceLike) -> list[int]:
        """Tokens to answer from: with the chosen statement, or the plain prompt where none was chosen."""
        ...


class RouterLike(Protocol):
    """Decides which questions a statement bears on."""

    @property
    def answer(self) -> Literal["edited_memory", "memory", "edited"]:
        """What answers a question in scope."""
        ...

    def route(self, questions: Sequence[str]) -> Sequence[ChoiceLike]:
        """One decision a question, taken while the unedited weights are live."""
        ...


@dataclass(frozen=True)
class NoChoice:
    """No statement is given with the question."""

    reason: str = ""
    hit: HitLike | None = None


TOO_LONG = NoChoice("the statement and the question together are longer than the model's context")
NO_FACT = NoChoice("the memory holds no fact to tell")
