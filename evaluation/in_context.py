"""The arms of in-context editing: demonstrations, the fact and the question as one prompt to the unedited weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from errata.editing.model.capacity import Capacity
from errata.editing.model.text import TextCodec
from errata.evaluation.choices import HitLike


class ShownLike(Protocol):
    """What stands before a question."""

    @property
    def hit(self) -> HitLike: ...
    @property
    def demonstrations(self) -> Sequence[str]:
        """Worked examples, the nearest last."""
        ...


class InContextLike(Protocol):
    """What the arms `ike` and `ike_oracle` are shown; a question that is absent is asked plainly."""

    @property
    def retrieved(self) -> Mapping[str, ShownLike]:
        """By question."""
        ...

    @property
    def oracle(self) -> Mapping[tuple[str, str], ShownLike]:
        """By request and question."""
        ...


@dataclass(frozen=True)
class Told:
    """The statement that a question was asked with, and how many demonstrations went before it."""

    hit: HitLike
    reason: str


def told(shown: ShownLike, question: str, text: TextCodec, capacity: Capacity, room: int) -> tuple[list[int], Told]:
    """Tokens to answer from. Where they leave no ``room`` for the answer, the farthest demonstrations are left out;
    that fact and question alone do not fit is for the caller to find."""
    fact = f"New Fact: {shown.hit.statement.strip()}\nPrompt: {question}"
    examples = list(shown.demonstrations)
    for left_out in range(len(examples) + 1):
        ids = text.encode_prompt("".join(examples[left_out:]) + fact)
        if capacity.problem(text, ids, reserved=room) is None:
            break
    return ids, Told(shown.hit, f"told behind {len(examples) - left_out} of {len(examples)} demonstrations")
