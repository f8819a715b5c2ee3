from __future__ import annotations

import json

import numpy as np
import pytest

from errata.editing.errors import UserError
from errata.retrieval.embedder import HashEmbedder
from errata.retrieval.evidence import EvidenceFinder, entries_of, without_subject
from errata.retrieval.memory import FactMemory
from errata.retrieval.naming import mention_of
from errata.retrieval.router import (
    CHEAP,
    FULL,
    FittedRouter,
    Logistic,
    Router,
    RouterConfig,
    cheap_features,
    full_features,
)
from errata.retrieval.router_facts import IN_SCOPE, OUT_OF_SCOPE, fitting_facts
from errata.retrieval.router_fit import at_operating_point, fit_router, router_for, shipped, trials_of

FACTS = [
    ("Alice Munro", "tongue", "The mother tongue of Alice Munro is Welsh."),
    ("Victor Hugo", "tongue", "The mother tongue of Victor Hugo is Danish."),
    ("Porto Velho", "country", "Porto Velho is a city in Norway."),
]


@pytest.fixture(scope="module")
def memory() -> FactMemory:
    memory = FactMemory(HashEmbedder())
    memory.add(entries_of(FACTS, 1))
    return memory


@pytest.fixture(scope="module")
def fitted() -> FittedRouter:
    return fit_router(FactMemory(HashEmbedder()), max_false_alarms=0.02)


def candidates(memory, *questions, k=3):
    return EvidenceFinder(memory).candidates(questions, memory.embedder.embed(questions), k)


def test_what_a_question_names_is_a_candidate_however_unlike_the_sentences_are(memory):
    (row,) = candidates(memory, "Of all the writers one meets at breakfast, Alice Munro speaks", k=1)
    (munro,) = [c for c in row if c.subject == "Alice Munro"]
    assert munro.evidence.named and munro.evidence.last and munro.evidence.letters == 1.0
    assert [c.score for c in row] == sorted((c.score for c in row), reverse=True)


def test_the_cosine_without_the_subject_is_that_of_the_masked_sentences(memory):
    question = "He left early. The mother tongue of Alice Munro was"
    (row,) = candidates(memory, question)
    (munro,) = [c for c in row if c.subject == "Alice Munro"]
    masked = [
        without_subject(question, mention_of(question, "Alice Munro")),
        without_subject(FACTS[0][2], mention_of(FACTS[0][2], "Alice Munro")),
    ]
    assert masked == ["The mother tongue of it was", "The mother tongue of it is Welsh."]
    one, other = memory.embedder.embed(masked).astype(np.float64)
    assert munro.evidence.relation == pytest.approx(float(one @ other), abs=1e-6)


def test_finding_candidates_changes_no_memory_and_an_empty_one_gives_none(memory):
    before = memory.digest
    candidates(memory, "Alice Munro speaks")
    assert memory.digest == before
    assert candidates(FactMemory(HashEmbedder()), "Alice Munro speaks") == [[]]


def test_in_scope_and_out_of_scope_questions_are_told_apart_without_a_model(memory, fitted):
    router = Router(fitted)
    questions = [text[: text.rindex(" is ") + 3] if " is " in text else text for _, _, text in FACTS[:2]]
    inside = router.route(questions, candidates(memory, *questions))
    assert [route.hit.subject for route in inside] == ["Alice Munro", "Victor Hugo"]
    others = ["What is 17 times 23?", "The mother tongue of Ibsen is", "Write a poem about rain."]
    outside = router.route(others, candidates(memory, *others))
    assert all(route.hit is None and route.decision == "out" for route in outside)
    assert all(0 <= route.probability <= 1 and route.reason for route in [*inside, *outside])


def test_an_empty_memory_routes_nothing(fitted):
    (route,) = Router(fitted).route(["anything"], [[]])
    assert route.hit is None and route.stage == "nothing" and route.probability == 0.0


def test_the_model_is_asked_about_the_doubtful_alone_and_its_word_counts(memory, fitted):
    width = len(CHEAP)
    # the model's share decides alone: in from .5 on
    full = Logistic(weights=(0.0,) * width + (10.0, 0.0), bias=-5.0)
    doubting = fitted.model_copy(update={"full": full, "below": 0.0, "above": 1.0, "threshold": 0.5})
    asked = []

    def shares(questions, rows):
        asked.extend(questions)
        return [[0.9 if c.subject == "Victor Hugo" else 0.1 for c in row] for row in rows]

    questions = ["The mother tongue of Victor Hugo is", "The mother tongue of Alice Munro is"]
    routes = Router(doubting).route(questions, candidates(memory, *questions), shares)
    assert asked == questions and all(route.stage == "model" for route in routes)
    assert routes[0].hit.subject == "Victor Hugo" and routes[1].hit is not None  # Hugo's share is high there too
    sure = doubting.model_copy(update={"below": 0.0, "above": 0.0})
    asked.clear()
    assert all(r.stage == "cheap" for r in Router(sure).route(questions, candidates(memory, *questions), shares))
    assert asked == []


def test_features_are_what_they_are_called(memory):
    (row,) = candidates(memory, "The mother tongue of Alice Munro is")
    found = cheap_features(row)
    assert found.shape == (len(row), len(CHEAP)) and found.dtype == np.float64
    by_name = [dict(zip(CHEAP, features, strict=True)) for features in found]
    munro = by_name[[c.subject for c in row].index("Alice Munro")]
    rivals = [c.score for c in row if c.subject != "Alice Munro"]
    assert munro["cosine"] == munro["named_cosine"]
    assert munro["margin"] == pytest.approx(min(0.5, munro["cosine"] - max(rivals)))
    assert munro["named"] == munro["named_last"] == munro["letters"] == 1 and munro["named_extended"] == 0
    full = full_features(found, np.linspace(-2, 2, len(row)))
    assert full.shape == (len(row), len(FULL)) and full[:, -2].min() == -1 and full[:, -2].max() == 1


def test_a_logistic_regression_is_the_closed_form():
    model = Logistic(weights=(1.0, -2.0), bias=0.5)
    x = np.array([[0.3, 0.1], [100.0, 0.0]])
    assert model(x)[0] == pytest.approx(1 / (1 + np.exp(-(0.3 - 0.2 + 0.5)))) and model(x)[1] <= 1.0


def test_fitting_keeps_to_the_false_alarms_that_are_allowed_and_is_the_same_each_time(fitted):
    again = fit_router(FactMemory(HashEmbedder()), max_false_alarms=0.02)
    assert again.digest == fitted.digest
    assert all(fitted.rates[kind] <= 0.02 for kind in OUT_OF_SCOPE)
    assert fitted.rates["edit"] > 0.9
    strict, loose = (fit_router(FactMemory(HashEmbedder()), max_false_alarms=rate) for rate in (0.001, 0.2))
    assert strict.threshold >= fitted.threshold >= loose.threshold
    false_alarms = [point.false_alarms for point in sorted(fitted.curve, key=lambda p: p.threshold)]
    assert false_alarms == sorted(false_alarms, reverse=True)


def test_the_fitting_facts_are_fixed_and_share_no_subject_with_their_neighbors():
    facts, questions = fitting_facts()
    assert (facts, questions) == fitting_facts()
    subjects = {fact.subject for fact in facts}
    assert len(subjects) == len(facts)
    for question in questions:
        if question.kind in IN_SCOPE:
            assert facts[question.fact].subject in question.text
    neighbors = [question.text for question in questions if question.kind == "neighbor"]
    own = [mention_of(text, facts[q.fact].subject) for q in questions if q.kind == "neighbor" for text in [q.text]]
    # a neighbor is about another subject; at most its longer name holds the fact's own
    assert len(neighbors) == 3 * len(facts) and all(m is None or m.extended for m in own)


def test_trials_stand_beside_what_the_memory_holds_and_leave_it_alone(memory):
    facts, questions = fitting_facts(subjects_per_kind=2)
    before = memory.digest
    trials = trials_of(memory, facts, questions, 3)
    assert memory.digest == before and len(trials) == len(questions)
    assert any(c.subject == "Alice Munro" for t in trials for c in t.candidates)
    for trial in trials:
        if trial.question.kind in IN_SCOPE:
            assert sum(trial.right) <= 1
        else:
            assert not any(trial.right)


def test_a_router_is_kept_as_it_is_and_named_by_what_decides(tmp_path, fitted):
    path = tmp_path / "router.json"
    fitted.save(path)
    assert FittedRouter.load(path) == fitted and FittedRouter.load(path).digest == fitted.digest
    assert fitted.model_copy(update={"curve": ()}).digest == fitted.digest
    assert fitted.model_copy(update={"threshold": fitted.threshold + 0.01}).digest != fitted.digest


@pytest.mark.parametrize("text", ["", "{}", "[1]", json.dumps({"format": 2})])
def test_what_is_no_router_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "router.json"
    path.write_text(text)
    with pytest.raises(UserError, match="is not a fitted router") as error:
        FittedRouter.load(path)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="cannot be read"):
        FittedRouter.load(tmp_path / "none.json")


def test_the_configuration_names_a_router_of_the_same_embedder_or_gets_one(tmp_path, fitted):
    memory = FactMemory(HashEmbedder())
    assert router_for(RouterConfig(), memory) == fitted
    foreign = tmp_path / "foreign.json"
    fitted.model_copy(update={"embedder": "f" * 64}).save(foreign)
    with pytest.raises(UserError, match="was fitted with the embedder ffff"):
        router_for(RouterConfig(path=str(foreign)), memory)


def test_another_operating_point_is_read_off_the_curve(fitted):
    strict = at_operating_point(fitted, 0.0005)
    assert strict.threshold >= fitted.threshold and strict.digest != fitted.digest
    assert at_operating_point(fitted, fitted.max_false_alarms).threshold == pytest.approx(fitted.threshold)


def test_shipped_routers_are_sound():
    for router in shipped():
        assert len(router.cheap.weights) == len(CHEAP) and router.curve
        assert router.full is None or len(router.full.weights) == len(FULL)
        assert router.below <= router.above
