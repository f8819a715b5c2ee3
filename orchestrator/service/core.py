"""The heart of the service: one thread owns the pipeline and changes versions, everybody else hands it commands.

Acceptances go through a thread of their own, so that a client never waits for a batch to be edited; questions go to
the evaluation workers on a frozen version, so that they neither wait for a batch nor hold one up.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeVar

from errata.editing.errors import (
    AbandonedError,
    DamagedFileError,
    EditorFaultError,
    ErrataError,
    NumericalError,
    UserError,
)
from errata.editing.request import EditRequest
from errata.editing.wording import counted
from errata.orchestrator.config.service import ServiceConfig
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.intake import Admit
from errata.orchestrator.journal.rows import Accepted, Version, shown_state
from errata.orchestrator.run.repairing import REPAIR
from errata.orchestrator.service.acceptor import Acceptor
from errata.orchestrator.service.errors import ServiceError, busy, conflict, not_found, unavailable
from errata.orchestrator.service.reverting import Reverting, RevertOutcome

if TYPE_CHECKING:
    from errata.orchestrator.run.pipeline import Inspection

logger = logging.getLogger(__name__)

T = TypeVar("T")
State = Literal["starting", "running", "paused", "draining", "failed"]
PAUSED: Final = "service_paused"
RESUMED: Final = "service_resumed"
_KEPT_EVALUATIONS: Final = 100
_START_GRACE: Final = 2.0
"""Seconds in which a start that is nearly done may end by itself, once the service ends."""
_ANSWER_GRACE: Final = 10.0
"""Seconds that answers under way get once the service ends; below the time after which its server cuts connections."""


class PipelineLike(Protocol):
    """What the service needs of `errata.orchestrator.run.pipeline.Pipeline`."""

    journal: Journal
    after_commit: list[Callable[[Version], None]]

    @property
    def editor(self) -> Any: ...
    def start(self) -> None: ...
    def head(self) -> Version: ...
    def write_next(self, *, ended: bool) -> Version | None: ...
    def revert(self, request_ids: Sequence[str], *, reason: str = "", by: str | None = None) -> Version: ...
    def request_refresh(self) -> bool: ...
    def inspect(self) -> Inspection: ...
    def give_up(self) -> None: ...
    def measure(
        self, requests: Sequence[EditRequest], *, kind: str = ..., wanted: Callable[[], bool] | None = ...
    ) -> Future[Any]: ...
    def close(self) -> None: ...


class GuardLike(Protocol):
    """What the service needs of `errata.orchestrator.guard.Guard`; all but ``paused`` from the writer thread."""

    @property
    def paused(self) -> str | None: ...
    def start(self) -> None: ...
    def act(self) -> None: ...
    def resume(self, by: str) -> None: ...


@dataclass(frozen=True)
class Live:
    """A version that questions are put to; the weights are a reference, frozen."""

    version: Version
    weights: Any


@dataclass
class Asked:
    """An evaluation that a client asked for, while this process lives."""

    name: str
    facts: int
    state: Literal["waiting", "running", "done", "failed", "canceled"] = "waiting"
    version: str | None = None
    problem: str | None = None
    given_up: threading.Event = field(default_factory=threading.Event, repr=False)
    under_way: Future[Any] | None = field(default=None, repr=False)

    @property
    def open(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ("waiting", "running")

    def view(self) -> dict[str, Any]:
        """As it is shown."""
        return {name: getattr(self, name) for name in ("name", "facts", "state", "version", "problem")}


@dataclass(frozen=True)
class _Command:
    work: Callable[[], Any]
    answer: Future[Any]


class ServiceCore:
    """Accepting, editing, reverting, pausing; see the module.

    Args:
        pipeline: built, not started; from ``start`` on it belongs to the writer thread.
        guard: attached to the pipeline already; its verdicts are acted on between batches.
        closing: called by the writer thread before the pipeline is closed.
        admit: the gate that every edit goes through.
        reader: another connection to the journal, for what is looked up while it is being written.
    """

    def __init__(
        self,
        pipeline: PipelineLike,
        config: ServiceConfig,
        *,
        guard: GuardLike | None = None,
        closing: Callable[[], None] = lambda: None,
        admit: Admit = EditRequest.cleaned,
        reader: Journal | None = None,
    ) -> None:
        self.pipeline, self.config, self.journal = pipeline, config, pipeline.journal
        self._guard, self._closing = guard, closing
        self._commands: queue.Queue[_Command] = queue.Queue(config.max_queued_calls)
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._draining_since: float | None = None
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._paused = self._kept_pause()
        self._live: Live | None = None
        self._batches: deque[tuple[float, int]] = deque(maxlen=20)
        self._asked: deque[Asked] = deque(maxlen=_KEPT_EVALUATIONS)
        self._numbers = count(1)
        self._edits = 0
        self.batch_seconds: list[Callable[[float, int], None]] = []
        """Told of every batch: wall seconds, edits applied."""
        self.verified: list[Callable[[int, int], None]] = []
        """Told of every batch that was looked at: edits that landed, and that are weak."""
        self.repaired: list[Callable[[int], None]] = []
        """Told how many edits a repair has written again."""
        self.on_failure: Callable[[], None] = lambda: None
        """Called once, from the writer thread, when it cannot go on."""
        self._reverting = Reverting(pipeline)
        self.acceptor = Acceptor(
            self.journal,
            max_waiting=config.max_waiting,
            max_waiting_bytes=config.max_waiting_bytes,
            max_queued=config.max_queued_calls,
            retry_after=self.retry_after,
            accepted=self._wake.set,
            admit=admit,
            reader=reader,
        )
        # before the guard, which may take its time or commit a revert of its own
        pipeline.after_commit.insert(0, self._committed)
        self._writer = threading.Thread(target=self._work, name="errata-writer", daemon=True)

    # --- life ---

    def start(self) -> None:
        """Start the pipeline in the background; edits are accepted from now on, questions once it is ready."""
        self._writer.start()

    @property
    def ready(self) -> bool:
        """Whether the pipeline has started and works."""
        return self._started.is_set() and self._failure is None and not self._stopping.is_set()

    @property
    def failure(self) -> BaseException | None:
        """What ended the writer thread, or None."""
        return self._failure

    @property
    def state(self) -> State:
        if self._failure is not None:
            return "failed"
        if self._stopping.is_set():
            return "draining"
        if not self._started.is_set():
            return "starting"
        return "paused" if self.paused is not None else "running"

    def wake(self) -> None:
        """Have the writer look at once whether a batch is due."""
        self._wake.set()

    @property
    def stopping(self) -> bool:
        """Whether nothing new is taken any more."""
        return self._stopping.is_set()

    @property
    def cut_off(self) -> bool:
        """Whether answers under way have had their time since the service was told to end."""
        since = self._draining_since
        return since is not None and time.monotonic() - since > _ANSWER_GRACE

    def drain(self) -> None:
        """Take nothing more; whoever waits for a batch or a commit is answered at once. What is under way goes on."""
        if self._draining_since is None:
            self._draining_since = time.monotonic()
        self._stopping.set()
        self._wake.set()

    def stop(self) -> None:
        """Take nothing more, let the batch under way end, close the pipeline; what waits stays in the journal.

        A batch that takes longer than ``service.end_seconds`` is given up: it has left no trace, and is done again. A
        start, which nobody waits for any more, is given up at once.
        """
        self.drain()
        self.acceptor.close()
        self._wake.set()
        if self._writer.is_alive():
            began = self._draining_since or time.monotonic()
            patience = self.config.end_seconds if self._started.is_set() else min(self.config.end_seconds, _START_GRACE)
            self._writer.join(max(0.0, began + patience - time.monotonic()))
            if self._writer.is_alive():
                if self._started.is_set():
                    logger.warning("the batch under way takes longer than service.end_seconds; it is given up")
                else:
                    logger.info("the start is given up; the next one begins it again")
                self.pipeline.give_up()
                self._writer.join()
        self._fail_commands(unavailable("the service is ending; what was journaled is done after the next start"))

    # --- clients' calls, from any thread ---

    def accept(self, requests: Sequence[EditRequest]) -> Future[list[Accepted]]:
        """Journal requests; see `Acceptor.submit`. Takes half a millisecond of the calling thread for each."""
        if self._failure is not None:
            raise unavailable("the service has failed; nothing was taken", retry_after=30)
        if self._stopping.is_set():
            raise unavailable("the service is ending; nothing was taken")
        return self.acceptor.submit(requests)

    def revert(self, ids: Sequence[str], *, reason: str = "", by: str | None = None) -> Future[RevertOutcome]:
        """Take edits out of weights and memory, or withdraw them while they wait.

        The intent is in the journal when this returns, and is carried out after a crash as well.

        Raises:
            ServiceError: 404, 409: an edit that is not there, or that cannot be reverted.
        """
        for name in ids:
            row = self.journal.request(name)
            if row is None:
                raise not_found(f"there is no edit {name!r}")
            if row.state in ("rejected", "superseded"):
                raise conflict(f"edit {name!r} is {shown_state(row.state)} and cannot be reverted")
        self._room()
        number = self._reverting.intend(ids, reason=reason, by=by)
        return self._command(lambda: self._reverting.carry_out(number, ids, reason=reason, by=by), sure=True)

    def refresh(self) -> Future[bool]:
        """Begin a new estimate of the covariance; False if one is under way."""
        return self._command(self.pipeline.request_refresh)

    def inspect(self) -> Future[Inspection]:
        """What editor and memory hold, between two batches."""
        return self._command(self.pipeline.inspect)

    def between_batches(self, work: Callable[[], T]) -> Future[T]:
        """Have the thread that commits do something short.

        Raises:
            ServiceError: 429, 503: too much waits, or the service is ending.
        """
        return self._command(work)

    def evaluate(self, ids: Sequence[str] | None, sample: int | None) -> Asked:
        """Evaluate applied edits on the version that is newest when its turn comes.

        Raises:
            ServiceError: 404, 409: nothing to evaluate, 429: so many wait already.
        """
        if self.open_evaluations >= self.config.max_evaluations:
            raise busy(
                f"{counted(self.config.max_evaluations, 'evaluation')} at most may wait or run; take one back or wait",
                retry_after=30,
            )
        rows = self.journal.applied_spread(sample or 24) if ids is None else [self._applied(name) for name in ids]
        if not rows:
            raise conflict("no edit is applied yet: there is nothing to evaluate")
        asked = Asked(f"e{next(self._numbers)}", len(rows))
        requests = [row.request for row in rows]
        self._command(lambda: self._measure(asked, requests))
        self._asked.append(asked)
        return asked

    def give_up_evaluation(self, name: str) -> Asked:
        """Take back an evaluation; one that is done stays done.

        Raises:
            ServiceError: 404: none of this name was asked for since the start.
        """
        asked = next((asked for asked in self.asked() if asked.name == name), None)
        if asked is None:
            raise not_found(f"no evaluation {name[:40]!r} was asked for since the start")
        if asked.open:
            asked.given_up.set()
            if asked.under_way is None or asked.under_way.cancel():
                asked.state = "canceled"
        return asked

    def asked(self) -> list[Asked]:
        """Evaluations that were asked for since the start, oldest first."""
        return list(self._asked)

    @property
    def open_evaluations(self) -> int:
        """How many of them wait or run."""
        return sum(asked.open for asked in self.asked())

    @property
    def paused(self) -> str | None:
        """Why nothing is written, or None; the guard's reason comes first."""
        return (self._guard.paused if self._guard is not None else None) or self._paused

    def pause(self, *, reason: str | None = None, by: str | None = None) -> None:
        """Write nothing from the next batch on; edits are still accepted, reverts still done. Holds over restarts."""
        if self._paused is None:
            self.journal.record_event(PAUSED, {"reason": reason, "by": by})
            self._paused = reason or "paused"
            logger.warning("paused by %s: %s", by or "somebody", self._paused)

    def resume(self, *, by: str | None = None, reason: str | None = None) -> None:
        """Go on writing, whoever had paused."""
        if self._paused is not None:
            self.journal.record_event(RESUMED, {"reason": reason, "by": by})
            self._paused = None
        if self._guard is not None and self._guard.paused is not None:
            guard = self._guard
            self._command(lambda: guard.resume(by or "the service"))
        self._wake.set()

    @property
    def live(self) -> Live:
        """The newest version that questions can be put to.

        Raises:
            ServiceError: 503 while there is none.
        """
        if self._live is None:
            raise unavailable("the service is starting", retry_after=10)
        return self._live

    @property
    def queued(self) -> int:
        """Commands that wait for the writer thread."""
        return self._commands.qsize()

    def retry_after(self) -> float:
        """Seconds until about a batch's worth of room is there, from the batches of late."""
        if not self._batches or self.paused is not None:
            return 30.0
        seconds = sum(taken for taken, _ in self._batches) / len(self._batches)
        return min(300.0, max(1.0, seconds))

    # --- the writer thread ---

    def _work(self) -> None:
        try:
            # what is computed and not committed is lost work: wait on where another process has the journal locked
            self.journal.insist(unless=self._stopping.is_set)
            self._begin()
            while not self._stopping.is_set():
                self._wake.clear()
                self._do_commands()
                if self._guard is not None:
                    self._guard.act()
                if self._stopping.is_set() or self._write():
                    continue
                self._wake.wait(self.config.poll_seconds)
        except BaseException as error:
            if self._stopping.is_set() and isinstance(error, ErrataError):
                logger.warning("ended with something under way, which is done again after the next start: %s", error)
                return
            self._failure = error
            logger.exception("the service cannot go on")
            self._fail_commands(unavailable("the service has failed", retry_after=30))
        finally:
            try:
                self._closing()
                self.pipeline.close()
            except Exception:
                logger.exception("the pipeline did not close cleanly")
            if self._failure is not None:
                self.on_failure()

    def _begin(self) -> None:
        self.pipeline.start()
        head = self.pipeline.head()
        self._edits = head.edits
        self._look_at(head)
        if self._guard is not None:
            self._guard.start()
        for intent in self._reverting.open_intents():
            try:
                self._reverting.carry_out_again(intent)
            except (UserError, NumericalError, DamagedFileError) as error:
                logger.warning("a revert that was promised before cannot be done: %s", error)
        self._started.set()
        logger.info("ready at v%d, %d edits", head.sequence, head.edits)

    def _write(self) -> bool:
        """Write a batch if one is due and nobody has paused; whether one was."""
        if self.paused is not None:
            return False
        started = time.perf_counter()
        before = self._edits
        try:
            version = self.pipeline.write_next(ended=False)
        except EditorFaultError as error:
            # the next attempt, of this process or another, would end the same way: somebody has to look
            self.pause(reason=str(error), by="the service itself")
            return False
        if version is None:
            return False
        seconds, edits = time.perf_counter() - started, max(0, version.edits - before)
        self._batches.append((seconds, edits))
        for listener in self.batch_seconds:
            listener(seconds, edits)
        if version.kind == REPAIR:
            for told_of in self.repaired:
                told_of(len(version.request_ids))
        elif version.figures is not None:
            for told in self.verified:
                told(int(version.figures.get("landed", 0)), int(version.figures.get("weak", 0)))
        return True

    def _committed(self, version: Version) -> None:
        self._edits = version.edits
        self._look_at(version)

    def _look_at(self, version: Version) -> None:
        """From here on questions go to this version."""
        self._live = Live(version, self.pipeline.editor.weights())

    def _measure(self, asked: Asked, requests: Sequence[EditRequest]) -> None:
        if asked.given_up.is_set():
            return
        asked.version, asked.state = self.pipeline.head().digest, "running"

        def done(future: Future[Any]) -> None:
            error = None if future.cancelled() else future.exception()
            if isinstance(error, AbandonedError) or (future.cancelled() and asked.given_up.is_set()):
                asked.state = "canceled"
                return
            asked.problem = str(error) if error is not None else None
            asked.state = "failed" if future.cancelled() or error is not None else "done"

        asked.under_way = self.pipeline.measure(requests, wanted=lambda: not asked.given_up.is_set())
        asked.under_way.add_done_callback(done)

    def _do_commands(self) -> None:
        while not self._stopping.is_set():
            try:
                command = self._commands.get_nowait()
            except queue.Empty:
                return
            try:
                command.answer.set_result(command.work())
            except (UserError, NumericalError, DamagedFileError) as error:
                command.answer.set_exception(conflict(str(error)))
            except ServiceError as error:
                command.answer.set_exception(error)
            except BaseException as error:
                command.answer.set_exception(unavailable(f"it failed: {type(error).__name__}", retry_after=30))
                raise

    # --- inside ---

    def _room(self) -> None:
        if self._stopping.is_set() or self._failure is not None:
            raise unavailable("the service is ending")
        if self._commands.full():
            raise busy("too many commands wait", retry_after=self.retry_after())

    def _command(self, work: Callable[[], Any], *, sure: bool = False) -> Future[Any]:
        """Have the writer thread do it between two batches; ``sure`` where the journal holds it already."""
        self._room()
        command = _Command(work, Future())
        command.answer.set_running_or_notify_cancel()  # a client that goes away cancels nothing
        try:
            self._commands.put_nowait(command)
        except queue.Full:
            if not sure:
                raise busy("too many commands wait", retry_after=self.retry_after()) from None
            self._commands.put(command)
        self._wake.set()
        return command.answer

    def _fail_commands(self, error: ServiceError) -> None:
        while True:
            try:
                self._commands.get_nowait().answer.set_exception(error)
            except queue.Empty:
                return

    def _applied(self, name: str) -> Any:
        row = self.journal.request(name)
        if row is None:
            raise not_found(f"there is no edit {name!r}")
        if row.state != "applied":
            raise conflict(f"edit {name!r} is {shown_state(row.state)}: only applied edits can be evaluated")
        return row

    def _kept_pause(self) -> str | None:
        """A pause outlives the process that was told of it."""
        events = [event for kind in (PAUSED, RESUMED) for event in self.journal.event_page(1, kind=kind)]
        newest = max(events, key=lambda event: event.number, default=None)
        if newest is None or newest.kind == RESUMED:
            return None
        return newest.data.get("reason") or "paused"
