"""What one question costs asked alone, by arm."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from torch import Tensor

from errata.editing.model.engine import with_pieces
from errata.editing.modules.pieces import by_choice
from errata.evaluation.arms import ArmEvaluator
from errata.evaluation.choices import TOO_LONG, ChoiceLike, HitLike, Pieces, RouterLike, owners_for
from errata.evaluation.in_context import InContextLike
from errata.evaluation.outcomes import ARMS, MEMORY_ARMS, Arm


def query_seconds(
    evaluator: ArmEvaluator,
    questions: Sequence[str],
    *,
    base: Mapping[int, Tensor],
    edited: Mapping[int, Tensor],
    hits: Mapping[str, Sequence[HitLike]] | None = None,
    arms: Sequence[Arm] | None = None,
    search_seconds: float = 0.0,
    router: RouterLike | None = None,
    in_context: InContextLike | None = None,
) -> dict[Arm, float]:
    """Mean wall seconds of one question asked alone, choosing included, nothing remembered.

    Args:
        questions: a few; each is timed on its own after one warm-up question.
        search_seconds: what embedding and searching cost for one question, measured where it happens.
    """
    if not questions:
        raise ValueError("query_seconds needs at least one question")
    by_question, times = hits or {}, dict[Arm, float]()
    arms = evaluator.asked(arms, router, in_context)
    pieces = evaluator.pieces(questions, base=base, edited=edited, router=router)
    for plain, memory, weights in (("base", "memory", None), ("edited", "edited_memory", edited)):
        pair: tuple[Arm, ...] = tuple(arm for arm in ARMS if arm in (plain, memory) and arm in arms)
        if not pair:
            continue
        with evaluator.loaded(base, edited=weights, digest=None, remember=False):
            for arm in pair:
                _ask_alone(evaluator, questions[0], arm, by_question, pieces, max_new_tokens=1)
                start = time.perf_counter()
                for question in questions:
                    _ask_alone(evaluator, question, arm, by_question, pieces, max_new_tokens=evaluator.max_new_tokens)
                times[arm] = (time.perf_counter() - start) / len(questions)
                if arm in MEMORY_ARMS:
                    times[arm] += search_seconds
    if router is not None and "routed" in arms:
        times["routed"] = search_seconds + _routed_seconds(evaluator, questions, base, edited, router)
    if in_context is not None and "ike" in arms:
        times["ike"] = search_seconds + _shown_seconds(evaluator, questions, base, in_context)
    return times


def _shown_seconds(
    evaluator: ArmEvaluator, questions: Sequence[str], base: Mapping[int, Tensor], in_context: InContextLike
) -> float:
    with evaluator.loaded(base, edited=None, digest=None, remember=False):
        start = time.perf_counter()
        for question in questions:
            shown = in_context.retrieved.get(question)
            ids = evaluator.model.text.encode_prompt(question)
            _generate(evaluator, ids if shown is None else evaluator.shown_ids(shown, question, "")[0])
        return (time.perf_counter() - start) / len(questions)


def _routed_seconds(
    evaluator: ArmEvaluator,
    questions: Sequence[str],
    base: Mapping[int, Tensor],
    edited: Mapping[int, Tensor],
    router: RouterLike,
) -> float:
    """Decision and answer of one question, each where it happens; changing the weights is not counted."""
    total, inside, retrieves = 0.0, list[tuple[str, ChoiceLike]](), by_choice(edited)
    with evaluator.loaded(base, edited=None, digest=None, remember=False):
        router.route([questions[0]])
        for question in questions:
            start = time.perf_counter()
            (route,) = router.route([question])
            if route.hit is not None:
                inside.append((question, route))
            else:
                _generate(evaluator, evaluator.model.text.encode_prompt(question))
            total += time.perf_counter() - start
    with evaluator.loaded(base, edited=None if router.answer == "memory" else edited, digest=None, remember=False):
        for question, route in inside:
            start = time.perf_counter()
            ids = evaluator.routed_ids(question, route, router.answer == "edited")
            if evaluator.model.capacity.problem(evaluator.model.text, ids) is not None:
                ids = evaluator.model.text.encode_prompt(question)  # as it is answered, without the statement
            _generate(evaluator, with_pieces(ids, owners_for(route)) if retrieves else ids)
            total += time.perf_counter() - start
    return total / len(questions)


def _ask_alone(
    evaluator: ArmEvaluator,
    question: str,
    arm: Arm,
    hits: Mapping[str, Sequence[HitLike]],
    pieces: Pieces,
    *,
    max_new_tokens: int,
) -> None:
    if arm in MEMORY_ARMS:
        assert evaluator.chooser is not None
        choice = evaluator.chooser.choose([question], [list(hits.get(question, ()))])[0]
        ids = evaluator.chooser.prompt_ids(question, choice)
        if evaluator.model.capacity.problem(evaluator.model.text, ids) is not None:
            ids = evaluator.chooser.prompt_ids(question, TOO_LONG)
    else:
        ids = evaluator.model.text.encode_prompt(question)
    answered = with_pieces(ids, pieces.get(question, ()) if arm in ("edited", "edited_memory") else ())
    evaluator.engine.generate([answered], max_new_tokens=max_new_tokens, stop_at_newline=evaluator.stop_at_newline)


def _generate(evaluator: ArmEvaluator, ids: Sequence[int]) -> None:
    evaluator.engine.generate([ids], max_new_tokens=evaluator.max_new_tokens, stop_at_newline=evaluator.stop_at_newline)
