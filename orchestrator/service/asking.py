"""Questions to the live version: what the memory finds, what each arm says. Never waits for a batch to be edited."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Protocol

from errata.editing.errors import DeadlineError, ErrataError, in_words
from errata.editing.model.capacity import Capacity
from errata.editing.model.streaming import Sampling
from errata.editing.model.text import TextCodec
from errata.editing.wording import counted
from errata.evaluation.answering import ArmAnswer, Question
from errata.evaluation.outcomes import MEMORY_ARMS, Arm, AskedArm
from errata.evaluation.patience import ENDLESS, Patience
from errata.evaluation.streaming import Opened, TextPiece
from errata.orchestrator.history.past import Moment, Past
from errata.orchestrator.journal.rows import Version
from errata.orchestrator.measuring.finding import findings
from errata.orchestrator.service.core import Live
from errata.orchestrator.service.errors import ServiceError, busy, unavailable
from errata.orchestrator.service.past import arms_then
from errata.retrieval.router import Findings, FittedRouter, Routing

_LETTERS_PER_TOKEN: Final = 32
"""No text that somebody means has more; what has is refused unread."""


class Finder(Protocol):
    """The memory, as `errata.actors.clients.MemoryClient` is."""

    def search(self, questions: Sequence[str], k: int) -> Sequence[Sequence[Any]]: ...

    def route(self, questions: Sequence[str], k: int) -> Routing: ...

    def resolved(self, turns: Sequence[str]) -> str: ...

    def router(self) -> FittedRouter: ...


class AnswerUnderWay(Protocol):
    """One answer, as `errata.actors.evaluation.AnswerStream` is."""

    @property
    def opened(self) -> Opened: ...
    @property
    def next(self) -> Callable[[int], TextPiece]: ...
    @property
    def close(self) -> Callable[[], object]: ...


class Answerer(Protocol):
    """Evaluation workers, as `errata.actors.evaluation.EvaluationPool` is."""

    def answer(
        self,
        questions: Sequence[Question],
        weights: Any,
        hits: Mapping[str, Sequence[Any]],
        arms: Sequence[Arm],
        max_new_tokens: int | None = None,
        *,
        patience: Patience = ENDLESS,
    ) -> list[dict[Arm, ArmAnswer]]: ...

    def stream(
        self,
        question: Question,
        weights: Any,
        hits: Any,
        arm: Arm,
        sampling: Sampling,
        plain: bool = False,
        *,
        patience: Patience = ENDLESS,
    ) -> AnswerUnderWay: ...


@dataclass(frozen=True)
class Answers:
    """What came of some questions."""

    version: Version
    answers: list[dict[Arm, ArmAnswer]]
    edits: Mapping[int, str]
    """Ids of the edits whose statements were found, by the number of the statement."""
    seconds: float
    moment: Moment | None = None
    """The time that they are about, where it is not now."""


class Bounds:
    """How long a question may be: ``most`` tokens, and what the model can take in.

    A conversation counts as the chat template makes it; what the memory adds is left out where it does not fit.
    """

    def __init__(self, text: TextCodec, capacity: Capacity, most: int) -> None:
        self._text, self._capacity, self._most = text, capacity, most

    def check(self, question: Question) -> None:
        """Raise unless it may be asked.

        Raises:
            ServiceError: 400 where it is too long, holds a token that the model does not know, or is a conversation
                that the model's chat template refuses.
        """
        written = [message["content"] for message in question.messages] or [question.text]
        if sum(map(len, written)) > self._most * _LETTERS_PER_TOKEN:
            raise self._too_long(f"more than {self._most * _LETTERS_PER_TOKEN} characters")
        try:
            ids = self._ids(question)
        except Exception as error:  # a template's own words, of whatever type
            raise ServiceError(400, "bad_conversation", f"the model's chat template says: {in_words(error)}") from error
        if len(ids) > self._most:
            raise self._too_long(counted(len(ids), "token"))
        problem = self._capacity.problem(self._text, ids)
        if problem is not None:
            raise ServiceError(400, "context_length_exceeded", f"the question cannot be taken in: {problem}")

    def _ids(self, question: Question) -> list[int]:
        if not question.messages:
            return self._text.encode_prompt(question.text)
        told = [dict(message) for message in question.messages]
        if self._text.has_chat_template:
            return self._text.encode_chat(told)
        return self._text.encode_prompt("\n".join(message["content"] for message in told))

    def _too_long(self, what: str) -> ServiceError:
        return ServiceError(
            400, "context_length_exceeded", f"the question has {what}; service.max_question_tokens is {self._most}"
        )


@dataclass(frozen=True)
class Speaking:
    """An answer under way; the version it speaks for is held until its end."""

    version: Version
    opened: Opened
    edits: Mapping[int, str]
    """Ids of the edits whose statements were found, by the number of the statement."""
    router: str | None
    """Digest of the router that decided, for the routed arm."""
    moment: Moment | None
    """The time that it is about, where it is not now."""
    next: Callable[[int], TextPiece]
    """Up to so many tokens more; waits for them."""
    close: Callable[[], None]
    """Ends it, whether all was said or not; to be called at least once."""


class Asking:
    """At most ``limit`` calls at a time; a further one is refused rather than queued."""

    def __init__(
        self,
        live: Callable[[], Live],
        memory: Finder,
        evaluators: Answerer,
        *,
        k: int,
        arms: Sequence[AskedArm],
        limit: int,
        past: Past,
        bounds: Bounds | None = None,
    ) -> None:
        """``past`` finds what questions about another time rest on."""
        self._bounds, self.past = bounds, past
        self._live, self._memory, self._evaluators, self._k = live, memory, evaluators, k
        self.arms = tuple(arms)
        self._room = threading.Semaphore(limit)
        self._threads = ThreadPoolExecutor(limit, thread_name_prefix="errata-ask")

    def router(self) -> FittedRouter:
        """The router in force."""
        return self._memory.router()

    def check(self, questions: Sequence[Question]) -> None:
        """Raise ServiceError unless every question may be asked; `Bounds.check`."""
        if self._bounds is not None:
            for question in questions:
                self._bounds.check(question)

    def submit(
        self,
        questions: Sequence[Question],
        arms: Sequence[Arm],
        max_new_tokens: int | None,
        patience: Patience = ENDLESS,
        moment: Moment | None = None,
    ) -> Future[Answers]:
        """Ask in the background, for as long as ``patience`` lasts; about ``moment``, or now.

        Raises:
            ServiceError: 429 when too many questions are under way, 503 before the first version is there, 422 where an
                arm needs the weights of another time.
        """
        live = self._live()
        self._require_weights(arms, moment, live)
        if not self._room.acquire(blocking=False):
            raise busy("too many questions are under way", retry_after=2)
        try:
            future = self._threads.submit(
                self._ask, live, list(questions), tuple(arms), max_new_tokens, patience, moment
            )
        except RuntimeError:  # the pool has been shut down
            self._room.release()
            raise unavailable("the service is ending") from None
        future.add_done_callback(lambda _: self._room.release())
        return future

    def speak(
        self,
        question: Question,
        arm: Arm,
        sampling: Sampling,
        *,
        plain: bool = False,
        patience: Patience = ENDLESS,
        moment: Moment | None = None,
    ) -> Future[Speaking]:
        """Begin one arm's answer in the background; it counts as a question until it is closed.

        Args:
            moment: the time that it is to be about, where that is not now.
            plain: the answer is continued text, so its leading space belongs to it.
            patience: of whoever asks, for the whole answer.

        Raises:
            ServiceError: as `submit`.
        """
        live = self._live()
        self._require_weights([arm], moment, live)
        if not self._room.acquire(blocking=False):
            raise busy("too many questions are under way", retry_after=2)
        try:
            return self._threads.submit(self._speak, live, question, arm, sampling, plain, patience, moment)
        except RuntimeError:
            self._room.release()
            raise unavailable("the service is ending") from None

    def arms_at(self, moment: Moment | None) -> list[Arm]:
        """The arms that can answer a question about a moment."""
        if moment is None or moment.is_of(self._live().version):
            return list(self.arms)
        return arms_then(None, self.arms)

    def _require_weights(self, arms: Sequence[Arm], moment: Moment | None, live: Live) -> None:
        if moment is not None and not moment.is_of(live.version):
            arms_then(arms, self.arms)

    def _speak(
        self,
        live: Live,
        question: Question,
        arm: Arm,
        sampling: Sampling,
        plain: bool,
        patience: Patience,
        moment: Moment | None,
    ) -> Speaking:
        try:
            near: Sequence[Any] = []
            routing = None
            edits: Mapping[int, str] = {}
            if arm == "routed" and len(question.messages) > 1:
                turns = [turn["content"] for turn in question.messages if turn["role"] != "system"]
                question = Question(self._memory.resolved(turns), question.messages)
            if moment is not None and not moment.is_of(live.version):
                then, edits = self._found([question.text], [arm], moment)
                near, routing = then[question.text], then.routing if arm == "routed" else None
            elif arm == "routed":
                routing = self._memory.route([question.text], self._k)
                near = [candidate.hit for candidate in routing.candidates.get(question.text, ())]
            elif arm in MEMORY_ARMS:
                near = self._memory.search([question.text], self._k)[0]
            findings = Findings({question.text: near}, routing)
            stream = self._evaluators.stream(question, live.weights, findings, arm, sampling, plain, patience=patience)
        except ErrataError as error:
            self._room.release()
            raise _no_answer(error) from error
        except BaseException:
            self._room.release()
            raise

        once = threading.Lock()

        def end() -> None:
            if once.acquire(blocking=False):  # never released: the second call does nothing
                self._room.release()
                stream.close()

        def more(tokens: int) -> TextPiece:
            try:
                return stream.next(tokens)
            except ErrataError as error:
                raise _no_answer(error, "the answer could not be finished") from error

        digest = routing.fitted.digest if routing is not None else None
        names = edits or {hit.id: hit.request_id for hit in near}
        return Speaking(live.version, stream.opened, names, digest, moment, more, end)

    def close(self) -> None:
        """Refuse further questions; those under way end by themselves or with the workers."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _ask(
        self,
        live: Live,
        questions: list[Question],
        arms: tuple[Arm, ...],
        limit: int | None,
        patience: Patience,
        moment: Moment | None,
    ) -> Answers:
        started = time.perf_counter()
        texts = list(dict.fromkeys(question.text for question in questions))
        try:
            then = None if moment is None or moment.is_of(live.version) else moment
            hits, edits = self._found(texts, arms, then)
            answers = self._evaluators.answer(questions, live.weights, hits, arms, limit, patience=patience)
        except ErrataError as error:
            raise _no_answer(error) from error
        return Answers(live.version, answers, edits, time.perf_counter() - started, moment)

    def _found(
        self, texts: Sequence[str], arms: Sequence[Arm], moment: Moment | None
    ) -> tuple[Findings, Mapping[int, str]]:
        """What the memory finds, and the edits of the statements found."""
        if moment is not None:
            if MEMORY_ARMS & set(arms):
                return self.past.find(texts, moment)
            return Findings({text: [] for text in texts}), {}
        found = findings(self._memory, texts, self._k, arms)
        return found, {hit.id: hit.request_id for row in found.values() for hit in row}


def _no_answer(error: ErrataError, what: str = "the question could not be answered") -> ServiceError:
    """504 where it took too long, else 503."""
    if isinstance(error, DeadlineError):
        return ServiceError(504, "deadline", f"{what}: it takes longer than service.answer_seconds")
    return unavailable(f"{what}: {error}")
