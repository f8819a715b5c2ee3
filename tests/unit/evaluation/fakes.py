"""A memory and a chooser simple enough to be checked by eye."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from errata.editing.model.text import TextCodec
from errata.evaluation.choices import ChoiceLike, HitLike


@dataclass(frozen=True)
class FakeHit:
    id: int
    score: float
    statement: str
    request_id: str = ""


@dataclass(frozen=True)
class FakeChoice:
    hit: HitLike | None
    reason: str


@dataclass
class KeywordChooser:
    """Chooses the first statement that shares its first word with the question."""

    text: TextCodec
    chat: bool = False
    asked: list[str] = field(default_factory=list)

    def choose(self, questions: Sequence[str], hits: Sequence[Sequence[HitLike]]) -> list[ChoiceLike]:
        self.asked += questions
        found: list[ChoiceLike] = []
        for question, candidates in zip(questions, hits, strict=True):
            match = next((hit for hit in candidates if hit.statement.split()[0] in question.split()), None)
            found.append(FakeChoice(match, "shares its subject" if match else "no statement fits"))
        return found

    def prompt_ids(self, question: str, choice: ChoiceLike) -> list[int]:
        if choice.hit is None:
            return self.text.encode_prompt(question)
        if self.chat:
            return self.text.encode_prompt(f"user: {choice.hit.statement} {question}\nassistant:\n")
        return self.text.encode_prompt(f"{choice.hit.statement} {question}")
