"""Joining and leaving Ray, and its errors in our words."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.exceptions

from errata.actors.settings import RayConfig
from errata.editing.errors import ErrataError, UserError, in_words

logger = logging.getLogger(__name__)

_LATE = "timed out during startup"
_STARTS = 3
LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.GetTimeoutError,
    ray.exceptions.OutOfMemoryError,
)
"""The call may never have run, or its result is gone: start the actor again and repeat what is idempotent."""


def connect(config: RayConfig, ranks: int = 1) -> bool:
    """Join or start Ray. Returns whether it was started here and is to be ended here.

    Args:
        ranks: processes that one copy of the model is spread over.

    Raises:
        UserError: the address cannot be reached.
        ErrataError: a local one could not be started.
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
        ask_for_a_token()
        try:
            with _own_sigterm(), on_loopback():
                _patiently(
                    lambda: ray.init(address="local", num_cpus=int(-(-cpus // 1)), include_dashboard=False, **quiet)
                )
        except Exception as error:  # a plain one where a node comes up too late, OSError where a socket cannot be
            raise ErrataError(f"Ray could not be started on this machine: {in_words(error)}") from error
        return True
    try:
        with _own_sigterm():
            ray.init(address=config.address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"ray.address {config.address!r} cannot be reached: {first_line(error)}") from error
    return True


def _patiently(start: Callable[[], object]) -> None:
    """Start Ray, again where its own processes took longer than the half minute that it waits for them: a busy machine
    is no broken one."""
    for _ in range(_STARTS - 1):
        try:
            start()
            return
        except Exception as error:  # Ray has no type for it
            if _LATE not in str(error):
                raise
            logger.warning("Ray's processes did not come up in time: this machine is busy; once more")
            ray.shutdown()
    start()


def ask_for_a_token() -> None:
    """Have a Ray that this process starts refuse everybody without its token, made here and told to nobody else.

    Who has set ``RAY_AUTH_MODE`` to something else decides for themselves; a token that is given is used. The
    token stays in this process's environment, where Ray's own processes, its children, find it: no file is written.
    """
    mode = os.environ.get("RAY_AUTH_MODE", "")
    if mode not in ("", "token"):
        return
    kept = Path.home() / ".ray" / "auth_token"
    told = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH") or (mode and kept.is_file())
    os.environ["RAY_AUTH_MODE"] = "token"
    if not told:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    # the mode is read once, with Ray's import
    raylet: Any = ray._raylet
    raylet.Config.initialize("")


@contextmanager
def on_loopback() -> Iterator[None]:
    """Inside, a Ray that is started listens to this machine only.

    Ray does so by itself on systems for which it knows no clusters; on Linux it listens to every interface and takes
    127.0.0.1 for another name of the outer address. The switch is a constant, read from the environment at its import:
    the constant counts for this process, the environment for the processes that it starts.
    """
    constants: Any = ray._private.ray_constants
    name, before = str(constants.ENABLE_RAY_CLUSTERS_ENV_VAR), constants.ENABLE_RAY_CLUSTER
    told = os.environ.get(name)
    os.environ[name], constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before
        if told is None:
            del os.environ[name]
        else:
            os.environ[name] = told


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


def unwrap(error: Exception) -> Exception:
    """The exception a method raised, out of the envelope Ray puts around it."""
    if isinstance(error, ray.exceptions.RayTaskError):
        cause = error.cause if isinstance(error.cause, Exception) else error
        if isinstance(cause, ErrataError):
            # a fresh object of the plain type: Ray's has the remote traceback as its text
            return type(cause)(*cause.args) if type(cause).__module__.startswith("errata.editing.") else cause
    return error


def raise_if_init_failed(error: BaseException) -> None:
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
