"""Evaluation workers: frozen versions, records shared out, all arms of a record on one worker."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from math import ceil
from typing import Any

import ray
from torch import Tensor

from errata.actors.connection import LOST, raise_if_init_failed, unwrap
from errata.actors.deaths import Deaths
from errata.actors.runtime import WorkerGroup, make_actor, still_wanted, take_back
from errata.actors.settings import ModelSpec, RayConfig, RoleConfig
from errata.actors.workers.evaluation import EvaluationSettings, EvaluationWorker, Hits
from errata.actors.workers.model import yield_to_others
from errata.editing.errors import AbandonedError, ErrataError
from errata.editing.model.streaming import Sampling
from errata.editing.request import EditRequest
from errata.evaluation.answering import ArmAnswer, Question
from errata.evaluation.arms import Evaluation
from errata.evaluation.free_text import FreeText
from errata.evaluation.outcomes import Arm
from errata.evaluation.patience import ENDLESS, Patience
from errata.evaluation.sampling import SamplingConfig
from errata.evaluation.streaming import Opened, TextPiece

logger = logging.getLogger(__name__)

_CHUNKS_PER_WORKER = 2
"""The workers end at nearly the same time, and what a chunk's questions have in common is still run together."""
_MOST_PER_CALL = 16
"""Requests of one call at most, so that there is something to report while a long evaluation goes on."""
_LOOK_SECONDS = 0.1
"""How often it is looked whether whoever asked is still there."""
_MOST_KILLERS, _KILLER_SECONDS = 6, 600.0
"""Workers that may end with a question in hand within so many seconds before none is asked for a while: each of them
takes the evaluation that it was at with it, and loads its model again."""


@ray.remote
class EvaluationActor:
    """Shell of `EvaluationWorker`."""

    def __init__(self, spec: ModelSpec, role: RoleConfig, settings: EvaluationSettings) -> None:
        yield_to_others(role)
        self._worker = EvaluationWorker(spec, role, settings, wanted=still_wanted)

    def evaluate(self, requests: Sequence[EditRequest], weights: Mapping[int, Tensor], hits: Hits) -> Evaluation:
        return self._worker.evaluate(requests, weights, hits)

    def query_seconds(
        self, questions: Sequence[str], weights: Mapping[int, Tensor], hits: Hits, search_seconds: float
    ) -> dict[Arm, float]:
        return self._worker.query_seconds(questions, weights, hits, search_seconds)

    def perplexity(self, text: str | Sequence[str], weights: Mapping[int, Tensor]) -> float:
        return self._worker.perplexity(text, weights)

    def continuations(
        self, prompts: Sequence[str], weights: Mapping[int, Tensor], max_new_tokens: int, chat: bool
    ) -> list[str]:
        return self._worker.continuations(prompts, weights, max_new_tokens, chat)

    def free_texts(
        self, openings: Mapping[str, Sequence[str]], weights: Mapping[int, Tensor], sampling: SamplingConfig
    ) -> dict[str, FreeText]:
        return self._worker.free_texts(openings, weights, sampling)

    def answer(
        self,
        questions: Sequence[Question],
        weights: Mapping[int, Tensor],
        hits: Hits,
        arms: Sequence[Arm],
        max_new_tokens: int | None,
    ) -> list[dict[Arm, ArmAnswer]]:
        return self._worker.answer(questions, weights, hits, arms, max_new_tokens)

    def open_stream(
        self, question: Question, weights: Mapping[int, Tensor], hits: Hits, arm: Arm, sampling: Sampling, plain: bool
    ) -> tuple[int, Opened]:
        return self._worker.open_stream(question, weights, hits, arm, sampling, plain)

    def next_piece(self, number: int, tokens: int) -> TextPiece:
        return self._worker.next_piece(number, tokens)

    def close_stream(self, number: int) -> None:
        self._worker.close_stream(number)


def _ask(part: Sequence[EditRequest], weights: Any, hits: Any, actor: Any) -> Any:
    return actor.evaluate.remote(part, weights, hits)


def _read(documents: Sequence[str], weights: Any, actor: Any) -> Any:
    return actor.perplexity.remote(documents, weights)


def _continue(openings: Mapping[str, Sequence[str]], weights: Any, sampling: SamplingConfig, actor: Any) -> Any:
    return actor.free_texts.remote(openings, weights, sampling)


def free_slot(turn: int, count: int, busy: Collection[int]) -> int:
    """Of ``count`` workers, the next in turn that is not busy; the next in turn where all are."""
    order = [(turn + step) % count for step in range(count)]
    return next((slot for slot in order if slot not in busy), order[0])


@dataclass(frozen=True)
class AnswerStream:
    """An answer under way on some worker.

    Attributes:
        opened: what it rests on.
        next: up to so many tokens more.
        close: nobody wants the rest.
    """

    opened: Opened
    next: Callable[[int], TextPiece]
    close: Callable[[], object]


class EvaluationPool:
    """Shares evaluations out over the workers; a chunk whose worker died is done again by a new one."""

    def __init__(
        self,
        config: RayConfig,
        spec: ModelSpec,
        settings: EvaluationSettings,
        workers: WorkerGroup | None = None,
    ) -> None:
        """``workers`` are actors with the methods of `EvaluationActor`; own ones by default."""
        role = config.evaluation
        self._timeout = config.call_timeout_seconds
        self._workers = workers or WorkerGroup(
            lambda: make_actor(EvaluationActor, role, spec, role, settings),
            max(1, config.evaluation_workers),
            most_revivals=config.max_revivals,
            within=config.revival_seconds,
            what="evaluation workers",
        )
        self._workers.start()
        self._lock = threading.Lock()
        self._given_up = threading.Event()
        self._next_slot = count()
        self._busy: set[int] = set()
        """Slots at a part of an evaluation."""
        self._asked: set[int] = set()
        """Slots with a question in hand."""
        self._turn_over = threading.Condition()
        self._killers = Deaths(_MOST_KILLERS, _KILLER_SECONDS)

    @property
    def actors(self) -> tuple[Any, ...]:
        """Handles of the workers, for fault tests."""
        return self._workers.actors

    def evaluate(self, requests: Sequence[EditRequest], weights: Any, hits: Hits) -> Evaluation:
        """Evaluate records against a frozen version; call from any thread.

        Args:
            requests: at least one.
            weights: the edited maps by layer, or a reference to them.
            hits: per question what the memory found at this version.
        """
        return self.evaluate_with_text(requests, weights, hits, None)[0]

    def evaluate_with_text(
        self,
        requests: Sequence[EditRequest],
        weights: Any,
        hits: Hits,
        text: str | None,
        progress: Callable[[int], None] | None = None,
        wanted: Callable[[], bool] | None = None,
    ) -> tuple[Evaluation, float | None]:
        """As ``evaluate``, with the version's perplexity on a text measured beside it where one is given.

        ``progress`` is called with the number of requests that are done, from the calling thread; ``wanted`` is asked
        now and then whether it is to go on.

        Raises:
            AbandonedError: it is not wanted any more.
        """
        fewest = max(len(self.actors) * _CHUNKS_PER_WORKER, ceil(len(requests) / _MOST_PER_CALL))
        chunks = min(len(requests), fewest)
        parts = [list(requests[i::chunks]) for i in range(chunks)]
        reference = ray.put(hits)
        calls: list[Callable[[Any], Any]] = [partial(_ask, part, weights, reference) for part in parts]
        if text is not None:
            calls.insert(0, lambda actor: actor.perplexity.remote(text, weights))
        sizes = [0] * (len(calls) - chunks) + [len(part) for part in parts]
        finished = 0

        def told(place: int) -> None:
            nonlocal finished
            finished += sizes[place]
            if progress is not None:
                progress(finished)

        results = self._spread(calls, told, wanted)
        done: list[Evaluation] = results[-chunks:]
        by_id = {record.request_id: record for evaluation in done for record in evaluation.records}
        ordered = tuple(by_id[request.id] for request in requests)
        seconds = sum(evaluation.seconds for evaluation in done)
        together = Evaluation(ordered, done[0].arms, seconds)
        return together, results[0] if text is not None else None

    def query_seconds(
        self, questions: Sequence[str], weights: Any, hits: Hits, search_seconds: float
    ) -> dict[Arm, float]:
        """Mean wall seconds of one question asked alone, by arm, on one worker."""
        seconds: list[dict[Arm, float]] = self._spread(
            [lambda actor: actor.query_seconds.remote(list(questions), weights, hits, search_seconds)]
        )
        return seconds[0]

    def perplexity(self, text: str, weights: Any) -> float:
        """Perplexity of a version on held-out text."""
        values: list[float] = self._spread([lambda actor: actor.perplexity.remote(text, weights)])
        return values[0]

    def perplexities(self, texts: Mapping[str, Sequence[str]], weights: Any) -> dict[str, float]:
        """Perplexity of a version on each of several texts, given as documents; the texts go over the workers."""
        calls = [partial(_read, documents, weights) for documents in texts.values()]
        return dict(zip(texts, self._spread(calls), strict=True))

    def continuations(self, prompts: Sequence[str], weights: Any, max_new_tokens: int, chat: bool) -> list[str]:
        """What a version says after each prompt, on one worker."""
        given = list(prompts)
        texts: list[list[str]] = self._spread(
            [lambda actor: actor.continuations.remote(given, weights, max_new_tokens, chat)]
        )
        return texts[0]

    def free_texts(
        self, openings: Mapping[str, Sequence[str]], weights: Any, sampling: SamplingConfig
    ) -> dict[str, FreeText]:
        """Sampled continuations by a version; the facts go over the workers, and no other changes what one says."""
        names = list(openings)
        parts = [names[i :: len(self.actors)] for i in range(min(len(names), len(self.actors)))]
        calls = [partial(_continue, {name: list(openings[name]) for name in part}, weights, sampling) for part in parts]
        texts_by_id: dict[str, FreeText] = {}
        for part in self._spread(calls):
            texts_by_id |= part
        return {name: texts_by_id[name] for name in names}

    def answer(
        self,
        questions: Sequence[Question],
        weights: Any,
        hits: Hits,
        arms: Sequence[Arm],
        max_new_tokens: int | None = None,
        *,
        patience: Patience = ENDLESS,
    ) -> list[dict[Arm, ArmAnswer]]:
        """What the arms say to free questions at a frozen version; call from any thread.

        A worker has one question in hand at a time, so that an evaluation's next part waits for that one and not for
        all that are asked. It goes to a worker that is at no part of an evaluation where there is one; else it waits
        for that worker's part, not for the whole. One whose worker dies is asked of another, once.

        Raises:
            DeadlineError, AbandonedError: ``patience`` is over; the worker drops the question.
            ErrataError: two workers died of it, or so many have died with questions in hand that none is asked now.
        """

        def asked(actor: Any) -> Any:
            return actor.answer.remote(list(questions), weights, hits, tuple(arms), max_new_tokens)

        answers: list[dict[Arm, ArmAnswer]] = self._asked_of_one(asked, patience)[0]
        return answers

    def stream(
        self,
        question: Question,
        weights: Any,
        hits: Hits,
        arm: Arm,
        sampling: Sampling,
        plain: bool = False,
        *,
        patience: Patience = ENDLESS,
    ) -> AnswerStream:
        """Begin an arm's answer to one question at a frozen version; call from any thread. Raises as `answer`."""

        def asked(actor: Any) -> Any:
            return actor.open_stream.remote(question, weights, hits, arm, sampling, plain)

        (number, opened), slot, actor = self._asked_of_one(asked, patience)

        def following(tokens: int) -> TextPiece:
            try:
                piece: TextPiece = self._waited(actor.next_piece.remote(number, tokens), actor, patience)
                return piece
            except LOST as error:
                if not self._given_up.is_set():
                    self._died_of_a_question(slot, actor, error)
                raise ErrataError("the worker that was answering died; ask again") from error
            except ray.exceptions.RayTaskError as error:
                raise unwrap(error) from error

        return AnswerStream(opened, following, lambda: actor.close_stream.remote(number))

    def _asked_of_one(self, ask: Callable[[Any], Any], patience: Patience) -> tuple[Any, int, Any]:
        """A worker's answer, its slot and its handle; of another one where it dies, once."""
        for attempt in range(2):
            if self._killers.too_many:
                raise ErrataError("workers have died of questions too often of late; none is asked for some minutes")
            slot = self._take_turn(patience)
            actor = self.actors[slot]
            try:
                return self._waited(ask(actor), actor, patience), slot, actor
            except LOST as error:
                if self._given_up.is_set():
                    break
                raise_if_init_failed(error)
                self._died_of_a_question(slot, actor, error)
                if attempt:
                    raise ErrataError("two workers died of the question; it is not asked again") from error
                logger.warning("a worker died with a question in hand; another one is asked")
            except ray.exceptions.RayTaskError as error:
                raise unwrap(error) from error
            finally:
                with self._turn_over:
                    self._asked.discard(slot)
                    self._turn_over.notify()
        raise ErrataError("the question was abandoned")

    def _take_turn(self, patience: Patience) -> int:
        """A slot without a question in hand, once there is one."""
        with self._turn_over:
            while True:
                if self._given_up.is_set():
                    raise ErrataError("the question was abandoned")
                patience.check()
                workers = len(self.actors)
                if len(self._asked) < workers:
                    turn = next(self._next_slot)
                    slot = free_slot(turn, workers, self._asked | self._busy)
                    if slot in self._asked:
                        slot = free_slot(turn, workers, self._asked)
                    self._asked.add(slot)
                    return slot
                self._turn_over.wait(_LOOK_SECONDS)

    def _waited(self, reference: Any, actor: Any, patience: Patience) -> Any:
        """The result of a call, while somebody waits for it."""
        until = time.monotonic() + self._timeout
        while not ray.wait([reference], timeout=_LOOK_SECONDS)[0]:
            try:
                if self._given_up.is_set():
                    raise ErrataError("the question was abandoned")
                patience.check()
            except ErrataError:
                take_back(actor, reference)
                raise
            if time.monotonic() > until:
                raise ray.exceptions.GetTimeoutError(f"no answer within {self._timeout:g} seconds")
        return ray.get(reference)

    def _died_of_a_question(self, slot: int, actor: Any, error: BaseException) -> None:
        self._killers.note()
        self._workers.replace(slot, actor, error, counted=False)

    def give_up(self) -> None:
        """End evaluations that are under way with an error; call from any thread."""
        self._given_up.set()

    def close(self) -> None:
        """End the workers."""
        self.give_up()
        self._workers.close()

    def _spread(
        self,
        calls: Sequence[Callable[[Any], Any]],
        told: Callable[[int], None] | None = None,
        wanted: Callable[[], bool] | None = None,
    ) -> list[Any]:
        """Run the calls over the workers, at most one at a time on each; results in the order of the calls.

        ``told`` hears the place of each call that has come to its end; where ``wanted`` says no, the others are not
        waited for.
        """
        with self._lock:
            self._busy.clear()
            waiting = list(enumerate(calls))
            running: dict[Any, tuple[int, int, Any]] = {}
            results: dict[int, Any] = {}
            while waiting or running:
                if self._given_up.is_set():
                    raise ErrataError("the evaluation was abandoned")
                if wanted is not None and not wanted():
                    for reference, (_, _, actor) in running.items():
                        take_back(actor, reference)
                    raise AbandonedError("the evaluation was taken back")
                while waiting and len(self._busy) < len(self.actors):
                    place, call = waiting.pop(0)
                    slot = free_slot(place, len(self.actors), self._busy)
                    actor = self.actors[slot]
                    running[call(actor)] = (place, slot, actor)
                    self._busy.add(slot)
                ready, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
                for reference in ready:
                    place, slot, actor = running.pop(reference)
                    self._busy.discard(slot)
                    try:
                        results[place] = ray.get(reference)
                        if told is not None:
                            told(place)
                    except LOST as error:
                        if self._given_up.is_set():
                            raise ErrataError("the evaluation was abandoned") from error
                        raise_if_init_failed(error)
                        self._workers.replace(slot, actor, error, counted=slot not in self._asked)
                        logger.warning("an evaluation worker died; a new one repeats its records")
                        waiting.append((place, calls[place]))
                    except ray.exceptions.RayTaskError as error:
                        raise unwrap(error) from error
            return [results[i] for i in range(len(calls))]
