"""One free question to one arm, answered token by token: the decision first, then pieces of text as they come."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import count

from torch import Tensor

from errata.editing.errors import ErrataError
from errata.editing.model.engine import with_pieces
from errata.editing.model.streaming import Sampling, TokenStream
from errata.editing.modules.pieces import by_choice
from errata.evaluation.answering import ChatChooser, Question, prompt_with_room
from errata.evaluation.arms import ArmEvaluator
from errata.evaluation.choices import ChoiceLike, HitLike, NoChoice, RouterLike, owners_for
from errata.evaluation.outcomes import MEMORY_ARMS, Arm, Retrieved


@dataclass(frozen=True)
class Opened:
    """What an answer will rest on, known before its first token."""

    arm: Arm
    edited: bool
    """Whether the edited weights speak."""
    prompt_tokens: int
    chosen: Retrieved | None = None
    reason: str | None = None
    """Why that was chosen, or nothing was; None in arms without memory."""


@dataclass(frozen=True)
class TextPiece:
    """What came since the piece before; ``finish`` is ``stop`` or ``length`` with the last one."""

    text: str
    tokens: int
    finish: str | None = None


class ArmStream:
    """An answer under way. The version is held: whatever is committed meanwhile, its weights go on speaking."""

    def __init__(
        self,
        evaluator: ArmEvaluator,
        chooser: ChatChooser,
        question: Question,
        arm: Arm,
        sampling: Sampling,
        *,
        base: Mapping[int, Tensor],
        edited: Mapping[int, Tensor],
        hits: Mapping[str, Sequence[HitLike]],
        router: RouterLike | None = None,
        plain: bool = False,
    ) -> None:
        """Decide, and run the prompt.

        Args:
            base, edited: float32 maps by layer, as for `ArmEvaluator.evaluate`.
            hits: what the memory found for the question, for the memory arms.
            router: decides for the routed arm.
            plain: the answer is continued text, so its leading space belongs to it.

        Raises:
            ValueError: the routed arm without a router.
        """
        self._evaluator, self._base = evaluator, base
        choice, ends_edited, told = self._decide(chooser, question, arm, edited, hits, router)
        owners: tuple[int, ...] = ()
        if arm == "routed" and ends_edited and by_choice(edited):
            owners = owners_for(choice)
        elif ends_edited:
            pieces = evaluator.pieces([question.text], base=base, edited=edited, router=router)
            owners = pieces.get(question.text, ())
        self._edited = edited if ends_edited else None
        ids, used = prompt_with_room(evaluator, chooser, question, told)
        choice = choice if used is told else used
        with self._live():
            self._stream = TokenStream(evaluator.engine, with_pieces(ids, owners), sampling)
        self._begun = plain
        self.opened = Opened(
            arm,
            ends_edited,
            len(ids),
            Retrieved(choice.hit.id, float(choice.hit.score), choice.hit.statement) if choice.hit is not None else None,
            choice.reason if arm in MEMORY_ARMS else None,
        )

    def _decide(
        self,
        chooser: ChatChooser,
        question: Question,
        arm: Arm,
        edited: Mapping[int, Tensor],
        hits: Mapping[str, Sequence[HitLike]],
        router: RouterLike | None,
    ) -> tuple[ChoiceLike, bool, ChoiceLike]:
        """What was chosen, whether the edited weights answer, and what the prompt tells."""
        if arm == "routed":
            if router is None:
                raise ValueError("the arm 'routed' needs a router")
            with self._evaluator.loaded(self._base, edited=None, digest=None, remember=False):
                (route,) = router.route([question.text])
            ends_edited = route.hit is not None and router.answer != "memory"
            return route, ends_edited, NoChoice() if router.answer == "edited" else route
        ends_edited = arm in ("edited", "edited_memory")
        if arm not in MEMORY_ARMS:
            return NoChoice(), ends_edited, NoChoice()
        with self._evaluator.loaded(self._base, edited=edited if ends_edited else None, digest=None, remember=False):
            (choice,) = chooser.choose([question.text], [list(hits.get(question.text, ()))])
        return choice, ends_edited, choice

    def _live(self) -> AbstractContextManager[None]:
        return self._evaluator.loaded(self._base, edited=self._edited, digest=None, remember=False)

    def next(self, tokens: int) -> TextPiece:
        """Up to so many tokens more, in one go."""
        before, parts = len(self._stream.ids), []
        with self._live():
            for _ in range(tokens):
                parts.append(self._stream.step())
                if self._stream.finish is not None:
                    break
        text = "".join(parts)
        if not self._begun:  # a chat's answer begins with its first word
            text = text.lstrip()
            self._begun = bool(text)
        return TextPiece(text, len(self._stream.ids) - before, self._stream.finish)


class OpenStreams:
    """Answers under way in one process, by number. Those that nobody has asked for a while are dropped."""

    def __init__(self, *, idle_seconds: float = 120.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._idle, self._clock = idle_seconds, clock
        self._numbers = count(1)
        self._open: dict[int, tuple[ArmStream, float]] = {}

    def __len__(self) -> int:
        """How many are under way."""
        return len(self._open)

    def add(self, stream: ArmStream) -> int:
        """Keep one; returns its number."""
        now = self._clock()
        for number in [n for n, (_, used) in self._open.items() if now - used > self._idle]:
            del self._open[number]
        number = next(self._numbers)
        self._open[number] = stream, now
        return number

    def next(self, number: int, tokens: int) -> TextPiece:
        """Up to so many tokens more of one.

        Raises:
            ErrataError: it has ended, was closed, or was dropped.
        """
        if number not in self._open:
            raise ErrataError(f"answer {number} is not under way here")
        stream, _ = self._open[number]
        piece = stream.next(tokens)
        if piece.finish is not None:
            del self._open[number]
        else:
            self._open[number] = stream, self._clock()
        return piece

    def close(self, number: int) -> None:
        """Forget one, if it is still under way."""
        self._open.pop(number, None)
