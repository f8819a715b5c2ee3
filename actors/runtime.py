"""Starting Ray, making actors, and telling a lost actor from a failed call."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import ray
import ray.exceptions

from errata.actors.placement import actor_options
from errata.actors.settings import ModelSpec, RoleConfig
from errata.actors.sharded.group import RankGroup
from errata.editing.errors import ErrataError
from errata.editing.wording import counted

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
        end: Callable[[Any], None] | None = None,
    ) -> None:
        """``end`` ends an actor, one that is gone already too; `kill` by default."""
        self._make, self._count, self._most, self._what = make, count, most_revivals, what
        self._end = end or kill
        self._actors: list[Any] = []
        self._preparations: list[Callable[[Any], Any]] = []
        self._revivals = 0
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

    def replace(self, slot: int, dead: Any, error: BaseException) -> None:
        """Put a new actor where ``dead`` was.

        Raises:
            ErrataError: actors of this group have died more often than the settings allow.
        """
        with self._lock:
            if self._actors[slot] is not dead:
                return
            self._revivals += 1
            if self._revivals > self._most:
                raise ErrataError(
                    f"{self._what} died {counted(self._revivals, 'time')}; allowed: ray.max_revivals {self._most}"
                ) from error
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
