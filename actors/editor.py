"""The stateful editor: one actor that holds the live model and the lifelong state, and its client.

The actor is a cache. The client starts a new one when it dies, replays the journal's history into it, and repeats the
call; applying a batch is idempotent by its sequence number.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import ray
from torch import Tensor

from errata.actors.reviving import Died, RevivingClient
from errata.actors.runtime import make_actor
from errata.actors.settings import ModelSpec, RayConfig, RoleConfig
from errata.actors.sharded.stored import stored
from errata.actors.workers.editor import ContextSpec, EditorWorker
from errata.editing.covariance import KeyCovariance
from errata.editing.request import EditBatch, EditRequest
from errata.editing.reverting import HistoryItem, RevertOrder
from errata.editing.session import EditReceipt, Snapshot
from errata.editing.verify import Outcome

logger = logging.getLogger(__name__)


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
