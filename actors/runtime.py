"""Starting Ray, making actors, and telling a lost actor from a failed call."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.exceptions

from actors.placement import actor_options
from actors.settings import ModelSpec, RayConfig, RoleConfig
from actors.sharded.group import RankGroup
from editing.errors import ErrataError, UserError

logger = logging.getLogger(__name__)

LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.GetTimeoutError,
)
"""The call may never have run, or its result is gone: start the actor again and repeat what is idempotent."""


def connect(config: RayConfig, ranks: int = 1) -> bool:
    """Join or start Ray. Returns whether it was started here and is to be ended here.

    Args:
        ranks: processes that one copy of the model is spread over.

    Raises:
        UserError: the address cannot be reached.
    """
    if ray.is_initialized():
        return False
    # a call after the end of a run, from a thread that has not noticed it yet, must not start another Ray
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    quiet: dict[str, Any] = {
        "logging_level": logging.ERROR,
        "log_to_driver": os.environ.get("ERRATA_RAY_LOGS") == "1",
        "namespace": config.namespace,
    }
    if config.address == "local":
        cpus = max(float(os.cpu_count() or 1), config.local_cpus(ranks))
        # "local" and not None: None would join whatever cluster runs on this machine
        # inherited by every worker, which sets its own number of torch threads when it begins; an environment per
        # actor would keep Ray from using the processes it has started already
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        with _own_sigterm():
            ray.init(address="local", num_cpus=int(-(-cpus // 1)), include_dashboard=False, **quiet)
        return True
    try:
        with _own_sigterm():
            ray.init(address=config.address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"ray.address {config.address!r} cannot be reached: {first_line(error)}") from error
    return True


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this process's answer to SIGTERM: Ray puts its own in the place, which ends the process on the spot."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None:  # None: set by something other than Python, and not ours to put back
            signal.signal(signal.SIGTERM, before)


def disconnect() -> None:
    """Leave Ray; a local one ends with this process."""
    ray.shutdown()


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

    Several users may share a group: of two that report the same death the second finds it mended. Thread-safe.
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
                    f"{self._what} died {self._revivals} times; allowed: ray.max_revivals {self._most}"
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


def unwrap(error: Exception) -> Exception:
    """The exception a method raised, out of the envelope Ray puts around it."""
    if isinstance(error, ray.exceptions.RayTaskError):
        cause = error.cause if isinstance(error.cause, Exception) else error
        if isinstance(cause, ErrataError):
            # a fresh object of the plain type: Ray's has the remote traceback as its text
            return type(cause)(*cause.args) if type(cause).__module__.startswith("editing") else cause
    return error


def check_born(error: BaseException) -> None:
    """Tell an actor that died from one that could not be made: another attempt at that would end the same way.

    Raises:
        UserError, ErrataError: its constructor failed; with the last line of what it said.
    """
    if not getattr(error, "actor_init_failed", False):
        return
    lines = [line for line in str(error).splitlines() if line.strip()]
    kind, _, message = lines[-1].strip().partition(": ")
    # Ray keeps the text of the remote error only
    if kind.rpartition(".")[2] == UserError.__name__:
        raise UserError(message) from error
    raise ErrataError(f"an actor could not be started: {lines[-1].strip()}") from error


def first_line(error: BaseException) -> str:
    """First line of an error's text, or its type."""
    return (str(error).splitlines() or [type(error).__name__])[0]
