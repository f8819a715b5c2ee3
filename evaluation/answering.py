"""Free questions to the arms: what each of them says, what the memory found for it, and what was chosen and why.

Nothing is scored here; `ArmEvaluator` is lent for its engine, its chooser and the loading of weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from errata.editing.model.engine import with_pieces
from errata.editing.modules.pieces import by_choice
from errata.editing.scripts import first_sentence, whole_sentences
from errata.evaluation.arms import ArmEvaluator
from errata.evaluation.choices import TOO_LONG, ChoiceLike, HitLike, NoChoice, Pieces, RouterLike, pieces_of
from errata.evaluation.outcomes import ARMS, MEMORY_ARMS, Arm, Retrieved

_QUESTION_MARKS = ("?", "？", "؟")

Messages = Sequence[Mapping[str, str]]
"""A conversation: ``role`` and ``content`` of each turn, the last one the user's."""


class ChatChooser(Protocol):
    """What conversations need beyond `errata.evaluation.arms.Chooser`."""

    def choose(self, questions: Sequence[str], hits: Sequence[Sequence[HitLike]]) -> Sequence[ChoiceLike]: ...

    def prompt_ids(self, question: str, choice: ChoiceLike) -> list[int]: ...

    def chat_ids(self, messages: Messages, choice: ChoiceLike) -> list[int]:
        """Tokens to answer a conversation from."""
        ...


@dataclass(frozen=True)
class Question:
    """One question; ``text`` is what the memory is asked and, without ``messages``, the sentence to complete."""

    text: str
    messages: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True)
class ArmAnswer:
    """What one arm says to one question; ``text`` ends where a sentence does, if one ends in it at all."""

    text: str
    prompt_tokens: int
    tokens: int
    chosen: Retrieved | None = None
    """Statement it was answered with; None: as without memory."""
    reason: str | None = None
    """Why that was chosen, or nothing was; None in arms without memory."""
    retrieved: tuple[Retrieved, ...] = ()


def answer(
    evaluator: ArmEvaluator,
    chooser: ChatChooser,
    questions: Sequence[Question],
    *,
    base: Mapping[int, Tensor],
    edited: Mapping[int, Tensor],
    hits: Mapping[str, Sequence[HitLike]],
    arms: Sequence[Arm],
    base_digest: str | None = None,
    max_new_tokens: int | None = None,
    router: RouterLike | None = None,
) -> list[dict[Arm, ArmAnswer]]:
    """Ask every arm every question, greedily; the model's weights are left as they were.

    Args:
        base, edited: float32 maps by layer, as for `ArmEvaluator.evaluate`.
        hits: per question text what the memory found, best first; for the memory arms.
        base_digest: names the weights of ``base``, so that their answers are remembered.
        max_new_tokens: end of an answer; the evaluator's by default.
        router: decides for the routed arm.

    Returns:
        Per question the answers by arm, in the order of ``ARMS``.
    """
    by_arm: dict[Arm, list[ArmAnswer]] = {}
    if "routed" in arms:
        if router is None:
            raise ValueError("the arm 'routed' needs a router")
        by_arm["routed"], routes = _ask_routed(
            evaluator, chooser, questions, router, base, edited, hits, base_digest, max_new_tokens
        )
    pieces: Pieces = {}
    if "routed" in arms and by_choice(edited):
        pieces = pieces_of(routes)
    elif {"edited", "edited_memory"} & set(arms):
        texts = [question.text for question in questions]
        pieces = evaluator.pieces(texts, base=base, edited=edited, router=router, digest=base_digest)
    for pair, weights in ((("base", "memory"), None), (("edited", "edited_memory"), edited)):
        wanted: list[Arm] = [arm for arm in ARMS if arm in pair and arm in arms]
        if not wanted:
            continue
        with evaluator.loaded(base, edited=weights, digest=base_digest, remember=weights is None):
            for arm in wanted:
                own = pieces if weights is not None else {}
                by_arm[arm] = _ask(evaluator, chooser, questions, arm, hits, max_new_tokens, own)
    return [{arm: by_arm[arm][i] for arm in ARMS if arm in by_arm} for i in range(len(questions))]


def _ask_routed(
    evaluator: ArmEvaluator,
    chooser: ChatChooser,
    questions: Sequence[Question],
    router: RouterLike,
    base: Mapping[int, Tensor],
    edited: Mapping[int, Tensor],
    hits: Mapping[str, Sequence[HitLike]],
    base_digest: str | None,
    max_new_tokens: int | None,
) -> tuple[list[ArmAnswer], dict[str, ChoiceLike]]:
    """Out of scope the base's own answer, in scope that with the statement; both in one batch of their weights.

    The second is what was decided, by question.
    """
    by_place: dict[int, ArmAnswer] = {}

    def say(places: Sequence[int], routes: Sequence[ChoiceLike], pieces: Pieces) -> None:
        told: list[ChoiceLike] = [NoChoice() if router.answer == "edited" else routes[i] for i in places]
        asked = [questions[i] for i in places]
        near = [list(hits.get(question.text, ())) for question in asked]
        said = [routes[i] for i in places]
        answers = _generate(evaluator, chooser, asked, told, near, max_new_tokens, pieces, said=said)
        by_place.update(zip(places, answers, strict=True))

    texts = [question.text for question in questions]
    with evaluator.loaded(base, edited=None, digest=base_digest):
        routes = list(router.route(texts))
        by_text = dict(zip(texts, routes, strict=True))
        outside = [i for i, route in enumerate(routes) if route.hit is None]
        inside = [i for i, route in enumerate(routes) if route.hit is not None]
        say(outside, routes, {})
        if router.answer == "memory":
            say(inside, routes, {})
    if router.answer != "memory" and inside:
        with evaluator.loaded(base, edited=edited, digest=base_digest, remember=False):
            say(inside, routes, pieces_of(by_text) if by_choice(edited) else {})
    return [by_place[i] for i in range(len(questions))], by_text


def _ask(
    evaluator: ArmEvaluator,
    chooser: ChatChooser,
    questions: Sequence[Question],
    arm: Arm,
    hits: Mapping[str, Sequence[HitLike]],
    max_new_tokens: int | None,
    pieces: Pieces,
) -> list[ArmAnswer]:
    near = [list(hits.get(question.text, ())) for question in questions]
    remembers = arm in MEMORY_ARMS
    choices: Sequence[ChoiceLike]
    choices = chooser.choose([question.text for question in questions], near) if remembers else [NoChoice()] * len(near)
    return _generate(
        evaluator, chooser, questions, choices, near, max_new_tokens, pieces, said=choices if remembers else None
    )


def _generate(
    evaluator: ArmEvaluator,
    chooser: ChatChooser,
    questions: Sequence[Question],
    told: Sequence[ChoiceLike],
    near: Sequence[Sequence[HitLike]],
    max_new_tokens: int | None,
    pieces: Pieces,
    *,
    said: Sequence[ChoiceLike] | None,
) -> list[ArmAnswer]:
    """Answer with the live weights; ``told`` makes the prompts, ``said`` is what the answers say was chosen, if any.

    A statement for which the model has no room is left out, and the answer says so.
    """
    if not questions:
        return []
    prompts: list[Sequence[int]] = []
    used: list[ChoiceLike | None] = []
    for place, (question, choice) in enumerate(zip(questions, told, strict=True)):
        ids, choice_used = prompt_with_room(evaluator, chooser, question, choice)
        prompts.append(with_pieces(ids, pieces.get(question.text, ())))
        used.append(None if said is None else said[place] if choice_used is choice else choice_used)
    chat = any(question.messages for question in questions)
    limit = max_new_tokens or evaluator.max_new_tokens
    replies = evaluator.engine.generate(
        prompts,
        max_new_tokens=limit,
        stop_at_newline=evaluator.stop_at_newline and not chat,
    )
    return [
        ArmAnswer(
            _ended(reply.text.strip(), question, cut=len(reply.ids) >= limit),
            len(prompt),
            len(reply.ids),
            _plain(choice.hit) if choice is not None else None,
            choice.reason if choice is not None else None,
            tuple(kept for hit in row if (kept := _plain(hit)) is not None) if choice is not None else (),
        )
        for reply, prompt, choice, row, question in zip(replies, prompts, used, near, questions, strict=True)
    ]


def prompt_with_room(
    evaluator: ArmEvaluator, chooser: ChatChooser, question: Question, choice: ChoiceLike
) -> tuple[list[int], ChoiceLike]:
    """Tokens to answer from, and the choice that they were made with: none where its statement leaves no room."""

    def tokens(made_with: ChoiceLike) -> list[int]:
        if question.messages:
            return chooser.chat_ids(question.messages, made_with)
        return chooser.prompt_ids(question.text, made_with)

    ids, model = tokens(choice), evaluator.model
    if choice.hit is not None and model.capacity.problem(model.text, ids) is not None:
        return tokens(TOO_LONG), TOO_LONG
    return ids, choice


def _ended(text: str, question: Question, *, cut: bool) -> str:
    """An answer up to the end of a sentence.

    A sentence that was to be completed is complete at its first end; what a model says behind it, a worked example of
    the memory's prompt perhaps, is no part of the answer. A reply is given whole, without the sentence that the limit
    has ``cut``.
    """
    if not question.messages and not question.text.rstrip().endswith(_QUESTION_MARKS):
        return first_sentence(text)
    return whole_sentences(text) if cut else text


def _plain(hit: HitLike | None) -> Retrieved | None:
    return None if hit is None else Retrieved(hit.id, float(hit.score), hit.statement)
