"""A version whose edits are retrieved, put to every arm: each question gets the pieces chosen for it, and no others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch

from errata.editing.model.engine import LanguageEngine, with_pieces
from errata.editing.model.streaming import Sampling
from errata.editing.modules.packed import EMPTY
from errata.editing.request import EditRequest
from errata.editing.session import EditSession
from errata.evaluation.answering import Question, answer
from errata.evaluation.arms import ArmEvaluator
from errata.evaluation.question_times import query_seconds
from errata.evaluation.streaming import ArmStream
from tests.unit.editing.editors.common import batch
from tests.unit.editing.editors.test_grace import UNRELATED
from tests.unit.editing.editors.test_retrieved import EDITS, session
from tests.unit.evaluation.fakes import FakeChoice, FakeHit, KeywordChooser


@dataclass
class BySubject:
    """Chooses the edit whose subject the question names."""

    answer: Literal["edited_memory", "memory", "edited"]

    def route(self, questions: Sequence[str]) -> list[FakeChoice]:
        found = []
        for question in questions:
            named = [r for r in EDITS if r.subject in question]
            hit = FakeHit(1, 0.9, named[0].statement, named[0].id) if named else None
            found.append(FakeChoice(hit, "named" if hit else "nobody named"))
        return found


@pytest.fixture(scope="module")
def live() -> EditSession:
    made = session("memit")
    made.apply(batch(1, *EDITS))
    return made


def by_hand(live: EditSession, prompt: list[int], request: EditRequest | None, base: dict[int, Any]) -> str:
    """What the version says with one edit's pieces, asked alone."""
    model = live.model
    with model.patched(live.editor.layers):
        model.set_weights(live.weights() if request is not None else base)
        ids = prompt if request is None else with_pieces(prompt, live.editor.pieces_for(request))
        return LanguageEngine(model).generate([ids], max_new_tokens=4)[0].text


@pytest.mark.parametrize("told", ["edited", "edited_memory", "memory"])
def test_every_arm_hears_the_edit_that_was_chosen(
    live: EditSession, told: Literal["edited", "edited_memory", "memory"]
) -> None:
    model, base = live.model, dict.fromkeys(live.editor.layers, EMPTY)
    requests = [r.model_copy(update={"paraphrases": (f"{UNRELATED[0]} {n}",)}) for n, r in enumerate(EDITS)]
    evaluator = ArmEvaluator(model, KeywordChooser(model.text), max_new_tokens=4)
    hits = {r.text: [FakeHit(1, 0.9, r.statement, r.id)] for r in EDITS}
    found = evaluator.evaluate(requests, base=base, edited=live.weights(), hits=hits, router=BySubject(told))
    for record, request in zip(found.records, EDITS, strict=True):
        own, other = record.probes
        prompt = model.text.encode_prompt(request.text)
        assert own.arms["edited"].answer == by_hand(live, prompt, request, base).strip()
        assert own.arms["routed"].answer == own.arms[told].answer
        assert {other.arms[arm].answer for arm in ("base", "edited", "routed")} == {other.arms["base"].answer}
    times = query_seconds(evaluator, [EDITS[0].text], base=base, edited=live.weights(), router=BySubject(told))
    assert set(times) >= {"edited", "routed"}


def test_free_questions_and_streams_give_the_same_answer(live: EditSession) -> None:
    model, base = live.model, dict.fromkeys(live.editor.layers, EMPTY)
    chooser = KeywordChooser(model.text)
    evaluator = ArmEvaluator(model, chooser, max_new_tokens=4)
    questions = [Question(EDITS[1].text), Question(UNRELATED[0])]
    router, edited = BySubject("edited"), live.weights()
    said = answer(
        evaluator, chooser, questions, base=base, edited=edited, hits={}, arms=("base", "edited", "routed"),
        max_new_tokens=4, router=router,
    )  # fmt: skip
    spoken = by_hand(live, model.text.encode_prompt(EDITS[1].text), EDITS[1], base)
    assert said[0]["routed"].text == said[0]["edited"].text and spoken.strip().startswith(said[0]["edited"].text)
    assert said[1]["routed"].text == said[1]["edited"].text == said[1]["base"].text
    for arm in ("edited", "routed"):
        stream = ArmStream(
            evaluator, chooser, questions[0], arm, Sampling(4), base=base, edited=edited, hits={}, router=router
        )
        assert stream.next(4).text.strip().startswith(said[0]["edited"].text)
    assert all(torch.equal(model.weight(n), edited[n]) for n in live.editor.layers), "left as it was found"


def test_pieces_without_a_router_are_refused(live: EditSession) -> None:
    base = dict.fromkeys(live.editor.layers, EMPTY)
    with pytest.raises(ValueError, match="need a router"):
        ArmEvaluator(live.model).evaluate(EDITS, base=base, edited=live.weights(), arms=("base", "edited"))
