"""Questions to evaluation workers, without Ray: turns, deaths, patience; and passes that end when nobody waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import ray.exceptions

from errata.actors import evaluation as module
from errata.actors.deaths import Deaths
from errata.actors.evaluation import EvaluationPool
from errata.actors.runtime import WorkerGroup
from errata.actors.settings import ModelSpec, RayConfig
from errata.actors.workers.evaluation import EvaluationSettings
from errata.editing.errors import AbandonedError, DeadlineError, ErrataError
from errata.editing.model.engine import LanguageEngine
from errata.evaluation.answering import Question
from errata.evaluation.patience import ENDLESS, Patience
from errata.retrieval.scr import ScrConfig
from tests.helpers.tiny import tiny_model

GONE = ray.exceptions.RayActorError("id", "its process ended")


class Reference:
    """Ready once its event is set; what it gives may be an error."""

    def __init__(self, value: Any, ready: bool) -> None:
        self.value, self.event, self.taken_back = value, threading.Event(), False
        if ready:
            self.event.set()


class Worker:
    """An actor; what it answers, and whether at once, is the test's choice."""

    def __init__(self, say: Any = "said", at_once: bool = True) -> None:
        self.say, self.at_once, self.asked = say, at_once, list[Reference]()
        self.answer = self.evaluate = SimpleNamespace(remote=self._ask)

    def _ask(self, *_: Any) -> Reference:
        self.asked.append(Reference(self.say, self.at_once))
        return self.asked[-1]


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(references: list[Reference], timeout: float, num_returns: int = 1) -> tuple[list[Reference], None]:
        until = time.monotonic() + timeout
        while not (ready := [one for one in references if one.event.is_set()]) and time.monotonic() < until:
            time.sleep(0.002)
        return ready, None

    def get(reference: Reference, timeout: float | None = None) -> Any:
        if isinstance(reference.value, BaseException):
            raise reference.value
        return reference.value

    def take_back(actor: Any, reference: Reference) -> None:
        reference.taken_back = True

    monkeypatch.setattr(
        module, "ray", SimpleNamespace(wait=wait, get=get, put=lambda it: it, exceptions=ray.exceptions)
    )
    monkeypatch.setattr(module, "take_back", take_back)


def pool_of(*workers: Worker, most: int = 5) -> EvaluationPool:
    waiting = list(workers)
    count = sum(1 for _ in workers) if len(workers) < 3 else 1
    group = WorkerGroup(lambda: waiting.pop(0), count, most_revivals=most, what="workers", end=lambda _: None)
    settings = EvaluationSettings(ScrConfig(), ("base",))
    return EvaluationPool(RayConfig(max_revivals=most), ModelSpec(name="x"), settings, group)


def ask(pool: EvaluationPool, patience: Patience = ENDLESS) -> Any:
    return pool.answer([Question("Where?")], {}, {}, ["base"], patience=patience)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_question_whose_worker_dies_is_asked_once_more_and_then_given_up() -> None:
    assert ask(pool_of(Worker(GONE), Worker("said"), Worker())) == "said"
    workers = [Worker(GONE), Worker(GONE), Worker("said")]
    with pytest.raises(ErrataError, match="two workers died of the question"):
        ask(pool_of(*workers))
    assert [len(worker.asked) for worker in workers] == [1, 1, 0]


def test_deaths_with_a_question_in_hand_are_not_the_runs_and_after_many_nobody_is_asked() -> None:
    pool = pool_of(*(Worker(GONE) for _ in range(20)), most=0)
    refused = []
    for _ in range(6):
        with pytest.raises(ErrataError) as error:
            ask(pool)
        refused.append(str(error.value))
    assert [text for text in refused if "allowed: ray.max_revivals" in text] == []
    assert "two workers died" in refused[0] and "none is asked for some minutes" in refused[-1]


def test_a_worker_has_one_question_in_hand_and_an_evaluation_comes_in_between() -> None:
    worker = Worker(at_once=False)
    pool = pool_of(worker)
    threads = [threading.Thread(target=ask, args=(pool,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: len(worker.asked) == 1)
    time.sleep(0.1)
    assert len(worker.asked) == 1, "the others wait outside of the worker's own line"
    for number in range(1, 4):
        until(lambda n=number: len(worker.asked) == n)  # type: ignore[misc]
        worker.asked[-1].event.set()
    for thread in threads:
        thread.join(20)
    assert len(worker.asked) == 3


@pytest.mark.parametrize("kind", [DeadlineError, AbandonedError])
def test_who_has_waited_long_enough_leaves_the_worker_to_the_next(kind: type[ErrataError]) -> None:
    worker, gone = Worker(at_once=False), threading.Event()
    pool = pool_of(worker)
    patience = Patience.within(0.2) if kind is DeadlineError else Patience.within(60, gone.is_set)
    threading.Timer(0.2, gone.set).start()
    with pytest.raises(kind):
        ask(pool, patience)
    assert worker.asked[0].taken_back
    worker.at_once = True
    assert ask(pool) == "said"


def test_who_gives_up_while_waiting_for_a_turn_never_reaches_a_worker() -> None:
    worker = Worker(at_once=False)
    pool = pool_of(worker)
    first = threading.Thread(target=ask, args=(pool,))
    first.start()
    until(lambda: len(worker.asked) == 1)
    with pytest.raises(DeadlineError):
        ask(pool, Patience.within(0.2))
    assert len(worker.asked) == 1
    worker.asked[0].event.set()
    first.join(20)


def test_an_evaluation_that_is_not_wanted_any_more_is_taken_back() -> None:
    worker = Worker(at_once=False)
    pool, wanted = pool_of(worker), threading.Event()
    wanted.set()
    request: Any = SimpleNamespace(id="one")
    threading.Timer(0.2, wanted.clear).start()
    with pytest.raises(AbandonedError):
        pool.evaluate_with_text([request], {}, {}, None, None, wanted.is_set)
    assert worker.asked[0].taken_back


def test_deaths_are_forgotten_after_a_time() -> None:
    now = [0.0]
    deaths = Deaths(2, 60.0, clock=lambda: now[0])
    for second in (0, 40, 80, 120, 160):  # one every forty seconds, for ever
        now[0] = float(second)
        deaths.note()
        assert not deaths.too_many
    now[0] = 170.0
    assert deaths.note() == 3 and deaths.too_many
    now[0] = 300.0
    assert deaths.of_late == 0 and not deaths.too_many


def test_a_pass_that_nobody_waits_for_is_not_begun() -> None:
    engine = LanguageEngine(tiny_model(layers=2))
    prompt = engine.model.text.encode_prompt("The capital of France is")
    whole = engine.generate([prompt], max_new_tokens=6, stop_at_newline=False)
    passes = [0]

    def end() -> None:
        passes[0] += 1
        if passes[0] == 3:
            raise AbandonedError("gone")

    engine.before_pass = end
    with pytest.raises(AbandonedError):
        engine.generate([prompt], max_new_tokens=6, stop_at_newline=False)
    engine.before_pass = None
    assert engine.generate([prompt], max_new_tokens=6, stop_at_newline=False) == whole, "and nothing is left of it"
