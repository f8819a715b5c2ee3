"""Actors that are killed: what they held comes back from the journal, and every result is the same bytes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from errata.actors.clients import EditorClient, MemoryClient
from errata.actors.covariance import CovarianceEstimator
from errata.actors.evaluation import EvaluationPool
from errata.actors.settings import ModelSpec, RayConfig
from errata.actors.workers.covariance import Estimate, EstimateJob
from errata.actors.workers.editor import ContextSpec
from errata.actors.workers.evaluation import EvaluationSettings
from errata.editing.checkpoint.load import load_model
from errata.editing.contexts import sample_contexts
from errata.editing.covariance import KeyCovariance
from errata.editing.editors import REGISTRY, make_editor
from errata.editing.errors import ErrataError, UserError
from errata.editing.estimation.selfgen import SelfGenerationConfig
from errata.editing.request import EditBatch, EditRequest
from errata.editing.reverting import HistoryItem, RevertOrder, revert
from errata.editing.session import EditReceipt, EditSession
from errata.evaluation.outcomes import ARMS
from errata.evaluation.probes import questions_of
from errata.retrieval.embedder import HashEmbedderConfig
from errata.retrieval.index import IndexConfig
from errata.retrieval.memory import MemoryEntry
from errata.retrieval.scr import ScrConfig
from tests.integration.harness import PlainEstimator, fact, facts

# Every actor that is made anew imports torch; on a machine that is busy a test with four of them takes minutes.
pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.timeout(900)]

REQUESTS = [EditRequest.model_validate(record) for record in facts(12)]


@pytest.fixture(scope="module")
def spec(tiny_checkpoint: Path) -> ModelSpec:
    return ModelSpec(name=str(tiny_checkpoint))


def process(actor: Any) -> int:
    """The actor's process; waits until the actor is there."""
    return int(ray.get(actor.__ray_call__.remote(lambda _: os.getpid()), timeout=300))


def murder(pid: int) -> None:
    """SIGKILL, and wait until the process is gone."""
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.02)
    raise AssertionError(f"process {pid} did not die")


@contextmanager
def dying(pid: int) -> Iterator[None]:
    """The process is stopped, so that it surely dies with what it is asked within the block in its hands."""
    os.kill(pid, signal.SIGSTOP)
    killer = threading.Timer(0.5, murder, (pid,))
    killer.start()
    try:
        yield
    finally:
        killer.join()


# ---------------------------------------------------------------- covariance

JOB = EstimateJob(
    generation=SelfGenerationConfig(max_new_tokens=12, sequences_per_unit=4, slots=4),
    layers=(1, 2),
    seed=3,
    tokens=400,
    version="base",
)


@pytest.fixture(scope="module")
def plainly(spec: ModelSpec) -> KeyCovariance:
    """The same estimate without Ray, block after block."""
    return PlainEstimator(RayConfig(), spec).estimate(JOB, {}).covariance


def same(found: KeyCovariance, wanted: KeyCovariance) -> None:
    assert found.tokens == wanted.tokens
    for layer in wanted.layers:
        assert found.sums[layer].numpy().tobytes() == wanted.sums[layer].numpy().tobytes()
    assert found.digest == wanted.digest


@pytest.fixture(scope="module")
def three(spec: ModelSpec, local_ray: None) -> Iterator[CovarianceEstimator]:
    estimator = CovarianceEstimator(RayConfig(generation_workers=3), spec)
    yield estimator
    estimator.close()


def test_a_covariance_is_bit_identical_with_one_worker_with_three_and_without_ray(spec, three, plainly):
    assert plainly.tokens >= 400
    one = CovarianceEstimator(RayConfig(generation_workers=1), spec)
    seen: list[float] = []
    alone = one.estimate(JOB, {}, lambda progress: seen.append(progress.share))
    one.close()
    together = three.estimate(JOB, {})
    same(alone.covariance, plainly)
    same(together.covariance, plainly)
    assert alone.documents == together.documents
    assert seen == sorted(seen) and seen[-1] == 1.0 and alone.repeated_blocks == 0


def test_a_covariance_is_the_same_after_a_worker_was_killed_in_the_middle(three, plainly, monkeypatch):
    job = JOB.model_copy(update={"units_per_block": 1})
    three.estimate(JOB.model_copy(update={"tokens": 20}), {})  # the workers are there and at rest
    pids = [process(actor) for actor in three.actors()]
    seen: list[Any] = []

    def kill_one(progress: Any) -> None:
        seen.append(progress)
        # stopped a while until it is killed, so that it surely dies with a block in its hands
        if len(seen) == 1:
            os.kill(pids[1], signal.SIGSTOP)
        if len(seen) == 4:
            murder(pids[1])

    estimate: Estimate = three.estimate(job, {}, kill_one)
    assert len(seen) > 4 and estimate.repeated_blocks > 0
    same(estimate.covariance, plainly)
    assert pids[1] not in [process(actor) for actor in three.actors()]


def test_workers_that_die_again_and_again_end_the_estimate(spec):
    estimator = CovarianceEstimator(RayConfig(generation_workers=1, max_revivals=0), spec)
    estimator.start()
    (actor,) = estimator.actors()
    murder(process(actor))
    with pytest.raises(ErrataError, match=r"covariance workers died 1 time; allowed: ray.max_revivals 0"):
        estimator.estimate(JOB, {})
    estimator.close()


def test_an_estimate_is_given_up_when_asked(three):
    stop = threading.Event()
    with pytest.raises(ErrataError, match="given up"):
        three.estimate(JOB.model_copy(update={"tokens": 10**7}), {}, lambda _: stop.set(), stop)


# ---------------------------------------------------------------- editor

MEMIT = REGISTRY["memit"][0](layers=(1, 2), cov_weight=1.0, values={"steps": 3})
PREFIXES = ContextSpec(1, 3, 0)


def batches(size: int = 3) -> list[EditBatch]:
    return [
        EditBatch(sequence=number + 1, requests=tuple(REQUESTS[at : at + size]))
        for number, at in enumerate(range(0, len(REQUESTS), size))
    ]


class History:
    """What a journal would say."""

    def __init__(self, covariance: KeyCovariance) -> None:
        self.items: list[EditReceipt | KeyCovariance] = [covariance]

    def __call__(self) -> Iterator[EditReceipt | KeyCovariance]:
        return iter(self.items)


@pytest.fixture(scope="module")
def swapped_in(plainly: KeyCovariance) -> KeyCovariance:
    """Another covariance, which takes effect after the second batch."""
    sums = {layer: total * 2 + torch.eye(total.shape[0], dtype=torch.float64) for layer, total in plainly.sums.items()}
    return KeyCovariance(sums, plainly.tokens, {"kind": "other"})


@dataclass(frozen=True)
class Lifetime:
    """A session in this process: its contexts, its history, its weights after each commit."""

    contexts: tuple[str, ...]
    history: list[EditReceipt | KeyCovariance]
    versions: list[dict[int, bytes]]


def in_bytes(weights: dict[int, torch.Tensor]) -> dict[int, bytes]:
    return {layer: weight.numpy().tobytes() for layer, weight in weights.items()}


@pytest.fixture(scope="module")
def lifetime(spec: ModelSpec, plainly: KeyCovariance, swapped_in: KeyCovariance) -> Lifetime:
    model = load_model(spec.name)
    contexts = sample_contexts(model, count=PREFIXES.count, length=PREFIXES.length, seed=PREFIXES.seed)
    session = EditSession(model, make_editor(MEMIT), plainly, contexts)
    made = Lifetime(tuple(contexts), [plainly], [])
    for batch in batches():
        made.history.append(session.apply(batch))
        made.versions.append(in_bytes(session.weights()))
        if batch.sequence == 2:
            session.swap_covariance(swapped_in)
            made.history.append(swapped_in)
    return made


def finished(client: EditorClient) -> dict[int, bytes]:
    return in_bytes(ray.get(client.weights()))


def test_an_editor_killed_between_and_during_batches_goes_on_as_if_nothing_had_been(
    spec, plainly, swapped_in, lifetime
):
    history: list[EditReceipt | KeyCovariance] = [plainly]
    editor = EditorClient(RayConfig(max_revivals=10), spec, MEMIT, PREFIXES, lambda: iter(history))
    assert editor.contexts() == lifetime.contexts
    editor.restore()
    for batch in batches():
        with dying(process(editor.actor)) if batch.sequence == 3 else nullcontext():
            receipt = editor.apply(batch)
        if batch.sequence == 4:  # after the batch was applied and before the journal has it
            norms = editor.norms()
            murder(process(editor.actor))
            assert editor.norms() == norms
            assert editor.apply(batch).delta.digest == receipt.delta.digest
        history.append(receipt)
        if batch.sequence == 2:
            history.append(swapped_in)
            murder(process(editor.actor))  # the swap is journaled and not yet told
            editor.swap(swapped_in)
    assert editor.revivals >= 3  # on a starved machine Ray may give up on one that lives: it comes to the same
    assert finished(editor) == lifetime.versions[-1]
    editor.close()


@pytest.mark.slow
def test_an_editor_killed_during_a_restoration_item_by_item(spec, lifetime):
    editor = EditorClient(RayConfig(max_revivals=10), spec, MEMIT, PREFIXES, lambda: iter(lifetime.history))
    murder(process(editor.actor))
    editor.contexts()  # revived before it has begun: it must not begin twice
    covariance, *items = lifetime.history
    assert isinstance(covariance, KeyCovariance)
    editor.begin(covariance)
    versions = []
    for number, item in enumerate(items):
        if number == 3:
            murder(process(editor.actor))
        editor.replay(item)
        if isinstance(item, EditReceipt):
            versions.append(finished(editor))
    assert versions == lifetime.versions
    handed_out = editor.weights()
    murder(process(editor.actor))
    assert in_bytes(ray.get(handed_out)) == finished(editor) == lifetime.versions[-1]
    assert editor.revivals >= 3
    editor.close()


def test_an_editor_killed_during_and_after_a_revert_or_before_a_snapshot_is_the_same_editor(spec, plainly, lifetime):
    first, second = (item for item in lifetime.history[1:3] if isinstance(item, EditReceipt))
    assert first.delta is not None
    gone = REQUESTS[1].id
    known = {request.id: request for request in REQUESTS[:3]}
    order = RevertOrder(3, (gone,), frozenset({gone}), {1: first.delta}, 1, known)
    history: list[HistoryItem] = [plainly, first, second]
    session = EditSession(load_model(spec.name), make_editor(MEMIT), plainly, lifetime.contexts)
    for item in (first, second):
        session.replay(item)
    expected = revert(session, order, history)
    assert expected.delta is not None
    editor = EditorClient(RayConfig(max_revivals=10), spec, MEMIT, PREFIXES, lambda: iter(history))
    editor.contexts()
    editor.restore()
    with dying(process(editor.actor)):
        receipt = editor.revert(order, lambda: history)
    assert receipt.delta is not None and receipt.delta.digest == expected.delta.digest
    murder(process(editor.actor))  # reverted, and not in the journal yet
    assert editor.norms() == session.norms()
    assert editor.revert(order, lambda: history).delta.digest == expected.delta.digest  # type: ignore[union-attr]
    history.append(receipt)
    snapshot = editor.snapshot()
    assert snapshot.sequence == 3 and in_bytes(dict(snapshot.weights)) == in_bytes(session.weights())
    history[1:] = [snapshot]  # from now on the snapshot stands for all commits
    murder(process(editor.actor))
    assert finished(editor) == in_bytes(session.weights()) and editor.revivals >= 3
    editor.close()


def test_a_users_mistake_comes_out_of_an_actor_as_it_is(spec, plainly):
    strict = REGISTRY["alphaedit"][0](layers=(1,), tau=1e-30)
    editor = EditorClient(RayConfig(), spec, strict, PREFIXES, lambda: [plainly])
    with pytest.raises(UserError, match=r"editor.tau 1e-30 leaves no direction free at layer 1") as caught:
        editor.restore()
    assert "\n" not in str(caught.value)
    editor.close()


def test_an_actor_that_cannot_be_made_is_not_made_again_and_again(spec):
    editor = EditorClient(RayConfig(), spec, REGISTRY["memit"][0](layers=(17,)), PREFIXES, lambda: [])
    with pytest.raises(UserError, match="17") as caught:
        editor.contexts()
    assert "\n" not in str(caught.value) and editor.revivals == 0
    editor.close()


# ---------------------------------------------------------------- memory


def test_a_memory_that_was_killed_is_filled_again(local_ray):
    entries = [MemoryEntry.of(request, number + 1) for number, request in enumerate(REQUESTS)]
    known: list[MemoryEntry] = []
    memory = MemoryClient(RayConfig(), HashEmbedderConfig(), IndexConfig(), lambda: known)
    known += entries[:6]
    memory.add(entries[:6])
    questions = [REQUESTS[1].text, REQUESTS[4].text]
    before, digest = memory.search(questions, 3), memory.digest()
    murder(process(memory.actor))
    assert memory.search(questions, 3) == before and memory.digest() == digest
    known += entries[6:]
    assert memory.add(entries[6:]) == 11  # the eighth supersedes the second
    assert memory.search(questions, 1)[0][0].statement == "Alice Munro 1 works in yes."
    memory.close()


# ---------------------------------------------------------------- evaluation


@pytest.mark.slow
def test_an_evaluation_worker_killed_in_the_middle_changes_no_result(spec):
    arms = tuple(arm for arm in ARMS if arm != "routed")  # there is no router here
    settings = EvaluationSettings(ScrConfig(), arms, max_new_tokens=3)
    requests = [EditRequest.model_validate(fact(number)) for number in range(6)]
    hits: dict[str, list[Any]] = {question: [] for question in questions_of(requests)}
    weights = {1: load_model(spec.name).weight(1) * 1.5}
    pool = EvaluationPool(RayConfig(evaluation_workers=2), spec, settings)
    undisturbed = pool.evaluate(requests, weights, hits)
    assert [record.request_id for record in undisturbed.records] == [request.id for request in requests]

    pid = process(pool.actors[0])
    with dying(pid):
        disturbed = pool.evaluate(requests, ray.put(weights), hits)
    assert process(pool.actors[0]) != pid
    assert disturbed.records == undisturbed.records and disturbed.arms == undisturbed.arms

    pool.give_up()
    with pytest.raises(ErrataError, match="abandoned"):
        pool.evaluate(requests, weights, hits)
    pool.close()
