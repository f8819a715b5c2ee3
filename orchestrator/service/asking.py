"""Questions to the live version: what the memory finds, what each arm says. Never waits for a batch to be edited."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from errata.editing.errors import ErrataError
from errata.evaluation.answering import ArmAnswer, Question
from errata.evaluation.outcomes import MEMORY_ARMS, Arm
from errata.orchestrator.journal.rows import Version
from errata.orchestrator.service.core import Live
from errata.orchestrator.service.errors import busy, unavailable


class Finder(Protocol):
    """The memory, as `errata.actors.retrieval.MemoryClient` is."""

    def search(self, questions: Sequence[str], k: int) -> Sequence[Sequence[Any]]: ...


class Answerer(Protocol):
    """Evaluation workers, as `errata.actors.evaluation.EvaluationPool` is."""

    def answer(
        self,
        questions: Sequence[Question],
        weights: Any,
        hits: Mapping[str, Sequence[Any]],
        arms: Sequence[Arm],
        max_new_tokens: int | None = None,
    ) -> list[dict[Arm, ArmAnswer]]: ...


@dataclass(frozen=True)
class Answers:
    """What came of some questions."""

    version: Version
    answers: list[dict[Arm, ArmAnswer]]
    edits: Mapping[int, str]
    """Ids of the edits whose statements were found, by the number of the statement."""
    seconds: float


class Asking:
    """At most ``limit`` calls at a time; a further one is refused rather than queued."""

    def __init__(
        self, live: Callable[[], Live], memory: Finder, evaluators: Answerer, *, k: int, arms: Sequence[Arm], limit: int
    ) -> None:
        self._live, self._memory, self._evaluators, self._k = live, memory, evaluators, k
        self.arms = tuple(arms)
        self._room = threading.Semaphore(limit)
        self._threads = ThreadPoolExecutor(limit, thread_name_prefix="errata-ask")

    def submit(self, questions: Sequence[Question], arms: Sequence[Arm], max_new_tokens: int | None) -> Future[Answers]:
        """Ask in the background.

        Raises:
            ServiceError: 429 when too many questions are under way, 503 before the first version is there.
        """
        live = self._live()
        if not self._room.acquire(blocking=False):
            raise busy("too many questions are under way", retry_after=2)
        try:
            future = self._threads.submit(self._ask, live, list(questions), tuple(arms), max_new_tokens)
        except RuntimeError:  # the pool has been shut down
            self._room.release()
            raise unavailable("the service is ending") from None
        future.add_done_callback(lambda _: self._room.release())
        return future

    def close(self) -> None:
        """Refuse further questions; those under way end by themselves or with the workers."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _ask(self, live: Live, questions: list[Question], arms: tuple[Arm, ...], limit: int | None) -> Answers:
        started = time.perf_counter()
        texts = list(dict.fromkeys(question.text for question in questions))
        try:
            near = self._memory.search(texts, self._k) if MEMORY_ARMS & set(arms) else [[] for _ in texts]
            hits = dict(zip(texts, near, strict=True))
            answers = self._evaluators.answer(questions, live.weights, hits, arms, limit)
        except ErrataError as error:
            raise unavailable(f"the question could not be answered: {error}") from error
        edits = {hit.id: hit.request_id for row in near for hit in row}
        return Answers(live.version, answers, edits, time.perf_counter() - started)
