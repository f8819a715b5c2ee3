"""Free questions to the four arms, on a tiny model and against the engine asked by hand."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from errata.editing.model.adapter import EditableModel
from errata.editing.model.engine import Answer
from errata.editing.scripts import first_sentence
from errata.evaluation.answering import Question, answer
from errata.evaluation.arms import ArmEvaluator
from errata.evaluation.caching import CachingEngine
from errata.evaluation.outcomes import ARMS
from errata.retrieval.scr import Choice, ScrConfig, SelectiveReasoner
from tests.helpers.tiny import tiny_model

LAYER = 1
PLAIN_ARMS = tuple(arm for arm in ARMS if arm != "routed")


@dataclass(frozen=True)
class Hit:
    id: int
    score: float
    statement: str
    subject: str = "France"
    request_id: str = ""


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return tiny_model("llama", layers=3)


def parts(model: EditableModel, **scr: object) -> tuple[ArmEvaluator, SelectiveReasoner]:
    engine = CachingEngine(model)
    reasoner = SelectiveReasoner(engine, model.text, ScrConfig(**scr))  # type: ignore[arg-type]
    return ArmEvaluator(model, reasoner, engine=engine, max_new_tokens=4, stop_at_newline=False), reasoner


def edited_maps(model: EditableModel) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    weight = model.weight(LAYER)
    return {LAYER: weight + torch.randn(weight.shape, generator=generator)}


def by_hand(model: EditableModel, ids: list[int], weights: dict[int, torch.Tensor]) -> str:
    with model.patched([LAYER]):
        model.set_weights(weights)
        reply = CachingEngine(model).generate([ids], max_new_tokens=4, stop_at_newline=False)[0]
        return first_sentence(reply.text.strip())


def test_every_arm_says_what_its_weights_and_its_prompt_give(model: EditableModel) -> None:
    evaluator, reasoner = parts(model, min_gain=-1e9, style="prefix")
    base, edited = {LAYER: model.weight(LAYER).clone()}, edited_maps(model)
    question = "The capital of France is"
    hits = {question: [Hit(7, 0.8, "The capital of France is Rome.")]}
    (found,) = answer(evaluator, reasoner, [Question(question)], base=base, edited=edited, hits=hits, arms=PLAIN_ARMS)
    plain = model.text.encode_prompt(question)
    told = model.text.encode_prompt(f"Fact: The capital of France is Rome.\n{question}")
    assert list(found) == list(PLAIN_ARMS)
    assert found["base"].text == by_hand(model, plain, base)
    assert found["edited"].text == by_hand(model, plain, edited)
    assert found["memory"].text == by_hand(model, told, base)
    assert found["edited_memory"].text == by_hand(model, told, edited)
    assert found["base"].text != found["edited"].text
    assert found["memory"].chosen is not None and found["memory"].chosen.id == 7
    assert found["memory"].reason and found["base"].reason is None and found["base"].retrieved == ()
    assert found["base"].prompt_tokens == len(plain) and found["memory"].prompt_tokens == len(told)
    assert torch.equal(model.weight(LAYER), base[LAYER]), "the weights are as they were"


def test_with_nothing_chosen_the_memory_arm_is_the_plain_one(model: EditableModel) -> None:
    evaluator, reasoner = parts(model)
    base, edited = {LAYER: model.weight(LAYER).clone()}, edited_maps(model)
    asked = [Question("Rome lies in"), Question("Angola is located in")]
    hits = {"Rome lies in": [Hit(1, 0.01, "Something else.")]}
    for found in answer(evaluator, reasoner, asked, base=base, edited=edited, hits=hits, arms=PLAIN_ARMS):
        assert found["memory"].text == found["base"].text and found["memory"].chosen is None
        assert found["edited_memory"].text == found["edited"].text
        assert found["memory"].reason


def test_only_the_arms_asked_for_answer_and_what_is_edited_is_never_remembered(model: EditableModel) -> None:
    evaluator, reasoner = parts(model)
    base, edited = {LAYER: model.weight(LAYER).clone()}, edited_maps(model)
    asked = [Question("The capital of France is")]

    def ask(weights: dict[int, torch.Tensor]) -> str:
        (found,) = answer(evaluator, reasoner, asked, base=base, edited=weights, hits={}, arms=["edited"])
        assert list(found) == ["edited"]
        return found["edited"].text

    assert ask(edited) == by_hand(model, model.text.encode_prompt(asked[0].text), edited)
    assert ask(base) == by_hand(model, model.text.encode_prompt(asked[0].text), base)


def test_a_conversation_goes_through_the_chat_template_with_the_statement_in_its_last_turn(
    model: EditableModel,
) -> None:
    evaluator, reasoner = parts(model, min_gain=-1e9)
    base = {LAYER: model.weight(LAYER).clone()}
    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is Rome?"})
    hits = {"Where is Rome?": [Hit(2, 0.9, "Rome lies in Canada.")]}
    (found,) = answer(
        evaluator,
        reasoner,
        [Question("Where is Rome?", messages)],
        base=base,
        edited=base,
        hits=hits,
        arms=["base", "memory"],
        max_new_tokens=3,
    )
    plain = model.text.encode_chat([dict(message) for message in messages])
    assert found["base"].prompt_tokens == len(plain) and found["base"].tokens <= 3
    told = reasoner.chat_ids(messages, reasoner.choose(["Where is Rome?"], [hits["Where is Rome?"]])[0])
    text = model.text.decode(told)
    assert (
        "Be brief." in text and "Rome lies in Canada." in text and text.index("Canada") < text.index("Where is Rome?")
    )
    assert found["memory"].prompt_tokens == len(told)


class NamesRouter:
    def __init__(self, answer: str) -> None:
        self.answer = answer

    def route(self, questions):  # type: ignore[no-untyped-def]
        hit = Hit(7, 0.8, "The capital of France is Rome.")
        return [Choice(hit if "France" in question else None, "by name") for question in questions]


@pytest.mark.parametrize("way", ["edited_memory", "memory", "edited"])
def test_the_routed_arm_answers_out_of_scope_as_the_base_and_in_scope_as_it_is_told(
    model: EditableModel, way: str
) -> None:
    evaluator, reasoner = parts(model, style="prefix")
    base, edited = {LAYER: model.weight(LAYER).clone()}, edited_maps(model)
    asked = [Question("Rome lies in"), Question("The capital of France is"), Question("Angola is")]
    found = answer(
        evaluator, reasoner, asked, base=base, edited=edited, hits={}, arms=("routed",), router=NamesRouter(way)
    )
    for question, said in zip(asked, found, strict=True):
        plain, routed = model.text.encode_prompt(question.text), said["routed"]
        assert list(said) == ["routed"] and routed.reason == "by name"
        if "France" not in question.text:
            assert routed.text == by_hand(model, plain, base) and routed.chosen is None
            continue
        told = model.text.encode_prompt(f"Fact: The capital of France is Rome.\n{question.text}")
        assert routed.text == by_hand(model, plain if way == "edited" else told, base if way == "memory" else edited)
        assert routed.chosen is not None and routed.chosen.id == 7
    with pytest.raises(ValueError, match="needs a router"):
        answer(evaluator, reasoner, asked, base=base, edited=edited, hits={}, arms=("routed",))


class Talking:
    """An engine whose model says the same to everything."""

    def __init__(self, text: str, tokens: int) -> None:
        self.said = Answer(text, tuple(range(tokens)))

    def generate(self, prompts, *, max_new_tokens, stop_at_newline):
        return [self.said] * len(prompts)


@pytest.mark.parametrize(
    ("question", "said", "tokens", "text"),
    [
        (Question("Ann was born in"), " France. The birthplace of Fred", 4, "France."),
        (Question("Ann was born in"), " France", 4, "France"),
        (Question("Where was Ann born?"), " In France. Or so they say. The birthpl", 4, "In France. Or so they say."),
        (Question("Where was Ann born?"), " In France. Or so they say", 3, "In France. Or so they say"),
        (Question("Go on", ({"role": "user", "content": "Go on"},)), " One. Two. Thr", 4, "One. Two."),
    ],
)
def test_an_answer_ends_where_a_sentence_does(
    model: EditableModel, question: Question, said: str, tokens: int, text: str
) -> None:
    """What the worked examples of the memory's prompt have left in a small model comes behind that."""
    evaluator, reasoner = parts(model)
    evaluator.engine = Talking(said, tokens)  # type: ignore[assignment]
    base = {LAYER: model.weight(LAYER).clone()}
    (found,) = answer(evaluator, reasoner, [question], base=base, edited=base, hits={}, arms=["base", "memory"])
    assert found["base"].text == found["memory"].text == text
    assert found["base"].tokens == tokens, "what was generated is counted"
