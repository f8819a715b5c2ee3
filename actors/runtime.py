"""Starting Ray, making actors, and telling a lost actor from a failed call."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import ray
import ray.exceptions

from errata.actors.deaths import Deaths
from errata.actors.placement import actor_options
from errata.actors.settings import ModelSpec, RoleConfig
from errata.actors.sharded.group import RankGroup
from errata.editing.errors import ErrataError
from errata.editing.wording import counted as counted_of

logger = logging.getLogger(__name__)


def make_actor(shell: Any, role: RoleConfig, *args: Any) -> Any:
    """An actor of a role. It does not restart by itself: whoever made it must restore what it held.

    With a model spread over several processes it is a group of actors that answers like one.
    """
    if any(isinstance(argument, ModelSpec) and argument.parallel is not None for argument in args):
        return RankGroup(shell, role, *args)
    return shell.options(**actor_options(role)).remote(*args)


def kill(actor: Any) -> None:
    """End an actor at once; it may be gone already."""
    if isinstance(actor, RankGroup):
        actor.end_ranks()
        return
    try:
        ray.kill(actor)
    except Exception:  # a handle to a dead actor raises one of several types
        logger.debug("actor was gone before it was ended")


def still_wanted() -> bool:
    """Inside an actor: whether the call under way has not been taken back by `take_back`."""
    asked = getattr(ray.get_runtime_context(), "is_canceled", None)
    return asked is None or not asked()


def take_back(actor: Any, reference: Any) -> None:
    """Nobody wants the result of a call any more: it is not begun, or ends where the actor looks at `still_wanted`.

    The ranks of a group do each call together, so theirs go on to their end.
    """
    if isinstance(actor, RankGroup):
        return
    try:
        ray.cancel(reference)
    except Exception:  # it has ended meanwhile, or its actor has
        logger.debug("a call was over before it was taken back")


class WorkerGroup:
    """Interchangeable actors by slot. Who finds one dead says so, and a new one takes its slot.

    Several users may share a group: of two that report the same death the second finds it replaced. Thread-safe.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        count: int,
        *,
        most_revivals: int,
        what: str,
        within: float = 3600.0,
        end: Callable[[Any], None] | None = None,
    ) -> None:
        """``end`` ends an actor, one that is gone already too; `kill` by default. More than ``most_revivals`` deaths
        within ``within`` seconds are not borne."""
        self._make, self._count, self._what = make, count, what
        self._deaths = Deaths(most_revivals, within)
        self._end = end or kill
        self._actors: list[Any] = []
        self._preparations: list[Callable[[Any], Any]] = []
        self._lock = threading.Lock()

    @property
    def actors(self) -> tuple[Any, ...]:
        """Handles by slot; empty before ``start``."""
        return tuple(self._actors)

    def start(self) -> None:
        """Make the actors, which load what they need in the background."""
        with self._lock:
            while len(self._actors) < self._count:
                self._actors.append(self._prepared())

    def prepare(self, call: Callable[[Any], Any]) -> None:
        """Have every actor, those of later too, do ``call`` before whatever is asked of it from now on."""
        with self._lock:
            self._preparations.append(call)
            for actor in self._actors:
                call(actor)

    def replace(self, slot: int, dead: Any, error: BaseException, *, counted: bool = True) -> None:
        """Put a new actor where ``dead`` was.

        Args:
            counted: whether this death counts; one that somebody's question has brought about does not.

        Raises:
            ErrataError: actors of this group have died more often than the settings allow.
        """
        with self._lock:
            if self._actors[slot] is not dead:
                return
            if counted:
                self._deaths.note()
            if self._deaths.too_many:
                died = counted_of(self._deaths.of_late, "time")
                raise ErrataError(f"{self._what} died {died}; allowed: ray.max_revivals {self._deaths.most}") from error
            self._end(dead)
            self._actors[slot] = self._prepared()

    def close(self) -> None:
        """End the actors."""
        with self._lock:
            for actor in self._actors:
                self._end(actor)
            self._actors = []

    def _prepared(self) -> Any:
        actor = self._make()
        for call in self._preparations:
            call(actor)
        return actor
