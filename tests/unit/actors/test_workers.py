"""The plain classes behind the editor, the memory and the evaluation actor, without Ray."""

from __future__ import annotations

import signal
from typing import Any

import pytest
import ray.exceptions
import torch

from errata.actors.connection import _own_sigterm, first_line, raise_if_init_failed, unwrap
from errata.actors.evaluation import free_slot
from errata.actors.runtime import WorkerGroup
from errata.actors.settings import ModelSpec, RayConfig
from errata.actors.workers.covariance import EstimateJob, UnitWorker
from errata.actors.workers.editor import ContextSpec, EditorWorker
from errata.actors.workers.evaluation import EvaluationSettings, EvaluationWorker
from errata.actors.workers.model import VersionedModel, load_for
from errata.editing.checkpoint.load import load_model
from errata.editing.covariance import KeyCovariance
from errata.editing.editors import REGISTRY
from errata.editing.errors import ErrataError, UserError
from errata.editing.estimation.selfgen import SelfGenerationConfig
from errata.editing.request import EditBatch, EditRequest
from errata.editing.session import EditReceipt
from errata.evaluation.outcomes import ARMS
from errata.evaluation.probes import questions_of
from errata.retrieval.embedder import HashEmbedderConfig
from errata.retrieval.ike import Asked, DemonstrationPool, IkeConfig
from errata.retrieval.index import IndexConfig
from errata.retrieval.memory import MemoryEntry
from errata.retrieval.router import Findings
from errata.retrieval.scr import ScrConfig
from tests.helpers.memory import HeldMemory
from tests.helpers.tiny import tiny_model

MEMIT = REGISTRY["memit"][0](layers=(1, 2), cov_weight=1.0, values={"steps": 3})
PREFIXES = ContextSpec(1, 3, 0)


def ask(number: int, target: str = "Paris") -> EditRequest:
    return EditRequest(
        id=f"r{number}",
        subject=f"Alice Munro {number}",
        prompt="{} works in",
        target_new=target,
        relation="work",
        paraphrases=(f"The place of Alice Munro {number} is",),
        neighborhood=({"prompt": "Thierry Henry works in", "answer": "France"},),  # type: ignore[arg-type]
    )


def batch(sequence: int, *numbers: int) -> EditBatch:
    return EditBatch(sequence=sequence, requests=tuple(ask(number) for number in numbers))


# ---------------------------------------------------------------- a model shown in one version or another


def test_versions_are_shown_and_the_base_comes_back():
    model = tiny_model(layers=3)
    base = {layer: model.weight(layer).clone() for layer in range(3)}
    versioned = VersionedModel(model)
    versioned.show("v1", {1: base[1] + 1})
    assert torch.equal(model.weight(1), base[1] + 1)
    versioned.show("v2", {2: base[2] + 2})  # layer 1 is not given: the base's again
    assert torch.equal(model.weight(1), base[1]) and torch.equal(model.weight(2), base[2] + 2)
    assert torch.equal(versioned.base((1, 2))[2], base[2])
    versioned.show("base", {})
    assert all(torch.equal(model.weight(layer), base[layer]) for layer in range(3))


def test_showing_the_same_version_again_does_not_touch_the_weights():
    model = tiny_model(layers=3)
    versioned = VersionedModel(model)
    versioned.show("v1", {1: model.weight(1) + 1})
    model.set_weight(1, torch.zeros_like(model.weight(1)))
    versioned.show("v1", {1: torch.ones_like(model.weight(1))})
    assert not model.weight(1).any()


# ---------------------------------------------------------------- editor


@pytest.fixture
def editor(spec: ModelSpec, role: Any) -> EditorWorker:
    return EditorWorker(spec, role, MEMIT, PREFIXES)


def covariance(worker: EditorWorker, scale: float = 1.0) -> KeyCovariance:
    widths = worker.map_widths()
    return KeyCovariance(
        {layer: torch.eye(width, dtype=torch.float64) * scale for layer, width in widths.items()}, 1, {"scale": scale}
    )


def test_an_editor_must_be_started_first(editor):
    assert set(editor.map_widths()) == {1, 2} and len(set(editor.map_widths().values())) == 1
    with pytest.raises(ErrataError, match="has not been started"):
        editor.session()


def test_contexts_are_those_given_or_the_same_sample_each_time(spec, role, editor):
    assert editor.contexts == EditorWorker(spec, role, MEMIT, PREFIXES).contexts
    assert editor.contexts != EditorWorker(spec, role, MEMIT, ContextSpec(1, 3, 1)).contexts
    given = ContextSpec(1, 3, 0, ("", "So: "))
    assert EditorWorker(spec, role, MEMIT, given).contexts == ("", "So: ")


def test_a_layer_that_is_not_there_is_refused(spec, role):
    with pytest.raises(UserError, match="3"):
        EditorWorker(spec, role, REGISTRY["memit"][0](layers=(3,)), PREFIXES)


def test_a_new_editor_that_replays_the_history_goes_on_bit_for_bit(spec, role, editor):
    first, second = covariance(editor), covariance(editor, 3.0)
    editor.start(first)
    history: list[EditReceipt | KeyCovariance] = [editor.session().apply(batch(1, 0, 1))]
    editor.session().swap_covariance(second)
    history += [second, editor.session().apply(batch(2, 2, 3))]

    revived = EditorWorker(spec, role, MEMIT, ContextSpec(1, 3, 0, editor.contexts))
    revived.start(first)
    for item in history:
        revived.replay(item)
    for worker in (editor, revived):
        worker.session().apply(batch(3, 4))
    ours, theirs = editor.session().weights(), revived.session().weights()
    assert all(torch.equal(ours[layer], theirs[layer]) for layer in (1, 2))
    unedited = load_model(spec.name)
    assert not any(torch.equal(ours[layer], unedited.weight(layer)) for layer in (1, 2))
    assert editor.session().norms() == revived.session().norms()


# ---------------------------------------------------------------- memory


@pytest.fixture
def memory() -> HeldMemory:
    return HeldMemory(HashEmbedderConfig(), IndexConfig())


def entries(*numbers: int) -> list[MemoryEntry]:
    return [MemoryEntry.of(ask(number), number) for number in numbers]


def test_adding_twice_changes_nothing_and_the_order_does_not_matter(memory):
    assert memory.add(entries(1, 2, 3)) == 3
    digest = memory.digest()
    assert memory.add(entries(2, 3)) == 3 and memory.digest() == digest
    other = HeldMemory(HashEmbedderConfig(), IndexConfig())
    other.add(entries(3))
    other.add(entries(1, 2))
    assert other.digest() == digest


def test_a_statement_is_found_and_forgotten(memory):
    memory.add(entries(1, 2))
    (found,) = memory.search(["Alice Munro 2 works in"], 1)
    assert [hit.id for hit in found] == [2] and found[0].statement == "Alice Munro 2 works in Paris."
    assert memory.remove([2, 77]) == 1
    assert [hit.id for hit in memory.search(["Alice Munro 2 works in"], 3)[0]] == [1]
    assert memory.search([], 3) == []


def test_a_question_asked_again_is_answered_from_the_memory_as_it_is_now(memory):
    memory.add(entries(1))
    question = ["Alice Munro 2 works in"]
    assert [hit.id for hit in memory.search(question, 1)[0]] == [1]
    memory.add(entries(2))
    assert [hit.id for hit in memory.search(question, 1)[0]] == [2]
    assert memory.search_seconds(question, 1) > 0


# ---------------------------------------------------------------- evaluation


def test_evaluating_a_version_leaves_the_base_and_does_not_depend_on_company(spec, role, memory):
    memory.add(entries(1, 2, 3))
    requests = [ask(1), ask(2), ask(3)]
    questions = questions_of(requests)
    hits = Findings(dict(zip(questions, memory.search(questions, 2), strict=True)), memory.route(questions, 2))
    settings = EvaluationSettings(ScrConfig(), ARMS, max_new_tokens=3)
    worker = EvaluationWorker(spec, role, settings)
    model = load_model(spec.name)
    weights = {1: model.weight(1) * 1.5}
    together = worker.evaluate(requests, weights, hits)
    assert [record.request_id for record in together.records] == ["r1", "r2", "r3"]
    alone = EvaluationWorker(spec, role, settings).evaluate([ask(2)], weights, hits)
    assert alone.records[0] == together.records[1]
    assert worker.evaluate(requests, weights, hits).records == together.records
    base = worker.perplexity("The capital of France is Paris.\n\n\n\nRome lies in Italy.", {})
    edited = worker.perplexity("The capital of France is Paris.\n\n\n\nRome lies in Italy.", weights)
    assert base != edited
    assert worker.perplexity("The capital of France is Paris.\n\n\n\nRome lies in Italy.", {}) == base
    seconds = worker.query_seconds(questions[:1], weights, hits, 0.5)
    assert set(seconds) == set(ARMS) and seconds["memory"] > 0.5 > 0 < seconds["base"]


def test_on_one_model_generating_and_evaluating_do_not_disturb_each_other(spec, role, memory):
    requests = [ask(1), ask(2)]
    settings = EvaluationSettings(ScrConfig(), ARMS, max_new_tokens=3)
    weights = {1: load_model(spec.name).weight(1) * 1.5}
    text = "The capital of France is Paris."
    found = Findings({}, memory.route([], 2))
    generation = SelfGenerationConfig(max_new_tokens=4, sequences_per_unit=3, slots=2)

    def job(version: str) -> EstimateJob:
        return EstimateJob(generation=generation, layers=(1, 2), sequences=3, version=version)

    alone, other = UnitWorker(spec, role), EvaluationWorker(spec, role, settings)
    versioned = VersionedModel(load_for(role, spec))
    units, questions = UnitWorker(spec, role, versioned), EvaluationWorker(spec, role, settings, versioned)
    for _ in range(2):
        for version, shown in (("v1", weights), ("base", {})):
            sums = units.block(job(version), 0, 3, shown)[1]
            wanted = alone.block(job(version), 0, 3, shown)[1]
            assert all(sums[layer].tobytes() == wanted[layer].tobytes() for layer in (1, 2))
            # the generator has left its version in the model; a question is put to the one it names all the same
            assert questions.perplexity(text, {}) == other.perplexity(text, {})
            assert (
                questions.evaluate(requests, weights, found).records == other.evaluate(requests, weights, found).records
            )


def test_a_dead_worker_is_replaced_once_whoever_reports_it_and_prepared_like_the_others():
    made: list[object] = []
    prepared: list[object] = []

    def make() -> object:
        made.append(object())
        return made[-1]

    ended: list[object] = []
    group = WorkerGroup(make, 2, most_revivals=2, what="workers", end=ended.append)
    assert group.actors == () and made == []
    group.start()
    group.start()
    assert group.actors == (made[0], made[1])
    group.prepare(prepared.append)
    dead = made[1]
    group.replace(1, dead, OSError())
    group.replace(1, dead, OSError())
    assert group.actors == (made[0], made[2])
    assert prepared == made and len(made) == 3
    group.replace(0, made[0], OSError())
    with pytest.raises(ErrataError, match=r"workers died 3 times; allowed: ray\.max_revivals 2"):
        group.replace(0, made[3], OSError())
    assert ended == [made[1], made[0]]
    group.close()
    assert ended == [made[1], made[0], made[3], made[2]] and group.actors == ()


# ---------------------------------------------------------------- settings and errors


def test_a_local_ray_has_room_for_every_actor():
    config = RayConfig(generation_workers=3, evaluation_workers=2)
    assert config.local_cpus() == 3 + 2 + 1 + 0.5 + 1


def test_a_plain_error_passes_unwrap_and_its_first_line_is_told():
    error = ValueError("first\nsecond")
    assert unwrap(error) is error and first_line(error) == "first" and first_line(ValueError()) == "ValueError"


def test_connecting_leaves_this_processs_answer_to_sigterm_as_it_was():
    before = signal.getsignal(signal.SIGTERM)
    with _own_sigterm():
        signal.signal(signal.SIGTERM, lambda *_: None)  # as Ray does
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_actor_that_could_not_be_made_is_told_from_one_that_died():
    raise_if_init_failed(ray.exceptions.RayActorError("id", "it died"))
    remote = "The actor died because of an error raised in its creation task, ray::X\n  File ...\n"
    with pytest.raises(UserError, match=r"^editor\.layers: there is no layer 17$"):
        raise_if_init_failed(
            ray.exceptions.RayActorError(
                "id", remote + "errata.editing.errors.UserError: editor.layers: there is no layer 17", True
            )
        )
    with pytest.raises(ErrataError, match=r"could not be started: ImportError: no module"):
        raise_if_init_failed(ray.exceptions.RayActorError("id", remote + "ImportError: no module\n", True))


def test_a_question_goes_to_a_worker_that_is_at_no_part_of_an_evaluation():
    assert [free_slot(turn, 3, set()) for turn in range(4)] == [0, 1, 2, 0]
    assert [free_slot(turn, 3, {1}) for turn in range(3)] == [0, 2, 2]
    assert [free_slot(turn, 3, {0, 1, 2}) for turn in range(4)] == [0, 1, 2, 0], "all are busy"
    assert free_slot(5, 1, {0}) == 0


# ---------------------------------------------------------------- in-context editing


def test_in_context_a_question_is_shown_the_nearest_fact_and_the_oracle_its_own() -> None:
    worker = HeldMemory(HashEmbedderConfig(), IndexConfig())
    worker.add([MemoryEntry.of(ask(number), number) for number in (1, 2)])
    split = [ask(number, "Oslo") for number in (1, 7, 8)]
    pool = DemonstrationPool.of(split, IkeConfig(demonstrations="a training split", k=4, shares=None))
    # asked of the second fact, in the words of the first: the memory finds the first, the oracle knows better
    asked = [
        Asked(ask(2).id, ask(2).fact_key, "Alice Munro 1 works in"),
        Asked("elsewhere", "a fact that the memory does not hold", "Alice Munro 2 works in"),
    ]
    found = worker.in_context(pool, asked, ["Alice Munro 1", "Alice Munro 2"])
    assert {q: shown.hit.request_id for q, shown in found.retrieved.items()} == {
        "Alice Munro 1 works in": "r1",
        "Alice Munro 2 works in": "r2",
    }
    assert {key: shown.hit.request_id for key, shown in found.oracle.items()} == {
        ("r2", "Alice Munro 1 works in"): "r2"
    }
    for shown in (*found.retrieved.values(), *found.oracle.values()):
        assert len(shown.demonstrations) == 4 and not any("Munro 1 " in text for text in shown.demonstrations)
    assert worker.in_context(pool, [], []).retrieved == {}
