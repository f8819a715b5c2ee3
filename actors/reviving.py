"""A client of one stateful actor that outlives it.

An actor that dies is made again and brought back to where it stood, and what it was asked is asked again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import ray
import ray.exceptions

from errata.actors.connection import LOST, raise_if_init_failed, unwrap
from errata.actors.deaths import Deaths
from errata.actors.runtime import kill
from errata.actors.settings import RayConfig
from errata.editing.errors import ErrataError
from errata.editing.wording import counted as counted_of

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
