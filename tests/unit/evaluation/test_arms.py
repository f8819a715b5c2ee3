"""The arm evaluator on a tiny random model, against one plain unbatched pass a question."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from errata.editing.model.adapter import EditableModel
from errata.editing.model.engine import Answer, Continuation, LanguageEngine
from errata.editing.request import EditRequest
from errata.evaluation.arms import ArmEvaluator, Evaluation, base_weights_digest
from errata.evaluation.caching import CachingEngine
from errata.evaluation.matching import best_f1, contains
from errata.evaluation.outcomes import ARMS, ProbeOutcome, arm_metrics
from errata.evaluation.probes import probes_of, questions_of
from errata.evaluation.question_times import query_seconds
from errata.evaluation.reasoning import ReasoningMarks
from tests.helpers.tiny import tiny_model
from tests.unit.evaluation.fakes import FakeChoice, FakeHit, KeywordChooser

LAYERS = (1, 2)
PLAIN_ARMS = tuple(arm for arm in ARMS if arm != "routed")
"""Asked where there is no router."""


def request(subject: str, target: str, **more: Any) -> EditRequest:
    return EditRequest(
        id=f"r-{subject}",
        subject=subject,
        prompt="The mother tongue of {} is",
        target_new=target,
        target_true="French",
        paraphrases=(f"{subject} speaks",),
        neighborhood=({"prompt": "The capital of France is", "answer": "Paris"},),  # type: ignore[arg-type]
        **more,
    )


REQUESTS = [
    request(
        "Danielle",
        "Italian words",
        portability=({"prompt": "Danielle was born in", "answers": ("Rome", "Italy")},),
    ),
    request("Thierry", "football"),
]
HITS = {
    "The mother tongue of Danielle is": [FakeHit(1, 0.9, "Danielle speaks Italian words.")],
    "Danielle speaks": [
        FakeHit(2, 0.6, "Thierry plays football."),
        FakeHit(1, 0.5, "Danielle speaks Italian words."),
    ],
    "The capital of France is": [FakeHit(2, 0.3, "Thierry plays football.")],
}


@pytest.fixture
def model() -> EditableModel:
    return tiny_model("llama", layers=3)


def weights(model: EditableModel, seed: int | None) -> dict[int, Tensor]:
    base = model.weights(LAYERS)
    if seed is None:
        return base
    generator = torch.Generator().manual_seed(seed)
    return {layer: w + 0.3 * torch.randn(w.shape, generator=generator) for layer, w in base.items()}


def slow_reply(model: EditableModel, prompt: list[int], target: list[int]) -> tuple[float, str, list[int]]:
    """Teacher-forced accuracy and greedy answer by whole, unpadded, uncached passes of the library's own
    model."""
    hf = model.decoder.model

    def argmax(ids: list[int]) -> list[int]:
        with torch.no_grad():
            return hf(torch.tensor([ids])).logits[0].argmax(-1).tolist()

    predicted = argmax(prompt + target)[len(prompt) - 1 : -1]
    accuracy = sum(a == b for a, b in zip(predicted, target, strict=True)) / len(target)
    answer: list[int] = []
    for _ in range(12):
        token = argmax(prompt + answer)[-1]
        if token in model.text.eos_ids:
            break
        answer.append(token)
        if "\n" in model.text.decode([token]):
            break
    return accuracy, model.text.decode(answer).split("\n")[0].strip(), answer


@pytest.mark.parametrize("chat", [False, True])
def test_every_arm_equals_the_plain_evaluation(model: EditableModel, chat: bool) -> None:
    base, edited = weights(model, None), weights(model, 1)
    chooser = KeywordChooser(model.text, chat=chat)
    got = ArmEvaluator(model, chooser).evaluate(REQUESTS, base=base, edited=edited, hits=HITS)
    assert got.arms == PLAIN_ARMS
    unedited: dict[str, list[int]] = {}
    for arm in PLAIN_ARMS:
        model.set_weights(edited if arm.startswith("edited") else base)
        for record, asked in zip(got.records, REQUESTS, strict=True):
            assert [result.probe for result in record.probes] == probes_of(asked)
            for result in record.probes:
                probe, outcome = result.probe, result.arms[arm]
                hits = HITS.get(probe.prompt, [])
                (choice,) = chooser.choose([probe.prompt], [hits])
                informed = arm in ("memory", "edited_memory") and choice.hit is not None
                prompt = (
                    chooser.prompt_ids(probe.prompt, choice) if informed else model.text.encode_prompt(probe.prompt)
                )
                assert probe.teacher is not None
                target = model.text.encode_target(probe.teacher)
                if informed and chat:  # after the newline of a chat template the answer starts without a space
                    target = model.text.encode_prompt(probe.teacher)
                accuracy, answer, ids = slow_reply(model, prompt, target)
                assert (outcome.accuracy, outcome.answer) == (pytest.approx(accuracy), answer)
                if arm == "base":
                    unedited[probe.prompt] = ids
                want = unedited[probe.prompt]
                same = sum(a == b for a, b in zip(ids, want, strict=False)) / max(len(ids), len(want), 1)
                assert outcome.match_ratio == pytest.approx(same)
                if not probe.in_scope:
                    assert outcome.ok == (answer == model.text.decode(want).split("\n")[0].strip())
                assert outcome.chosen == (choice.hit.statement if informed and choice.hit else None)


def test_memory_that_chose_nothing_is_the_arm_without_memory(model: EditableModel) -> None:
    base, edited = weights(model, None), weights(model, 1)
    got = ArmEvaluator(model, KeywordChooser(model.text)).evaluate(REQUESTS, base=base, edited=edited, hits=HITS)
    reasons = set()
    for record in got.records:
        for result in record.probes:
            for plain, memory in (("base", "memory"), ("edited", "edited_memory")):
                outcome: ProbeOutcome = result.arms[memory]  # type: ignore[index]
                reasons.add(outcome.reason)
                assert [hit.id for hit in outcome.retrieved] == [hit.id for hit in HITS.get(result.probe.prompt, [])]
                if outcome.chosen is None:
                    stripped = replace(outcome, reason=None, retrieved=())
                    assert stripped == result.arms[plain]  # type: ignore[index]
    assert reasons == {"shares its subject", "no statement fits"}


class NamesRouter:
    """Routes a question that names a statement's first word; counts what it is asked, and notes the live weights."""

    def __init__(self, model: EditableModel, answer: str) -> None:
        self.model, self.answer = model, answer
        self.live: list[dict[int, Tensor]] = []

    def route(self, questions: Any) -> Any:
        self.live.append({layer: self.model.parameter(layer).detach().clone() for layer in LAYERS})
        statements = {"Danielle": HITS["Danielle speaks"][1], "Thierry": HITS["Danielle speaks"][0]}
        found = [next((hit for name, hit in statements.items() if name in question), None) for question in questions]
        return [FakeChoice(hit, "named" if hit else "nobody is named") for hit in found]


@pytest.mark.parametrize("answer", ["edited_memory", "memory", "edited"])
def test_routed_questions_are_the_bases_own_or_the_statements(model: EditableModel, answer: Any) -> None:
    base, edited = weights(model, None), weights(model, 1)
    chooser, router = KeywordChooser(model.text), NamesRouter(model, answer)
    got = ArmEvaluator(model, chooser).evaluate(REQUESTS, base=base, edited=edited, hits=HITS, router=router)
    alone = ArmEvaluator(model, chooser).evaluate(
        REQUESTS, base=base, edited=edited, hits=HITS, router=NamesRouter(model, answer), arms=("base", "routed")
    )
    assert got.arms == ARMS and len(router.live) == 1
    assert all(torch.equal(router.live[0][layer], base[layer]) for layer in LAYERS)
    touched = 0
    for record, lone in zip(got.records, alone.records, strict=True):
        for result, other in zip(record.probes, lone.probes, strict=True):
            outcome = result.arms["routed"]
            # what another arm had at hand is what a pass of its own says
            assert outcome == other.arms["routed"]
            (route,) = NamesRouter(model, answer).route([result.probe.prompt])
            if route.hit is None:
                assert replace(outcome, reason=None, retrieved=()) == result.arms["base"]
                continue
            touched += 1
            model.set_weights(base if answer == "memory" else edited)
            plain = model.text.encode_prompt(result.probe.prompt)
            prompt = plain if answer == "edited" else chooser.prompt_ids(result.probe.prompt, route)
            target = model.text.encode_target(result.probe.teacher or "")
            accuracy, said, _ = slow_reply(model, prompt, target)
            assert (outcome.accuracy, outcome.answer) == (pytest.approx(accuracy), said)
            assert outcome.chosen == route.hit.statement and outcome.reason == "named"
    assert touched == 5


def test_an_arm_that_lacks_its_router_is_refused(model: EditableModel) -> None:
    base = weights(model, None)
    evaluator = ArmEvaluator(model, KeywordChooser(model.text))
    with pytest.raises(ValueError, match="needs a router"):
        evaluator.evaluate(REQUESTS, base=base, edited=base, hits=HITS, arms=ARMS)


def test_numbers_of_the_arms(model: EditableModel) -> None:
    base, edited = weights(model, None), weights(model, 1)
    got = ArmEvaluator(model, KeywordChooser(model.text)).evaluate(REQUESTS, base=base, edited=edited, hits=HITS)
    metrics = got.metrics({"base": 0.5})
    assert metrics["base"]["locality"] == 1.0 and metrics["base"]["query_seconds"] == 0.5
    assert metrics["memory"]["locality"] == 1.0  # nothing was chosen out of scope
    assert metrics["edited"] == arm_metrics(got.records, "edited")
    # in scope 5 questions (2 edits, 2 paraphrases, 1 portability), 2 of them with a statement; out of
    # scope 2, none
    assert got.choices() == {
        arm: {"none_in_scope": pytest.approx(3 / 5), "none_out_of_scope": 1.0} for arm in ("memory", "edited_memory")
    }


def test_the_model_is_left_as_it_was_found(model: EditableModel) -> None:
    base, edited = weights(model, None), weights(model, 1)
    model.set_weights(weights(model, 5))
    before = {layer: model.parameter(layer).detach().clone() for layer in LAYERS}
    evaluator = ArmEvaluator(model, KeywordChooser(model.text))
    evaluator.evaluate(REQUESTS, base=base, edited=edited, hits=HITS)
    query_seconds(evaluator, ["Danielle speaks"], base=base, edited=edited, hits=HITS)
    assert all(torch.equal(model.parameter(layer), before[layer]) for layer in LAYERS)

    class Broken(KeywordChooser):
        def choose(self, questions: Any, hits: Any) -> Any:
            raise RuntimeError("chooser broke")

    with pytest.raises(RuntimeError, match="chooser broke"):
        ArmEvaluator(model, Broken(model.text)).evaluate(REQUESTS, base=base, edited=edited, hits=HITS)
    assert all(torch.equal(model.parameter(layer), before[layer]) for layer in LAYERS)


def test_absent_layers_are_unedited_and_arms_can_be_left_out(model: EditableModel) -> None:
    base = weights(model, None)
    got = ArmEvaluator(model).evaluate(REQUESTS, base=base, edited={}, arms=("edited",))
    assert got.arms == ("edited",) and arm_metrics(got.records, "edited")["locality"] == 1.0
    assert set(got.records[0].probes[0].arms) == {"edited"}
    part = {2: weights(model, 1)[2]}
    full = ArmEvaluator(model).evaluate(REQUESTS, base=base, edited={**base, **part}, arms=("base", "edited"))
    some = ArmEvaluator(model).evaluate(REQUESTS, base=base, edited=part, arms=("base", "edited"))
    assert some.records == full.records


def test_misuse_is_named(model: EditableModel) -> None:
    base = weights(model, None)
    with pytest.raises(ValueError, match="need a chooser"):
        ArmEvaluator(model).evaluate(REQUESTS, base=base, edited={})
    with pytest.raises(ValueError, match=r"edited layers \[0\] have no unedited map"):
        ArmEvaluator(model).evaluate(REQUESTS, base=base, edited={0: base[1]}, arms=("edited",))


def test_the_unedited_model_is_asked_once_over_many_evaluations(model: EditableModel) -> None:
    base = weights(model, None)
    engine = CachingEngine(model)
    evaluator = ArmEvaluator(model, KeywordChooser(model.text), engine=engine)

    def run(seed: int) -> Evaluation:
        return evaluator.evaluate(REQUESTS, base=base, edited=weights(model, seed), hits=HITS)

    first = run(1)
    missed = engine.misses
    second = run(2)
    assert engine.misses == missed and engine.hits >= missed > 0
    for one, other in zip(first.records, second.records, strict=True):
        for a, b in zip(one.probes, other.probes, strict=True):
            assert (a.arms["base"], a.arms["memory"]) == (b.arms["base"], b.arms["memory"])
    assert any(
        a.arms["edited"] != b.arms["edited"]
        for one, other in zip(first.records, second.records, strict=True)
        for a, b in zip(one.probes, other.probes, strict=True)
    )
    # another base is another model: nothing is taken from the first
    evaluator.evaluate(REQUESTS, base=weights(model, 3), edited={}, hits=HITS)
    assert engine.misses > missed


def test_before_the_first_edit_the_edited_model_costs_nothing(model: EditableModel) -> None:
    base = weights(model, None)
    engine = CachingEngine(model)
    evaluator = ArmEvaluator(model, KeywordChooser(model.text), engine=engine)
    alone = evaluator.evaluate(REQUESTS, base=base, edited={}, hits=HITS, arms=("base", "memory"))
    missed = engine.misses
    both = evaluator.evaluate(REQUESTS, base=base, edited={k: w.clone() for k, w in base.items()}, hits=HITS)
    assert engine.misses == missed > 0
    for one, other in zip(alone.records, both.records, strict=True):
        for a, b in zip(one.probes, other.probes, strict=True):
            assert b.arms["edited"] == a.arms["base"] and b.arms["edited_memory"] == a.arms["memory"]


def test_cached_results_are_those_of_the_engine(model: EditableModel) -> None:
    engine, plain = CachingEngine(model, max_entries=3), LanguageEngine(model)
    rows = [([5, 6, 7], [8, 9]), ([5, 6, 7], [10]), ([11, 12], [8, 9]), ([5, 6, 7], [8, 9])]
    with engine.weights("w"):
        for _ in range(2):
            assert engine.score(rows) == plain.score(rows)
            assert engine.score_and_generate(rows) == plain.score_and_generate(rows)
            prompts = [prompt for prompt, _ in rows]
            assert engine.generate(prompts, max_new_tokens=3) == plain.generate(prompts, max_new_tokens=3)
        assert len(engine._kept) == 3
    misses = engine.misses
    assert engine.score(rows) == plain.score(rows)  # no digest set: nothing is looked up
    assert engine.misses == misses


def test_digest_of_the_unedited_weights(model: EditableModel) -> None:
    base = weights(model, None)
    assert base_weights_digest(model, base) == base_weights_digest(model, weights(model, None))
    assert base_weights_digest(model, base) != base_weights_digest(model, weights(model, 1))
    assert base_weights_digest(model, base) != base_weights_digest(model, {1: base[1]})


def test_query_seconds_times_each_arm_and_adds_the_search(model: EditableModel) -> None:
    base = weights(model, None)
    engine = CachingEngine(model)
    chooser = KeywordChooser(model.text)
    evaluator = ArmEvaluator(model, chooser, engine=engine)
    questions = questions_of(REQUESTS)[:2]
    times = query_seconds(evaluator, questions, base=base, edited={}, hits=HITS, search_seconds=100.0)
    assert set(times) == set(PLAIN_ARMS)
    assert 0 < times["base"] < 100 < times["memory"]
    assert len(chooser.asked) == 2 * 3  # two arms with memory, a warm-up and two questions each
    assert (engine.hits, engine.misses) == (0, 0)
    assert set(query_seconds(evaluator, questions, base=base, edited={}, arms=("base",))) == {"base"}
    with pytest.raises(ValueError, match="at least one question"):
        query_seconds(evaluator, [], base=base, edited={})


def test_exact_agreement_and_truth_against_plain_passes(model: EditableModel) -> None:
    """What came with version 2: all tokens or none, argmax tokens of both models, the judge out of scope too."""
    base, edited = weights(model, None), weights(model, 1)
    got = ArmEvaluator(model, KeywordChooser(model.text)).evaluate(
        REQUESTS, base=base, edited=edited, arms=("base", "edited")
    )
    hf = model.decoder.model

    def argmax(prompt: list[int], target: list[int]) -> list[int]:
        with torch.no_grad():
            return hf(torch.tensor([prompt + target])).logits[0].argmax(-1).tolist()[len(prompt) - 1 : -1]

    seen = set()
    for record in got.records:
        for result in record.probes:
            assert result.probe.teacher is not None
            prompt = model.text.encode_prompt(result.probe.prompt)
            target = model.text.encode_target(result.probe.teacher)
            predicted = {}
            for arm, maps in (("base", base), ("edited", edited)):
                model.set_weights(maps)
                predicted[arm] = argmax(prompt, target)
                outcome = result.arms[arm]  # type: ignore[index]
                assert outcome.exact == (predicted[arm] == target)
                assert outcome.right == contains(outcome.answer, result.probe.expected)
                assert outcome.f1 == best_f1(outcome.answer, result.probe.expected) and outcome.reasoning is None
            same = [a == b for a, b in zip(predicted["edited"], predicted["base"], strict=True)]
            assert result.arms["edited"].agreement == pytest.approx(sum(same) / len(same))
            assert result.arms["base"].agreement == 1.0
            seen.add(result.arms["edited"].agreement)
    assert len(seen) > 1  # the edited model differs here and agrees there


class SaysTheTarget(LanguageEngine):
    """Its likeliest tokens are always those of the target that it is given."""

    def score_and_generate(self, rows: Any, **_: Any) -> list[tuple[Continuation, Answer]]:
        return [
            (Continuation((0.0,) * len(target), (True,) * len(target), tuple(target)), Answer("", ()))
            for _, target in rows
        ]


class GivesTheFirst(KeywordChooser):
    """Gives every question the same statement."""

    def choose(self, questions: Any, hits: Any) -> Any:
        return [FakeChoice(HITS["Danielle speaks"][1], "always") for _ in questions]


class RoutesAll(NamesRouter):
    def route(self, questions: Any) -> Any:
        return [FakeChoice(HITS["Danielle speaks"][1], "named") for _ in questions]


@pytest.mark.parametrize("answer", ["edited_memory", "memory", "edited"])
@pytest.mark.parametrize("beside", [ARMS, ("base", "routed"), ("base", "edited", "routed")])
def test_likeliest_tokens_are_compared_as_texts_where_an_arm_spells_its_target_otherwise(
    model: EditableModel, answer: Any, beside: Any
) -> None:
    """After a template "Paris" begins without a space: other tokens, the same answer. The routed arm, whether it takes
    a reply that another arm had or runs its own, is held to that as the memory arms are."""
    base = weights(model, None)
    chooser = GivesTheFirst(model.text, chat=True)
    assert model.text.encode_target("Paris") != model.text.encode_prompt("Paris")
    got = ArmEvaluator(model, chooser, engine=SaysTheTarget(model)).evaluate(
        REQUESTS, base=base, edited=weights(model, 1), hits=HITS, router=RoutesAll(model, answer), arms=beside
    )
    figures = got.metrics()
    assert {arm: figures[arm]["locality_tf"] for arm in beside} == dict.fromkeys(beside, 1.0)
    assert {arm: figures[arm]["locality_match"] for arm in beside} == dict.fromkeys(beside, 1.0)


def test_only_what_follows_the_reasoning_is_judged_and_compared(model: EditableModel) -> None:
    base, edited = weights(model, None), weights(model, 1)
    plain = ArmEvaluator(model).evaluate(REQUESTS, base=base, edited=edited, arms=("base", "edited"))
    answers = [outcome.answer for r in plain.records for p in r.probes for outcome in p.arms.values()]
    # a piece that some answers hold stands for the end mark
    mark = next(word for answer in answers for word in answer.split()[1:-1] if len(word) > 1)
    told = ArmEvaluator(model, reasoning=ReasoningMarks(start="<never>", end=mark)).evaluate(
        REQUESTS, base=base, edited=edited, arms=("base", "edited")
    )
    cut = 0
    for before, after in zip(plain.records, told.records, strict=True):
        for whole, part in zip(before.probes, after.probes, strict=True):
            for arm in ("base", "edited"):
                text, outcome = whole.arms[arm].answer, part.arms[arm]  # type: ignore[index]
                assert outcome.answer == text.rpartition(mark)[2].strip()
                assert outcome.reasoning == text.rpartition(mark)[0].strip()
                assert outcome.right == contains(outcome.answer, part.probe.expected)
                cut += outcome.reasoning != ""
            if not part.probe.in_scope:
                assert part.arms["edited"].ok == (part.arms["edited"].answer == part.arms["base"].answer)
    assert cut
