"""What the arms need of a memory: a statement found, which of them bears on a question, and who decides that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from errata.editing.editors.modules.store import owners_of


class HitLike(Protocol):
    """A statement found in the memory."""

    @property
    def id(self) -> int: ...
    @property
    def score(self) -> float: ...
    @property
    def statement(self) -> str: ...
    @property
    def request_id(self) -> str: ...


class ChoiceLike(Protocol):
    """Which of the statements found bears on a question, if any, and why."""

    @property
    def hit(self) -> HitLike | None: ...
    @property
    def reason(self) -> str: ...


Pieces = Mapping[str, tuple[int, ...]]
"""By question the owners of the pieces that it is answered with, where edits are retrieved."""


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


def pieces_of(routes: Mapping[str, ChoiceLike]) -> dict[str, tuple[int, ...]]:
    """The pieces of the facts that were chosen, by question."""
    return {question: owners_for(route) for question, route in routes.items() if route.hit is not None}


def owners_for(route: ChoiceLike) -> tuple[int, ...]:
    """Owners of the pieces of the fact that was chosen; none where none was."""
    return () if route.hit is None else tuple(owners_of([route.hit.request_id]).tolist())
