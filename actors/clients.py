"""The stateful actors, editor and memory, and their clients, which outlive them.

An actor is a cache of what the journal says. One that dies is made again and brought back to where it stood, and what
it was asked is asked again: `RevivingClient`, which the client of a sharded model is as well. Applying a batch is
idempotent by its sequence number, adding a statement by its own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import ray
import ray.exceptions
from torch import Tensor

from errata.actors.connection import LOST, raise_if_init_failed, unwrap
from errata.actors.deaths import Deaths
from errata.actors.runtime import kill, make_actor
from errata.actors.settings import ModelSpec, RayConfig, RoleConfig
from errata.actors.sharded.stored import stored
from errata.actors.workers.editor import ContextSpec, EditorWorker
from errata.actors.workers.retrieval import Mark, RetrievalWorker
from errata.editing.covariance import KeyCovariance
from errata.editing.errors import ErrataError
from errata.editing.request import EditBatch, EditRequest
from errata.editing.reverting import HistoryItem, RevertOrder
from errata.editing.session import EditReceipt, Snapshot
from errata.editing.verify import Outcome
from errata.editing.wording import counted as counted_of
from errata.retrieval.ike import Asked, DemonstrationPool, InContext
from errata.retrieval.index import IndexConfig
from errata.retrieval.memory import Hit, MemoryEntry
from errata.retrieval.router import Findings, FittedRouter, RouterConfig, Routing

logger = logging.getLogger(__name__)

T = TypeVar("T")
Died = Callable[[Exception], None]
"""Told of a death of the actor while it had a call."""


class RevivingClient:
    """What the clients of editor, memory and sharded model share.

    A subclass says how an actor is made (``make``) and how a new one comes to where the one before it was: by what
    `_fill` queues before anybody else can call it, and by `_catch_up` after that. Several threads may call; of two
    that meet the same death the second finds it replaced.
    """

    def __init__(self, config: RayConfig, what: str, make: Callable[[], Any]) -> None:
        """``what`` the actor is called in messages, such as "the editor"."""
        self._config, self._what, self._make = config, what, make
        self._revivals = 0
        self._deaths = Deaths(config.max_revivals, config.revival_seconds)
        """Deaths that count toward ``ray.max_revivals``."""
        self._given_up = threading.Event()
        self._rebuild_seconds: list[float] = []
        self._reviving = threading.RLock()
        self._actor: Any = make()

    @property
    def actor(self) -> Any:
        """The handle, for fault tests."""
        return self._actor

    @property
    def revivals(self) -> int:
        """How often the actor had to be started again."""
        return self._revivals

    @property
    def rebuild_seconds(self) -> tuple[float, ...]:
        """How long each of these took, until the new actor stood where the old one had."""
        return tuple(self._rebuild_seconds)

    def close(self) -> None:
        """End the actor."""
        kill(self._actor)

    def give_up(self) -> None:
        """End the actor for good, whatever it is at: calls under way fail, no other is made. From any thread."""
        self._given_up.set()
        kill(self._actor)

    def _fill(self, actor: Any) -> None:
        """Queue what a new actor must do before any other call; calls run in order."""

    def _catch_up(self) -> None:
        """Bring a new actor to where the one before it was."""

    def _call(self, ask: Callable[[Any], Any], died: Died | None = None) -> Any:
        """The result of a call, given as a function from the actor to a reference."""
        return self._guarded(lambda: self._get(ask(self._actor)), died)

    def _get(self, reference: Any) -> Any:
        return ray.get(reference, timeout=self._config.call_timeout_seconds)

    def _guarded(self, action: Callable[[], T], died: Died | None = None) -> T:
        """The result of an action on the actor, which is done again after every death.

        Args:
            died: told of every death of the actor meanwhile, once another one stands where it stood; what it raises
                ends the call. Such deaths do not count toward ``ray.max_revivals``: who is told decides.

        Raises:
            ErrataError: the actor has died more often than the settings allow, or could not be made.
        """
        while True:
            generation = self._revivals
            try:
                return action()
            except LOST as error:
                if self._given_up.is_set():
                    raise ErrataError(f"{self._what} was ended") from error
                raise_if_init_failed(error)
                self._revive(error, generation, counted=died is None)
                if died is not None:
                    died(error)
            except ray.exceptions.RayTaskError as error:
                raise unwrap(error) from error

    def _bring_up(self) -> None:
        """Catch up with what there is, on a new actor as often as it takes."""
        generation = self._revivals
        try:
            self._catch_up()
        except LOST as error:
            raise_if_init_failed(error)
            self._revive(error, generation, counted=True)
        except ray.exceptions.RayTaskError as error:
            raise unwrap(error) from error

    def _revive(self, error: Exception, generation: int, *, counted: bool) -> None:
        """Put a new actor where the lost one was, caught up. A death meanwhile begins that anew: nothing is done twice
        to one actor."""
        with self._reviving:
            if self._revivals != generation:
                return  # somebody else met the same death and has replaced it
            started = time.perf_counter()
            while True:
                self._revivals += 1
                if counted:
                    self._deaths.note()
                if self._deaths.too_many:
                    raise ErrataError(
                        f"{self._what} died {counted_of(self._deaths.of_late, 'time')}; "
                        f"allowed: ray.max_revivals {self._config.max_revivals}"
                    ) from error
                logger.warning("%s died (%s); starting a new one", self._what, type(error).__name__)
                self._renew()
                try:
                    self._catch_up()
                except LOST as again:
                    raise_if_init_failed(again)
                    error, counted = again, True
                except ray.exceptions.RayTaskError as failed:
                    raise unwrap(failed) from failed
                else:
                    break
            self._rebuild_seconds.append(time.perf_counter() - started)

    def _renew(self) -> None:
        kill(self._actor)
        actor = self._make()
        self._fill(actor)
        self._actor = actor


# ---------------------------------------------------------------- the editor


@ray.remote
class EditorActor:
    """Shell of `EditorWorker`."""

    def __init__(self, spec: ModelSpec, role: RoleConfig, editor_config: Any, contexts: ContextSpec) -> None:
        self._worker = EditorWorker(spec, role, editor_config, contexts)

    def contexts(self) -> tuple[str, ...]:
        return self._worker.contexts

    def map_widths(self) -> dict[int, int]:
        return self._worker.map_widths()

    def start(self, covariance: KeyCovariance | None) -> None:
        self._worker.start(covariance)

    def replay(self, item: HistoryItem) -> None:
        self._worker.replay(item)

    def keys_wanted(self, fact_keys: tuple[str, ...]) -> tuple[str, ...]:
        return self._worker.session().keys_wanted(fact_keys)

    def apply(self, batch: EditBatch) -> EditReceipt:
        return self._worker.session().apply(batch)

    def rehearse(self, requests: Sequence[EditRequest]) -> None:
        self._worker.rehearse(requests)

    def ask(self, requests: Sequence[EditRequest]) -> list[Outcome]:
        return self._worker.session().ask(requests)

    def swap(self, covariance: KeyCovariance) -> None:
        self._worker.session().swap_covariance(covariance)

    def revert(self, order: RevertOrder, items: list[Any]) -> EditReceipt:
        # references in a list arrive as they are, so that one item at a time is in this process
        return self._worker.revert(order, (ray.get(item) for item in items))

    def snapshot(self) -> Snapshot:
        return self._worker.session().snapshot()

    def weights(self) -> dict[int, Tensor]:
        return self._worker.session().weights()

    def norms(self) -> dict[int, float]:
        return self._worker.session().norms()

    def ping(self) -> None:
        """Answers when every call before it is done."""


class EditorClient(RevivingClient):
    """What the orchestrator calls. Survives the actor's death."""

    def __init__(
        self,
        config: RayConfig,
        spec: ModelSpec,
        editor_config: Any,
        contexts: ContextSpec,
        history: Callable[[], Iterable[HistoryItem]],
    ) -> None:
        """``history`` yields, in order, the first covariance (if the editor uses one), commits and swaps."""
        self._contexts, self._history = contexts, history
        self._begun = False
        self._limit: int | None = None
        """Items of the history taken so far in a restoration item by item; None: all there are."""
        self._last: EditReceipt | None = None

        def make() -> Any:
            self._started = False
            return make_actor(EditorActor, config.editor, spec, config.editor, editor_config, self._contexts)

        super().__init__(config, "the editor", make)

    def contexts(self) -> tuple[str, ...]:
        """The context prefixes in use; fixes them for every later revival."""
        contexts: tuple[str, ...] = self._call(lambda actor: actor.contexts.remote())
        self._contexts = replace(self._contexts, given=contexts)
        return contexts

    def map_widths(self) -> dict[int, int]:
        """d_in of every edited map."""
        widths: dict[int, int] = self._call(lambda actor: actor.map_widths.remote())
        return widths

    def restore(self) -> None:
        """Replay the whole history into a fresh actor."""
        # what was applied and could not be journaled is forgotten with the actor
        self._begun, self._limit, self._last = True, None, None
        self._bring_up()

    def begin(self, covariance: KeyCovariance | None) -> None:
        """Begin a restoration item by item, where the caller wants to look at the versions in between."""
        self._begun, self._limit = True, int(covariance is not None)
        self._guarded(lambda: self._start(covariance))

    def replay(self, item: HistoryItem) -> None:
        """The next item of such a restoration; the items are those of the history, in its order."""
        self._guarded(lambda: self._get(self._actor.replay.remote(item)))
        if self._limit is not None:
            self._limit += 1

    def keys_wanted(self, fact_keys: Sequence[str]) -> tuple[str, ...]:
        """Requests whose keys a batch must tell if it writes these facts."""
        wanted: tuple[str, ...] = self._call(lambda actor: actor.keys_wanted.remote(tuple(fact_keys)))
        return wanted

    def apply(self, batch: EditBatch, died: Died | None = None) -> EditReceipt:
        """Write a batch; the weights have changed when this returns.

        Args:
            died: told of every death of the actor while it had the batch, once another one stands where it stood; what
                it raises ends the call. Such deaths do not count toward ``ray.max_revivals``: who is told decides.
        """
        self._limit = None
        receipt: EditReceipt = self._call(lambda actor: actor.apply.remote(batch), died)
        self._last = receipt
        return receipt

    def rehearse(self, requests: Sequence[EditRequest], died: Died | None = None) -> None:
        """Compute a batch and forget it; ``died`` as for `apply`."""
        self._call(lambda actor: actor.rehearse.remote(list(requests)), died)

    def ask(self, requests: Sequence[EditRequest]) -> list[Outcome]:
        """Whether the model says, as it is now, what each request asked for."""
        outcomes: list[Outcome] = self._call(lambda actor: actor.ask.remote(list(requests)))
        return outcomes

    def swap(self, covariance: KeyCovariance) -> None:
        """Continue on another covariance. Journal the swap first: a revival replays it from there."""
        self._limit = None
        before = self._revivals
        self._call(lambda actor: actor.swap.remote(covariance))
        if self._revivals != before:
            # the revived actor has taken it from the history already; taking it twice gives the same state
            logger.debug("covariance swap repeated after a revival")

    def revert(self, order: RevertOrder, items: Callable[[], Iterable[HistoryItem]]) -> EditReceipt:
        """Take edits out; the weights have changed when this returns. ``items`` gives the history that it needs."""
        self._limit = None

        def once() -> EditReceipt:
            answered: EditReceipt = self._get(
                self._actor.revert.remote(order, [ray.put(stored(item)) for item in items()])
            )
            return answered

        receipt: EditReceipt = self._guarded(once)
        self._last = receipt
        return receipt

    def snapshot(self) -> Snapshot:
        """The editor as it stands."""
        taken: Snapshot = self._call(lambda actor: actor.snapshot.remote())
        return taken

    def weights(self) -> Any:
        """A reference to the edited maps by layer as they are now; pass it on without fetching it."""

        def once() -> Any:
            reference = self._actor.weights.remote()
            # calls run in order: when this one answers, the weights are stored and outlive the actor
            self._get(self._actor.ping.remote())
            return reference

        return self._guarded(once)

    def norms(self) -> dict[int, float]:
        """Frobenius norms of the edited matrices."""
        norms: dict[int, float] = self._call(lambda actor: actor.norms.remote())
        return norms

    # --- after a death ---

    def _start(self, covariance: KeyCovariance | None) -> None:
        if self._started:
            # an actor that has begun a lifetime keeps its weights; another one begins on a fresh model
            self._renew()
        self._started = True
        self._get(self._actor.start.remote(covariance))

    def _catch_up(self) -> None:
        """Bring a new actor to where the one before it was."""
        if not self._begun:
            return
        items = iter(islice(self._history(), self._limit))
        first = next(items, None)
        self._start(first if isinstance(first, KeyCovariance) else None)
        reached = 0
        for item in chain([first] if isinstance(first, EditReceipt | Snapshot) else [], items):
            self._get(self._actor.replay.remote(item))
            reached = reached if isinstance(item, KeyCovariance) else item.sequence
        if self._limit is None and self._last is not None and self._last.sequence == reached + 1:
            # applied, and not in the journal yet: whoever asked for it goes on to commit it
            self._get(self._actor.replay.remote(self._last))


# ---------------------------------------------------------------- the memory


@ray.remote
class RetrievalActor:
    """Shell of `RetrievalWorker`."""

    def __init__(
        self, embedder_config: Any, index_config: IndexConfig, kept_in: Path | None, router_config: RouterConfig | None
    ) -> None:
        self._worker = RetrievalWorker(embedder_config, index_config, kept_in, router_config)

    def add(self, entries: Sequence[MemoryEntry]) -> int:
        return self._worker.memory.learn(entries)

    def remove(self, ids: Sequence[int]) -> int:
        return self._worker.remove(ids)

    def sync(self, entries: Sequence[MemoryEntry]) -> int:
        return self._worker.sync(entries)

    def mark(self) -> Mark | None:
        return self._worker.mark()

    def save(self, mark: Mark) -> None:
        self._worker.save(mark)

    def search(self, questions: Sequence[str], k: int) -> list[list[Hit]]:
        return self._worker.memory.search(questions, k)

    def route(self, questions: Sequence[str], k: int) -> Routing:
        return self._worker.route(questions, k)

    def among(self, questions: Sequence[str], entries: Sequence[MemoryEntry], k: int) -> Findings:
        return self._worker.among(questions, entries, k)

    def in_context(self, pool: DemonstrationPool, asked: Sequence[Asked], without: Sequence[str]) -> InContext:
        return self._worker.in_context(pool, asked, without)

    def resolved(self, turns: Sequence[str]) -> str:
        return self._worker.memory.resolved(turns)

    def router(self) -> FittedRouter:
        return self._worker.router()

    def search_seconds(self, questions: Sequence[str], k: int) -> float:
        return self._worker.search_seconds(questions, k)

    def digest(self) -> str:
        return self._worker.memory.digest


class MemoryClient(RevivingClient):
    """What the orchestrator calls. A memory that died is filled again from the journal."""

    def __init__(
        self,
        config: RayConfig,
        embedder_config: Any,
        index_config: IndexConfig,
        entries: Callable[[], Sequence[MemoryEntry]],
        kept_in: Path | None = None,
        router: RouterConfig | None = None,
    ) -> None:
        """``entries`` gives everything the memory should hold, in order of acceptance.

        ``kept_in`` is a directory for vectors of statements, which the memory's machine sees too.
        """
        self._entries = entries
        arguments = (embedder_config, index_config, kept_in, router)
        super().__init__(config, "the memory", lambda: make_actor(RetrievalActor, config.retrieval, *arguments))

    def restore(self) -> int:
        """Hold what the journal says, and nothing else."""
        return self.sync(self._entries())

    def sync(self, entries: Iterable[MemoryEntry]) -> int:
        """Hold these statements and no others."""
        held = list(entries)
        return int(self._call(lambda actor: actor.sync.remote(held)))

    def mark(self) -> Mark | None:
        """Which version the memory was found saved at, when its actor was made; None where it began empty."""
        saved: Mark | None = self._call(lambda actor: actor.mark.remote())
        return saved

    def save(self, mark: Mark) -> None:
        """Keep the memory as it stands, as that of a version."""
        self._call(lambda actor: actor.save.remote(mark))

    def add(self, entries: Sequence[MemoryEntry]) -> int:
        """Add statements; adding one twice changes nothing."""
        return int(self._call(lambda actor: actor.add.remote(list(entries))))

    def remove(self, ids: Sequence[int]) -> int:
        """Forget statements by id."""
        return int(self._call(lambda actor: actor.remove.remote(list(ids))))

    def search(self, questions: Sequence[str], k: int) -> list[list[Hit]]:
        """The k nearest active statements of each question, best first."""
        hits: list[list[Hit]] = self._call(lambda actor: actor.search.remote(list(questions), k))
        return hits

    def route(self, questions: Sequence[str], k: int) -> Routing:
        """The router in force and each question's candidates."""
        routing: Routing = self._call(lambda actor: actor.route.remote(list(questions), k))
        return routing

    def among(self, questions: Sequence[str], entries: Sequence[MemoryEntry], k: int) -> Findings:
        """What a memory of these statements alone finds."""
        found: Findings = self._call(lambda actor: actor.among.remote(list(questions), list(entries), k))
        return found

    def in_context(self, pool: DemonstrationPool, asked: Sequence[Asked], without: Sequence[str]) -> InContext:
        """Facts and demonstrations for questions of an evaluation."""
        shown: InContext = self._call(lambda actor: actor.in_context.remote(pool, list(asked), list(without)))
        return shown

    def resolved(self, turns: Sequence[str]) -> str:
        """The last turn of a conversation, with what it refers to."""
        return str(self._call(lambda actor: actor.resolved.remote(list(turns))))

    def router(self) -> FittedRouter:
        """The router in force."""
        fitted: FittedRouter = self._call(lambda actor: actor.router.remote())
        return fitted

    def search_seconds(self, questions: Sequence[str], k: int) -> float:
        """Mean wall seconds of embedding and searching one question alone."""
        return float(self._call(lambda actor: actor.search_seconds.remote(list(questions), k)))

    def digest(self) -> str:
        """Digest of the active content."""
        return str(self._call(lambda actor: actor.digest.remote()))

    def _fill(self, actor: Any) -> None:
        actor.sync.remote(list(self._entries()))
