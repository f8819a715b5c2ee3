"""The arms of in-context editing against a plain pass over demonstrations, fact and question."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from errata.editing.model.adapter import EditableModel
from errata.editing.model.capacity import Capacity
from errata.editing.request import EditRequest
from errata.evaluation.arms import ArmEvaluator
from errata.evaluation.in_context import told
from errata.evaluation.question_times import query_seconds
from tests.helpers.tiny import tiny_model
from tests.unit.evaluation.fakes import FakeHit
from tests.unit.evaluation.test_arms import LAYERS, slow_reply, weights

NEIGHBOR = "The capital of France is"
DEMONSTRATIONS = (
    "New Fact: Rome lies in Angola.\nPrompt: Rome lies in Angola\n\n",
    "New Fact: Rome lies in Angola.\nPrompt: Paris lies in France\n\n",
)


def request(subject: str, target: str) -> EditRequest:
    return EditRequest(
        id=f"r-{subject}",
        subject=subject,
        prompt="The mother tongue of {} is",
        target_new=target,
        paraphrases=(f"{subject} speaks",),
        neighborhood=({"prompt": NEIGHBOR, "answer": "Paris"},),  # type: ignore[arg-type]
    )


REQUESTS = [request("Danielle", "Italian"), request("Thierry", "football")]
FACTS = {one.id: FakeHit(number, 0.4, one.statement) for number, one in enumerate(REQUESTS)}


@dataclass(frozen=True)
class FakeShown:
    hit: FakeHit
    demonstrations: tuple[str, ...] = DEMONSTRATIONS


@dataclass(frozen=True)
class FakeInContext:
    retrieved: dict[str, FakeShown] = field(default_factory=dict)
    oracle: dict[tuple[str, str], FakeShown] = field(default_factory=dict)


def everything() -> FakeInContext:
    """The memory finds Thierry's fact for the neighbor and nothing for Danielle's paraphrase."""
    asked = {(one.id, text) for one in REQUESTS for text in (one.text, *one.paraphrases, NEIGHBOR)}
    retrieved = {one.text: FakeShown(FACTS[one.id]) for one in REQUESTS}
    retrieved |= {"Thierry speaks": FakeShown(FACTS["r-Thierry"]), NEIGHBOR: FakeShown(FACTS["r-Thierry"])}
    return FakeInContext(retrieved, {pair: FakeShown(FACTS[pair[0]]) for pair in asked})


@pytest.fixture
def model() -> EditableModel:
    return tiny_model("llama", layers=3)


def test_both_arms_equal_plain_passes_of_the_unedited_weights(model: EditableModel) -> None:
    base, edited = weights(model, None), weights(model, 1)
    arms: Any = ("base", "edited", "ike", "ike_oracle")
    shown = everything()
    got = ArmEvaluator(model).evaluate(REQUESTS, base=base, edited=edited, arms=arms, in_context=shown)
    assert got.arms == arms
    model.set_weights(base)
    neighbors = set()
    for record in got.records:
        for result in record.probes:
            question = result.probe.prompt
            for arm, one in (
                ("ike", shown.retrieved.get(question)),
                ("ike_oracle", shown.oracle[record.request_id, question]),
            ):
                outcome = result.arms[arm]  # type: ignore[index]
                if one is None:
                    assert replace(outcome, reason=None, retrieved=()) == result.arms["base"]
                    assert outcome.reason == "the memory holds no fact to tell"
                    continue
                prompt = "".join(DEMONSTRATIONS) + f"New Fact: {one.hit.statement}\nPrompt: {question}"
                target = model.text.encode_target(result.probe.teacher or "")
                accuracy, answer, _ = slow_reply(model, model.text.encode_prompt(prompt), target)
                assert (outcome.accuracy, outcome.answer) == (pytest.approx(accuracy), answer)
                assert outcome.chosen == one.hit.statement
                assert outcome.reason == "told behind 2 of 2 demonstrations"
            if question == NEIGHBOR:
                neighbors.add(result.arms["ike_oracle"].chosen)
    # one question of two facts: each is told its own
    assert neighbors == {one.statement for one in REQUESTS}


def test_without_edits_the_bytes_are_the_bases(model: EditableModel) -> None:
    base = weights(model, None)
    arms: Any = ("base", "ike", "ike_oracle")
    got = ArmEvaluator(model).evaluate(REQUESTS, base=base, edited={}, arms=arms, in_context=FakeInContext())
    for record in got.records:
        for result in record.probes:
            for arm in ("ike", "ike_oracle"):
                assert replace(result.arms[arm], reason=None) == result.arms["base"]  # type: ignore[index]
    figures = got.metrics()
    assert figures["ike"] == figures["ike_oracle"] == figures["base"]


@pytest.mark.parametrize("positions", [None, 500, 90, 60, 40])
def test_the_farthest_demonstrations_go_where_the_context_ends(model: EditableModel, positions: int | None) -> None:
    examples = tuple(f"New Fact: Rome lies in Angola.\nPrompt: Rome {n} lies in Angola\n\n" for n in range(6))
    shown, room = FakeShown(FACTS["r-Thierry"], examples), 8

    def ids_behind(count: int) -> list[int]:
        fact = f"New Fact: {shown.hit.statement}\nPrompt: Thierry speaks"
        return model.text.encode_prompt("".join(examples[6 - count :]) + fact)

    ids, choice = told(shown, "Thierry speaks", model.text, Capacity(positions, None), room)
    most = max((n for n in range(7) if positions is None or len(ids_behind(n)) + room <= positions), default=0)
    assert ids == ids_behind(most) and choice.hit is shown.hit
    assert choice.reason == f"told behind {most} of 6 demonstrations"
    assert most == 6 if positions in (None, 500) else most < 6


def test_a_fact_that_leaves_no_room_is_not_told(model: EditableModel) -> None:
    base = weights(model, None)
    model.capacity = Capacity(24, None)
    shown = FakeShown(FakeHit(1, 0.5, "Thierry speaks football " * 30))
    in_context = FakeInContext({"Thierry speaks": shown})
    got = ArmEvaluator(model).evaluate(REQUESTS[1:], base=base, edited={}, arms=("base", "ike"), in_context=in_context)
    (paraphrase,) = [result for result in got.records[0].probes if result.probe.kind == "paraphrase"]
    assert replace(paraphrase.arms["ike"], reason=None) == paraphrase.arms["base"]
    assert "longer than the model's context" in str(paraphrase.arms["ike"].reason)


def test_they_are_timed_and_refused_without_what_they_show(model: EditableModel) -> None:
    base = weights(model, None)
    evaluator = ArmEvaluator(model)
    with pytest.raises(ValueError, match="'ike' and 'ike_oracle' need what they are to be shown"):
        evaluator.evaluate(REQUESTS, base=base, edited={}, arms=("base", "ike_oracle"))
    times = query_seconds(
        evaluator,
        [REQUESTS[0].text, "Danielle speaks"],
        base=base,
        edited={},
        arms=("base", "ike"),
        search_seconds=100.0,
        in_context=everything(),
    )
    assert set(times) == {"base", "ike"} and times["ike"] > 100
    assert all(torch.equal(model.parameter(layer), base[layer]) for layer in LAYERS)
