"""Named points at which a run can be made to crash on purpose, so that recovery can be tested without mocks.

In production :func:`reach` is a dictionary look-up that does nothing. A test in the same process arms a point
with :func:`raise_once`; a test that kills a whole process sets ``ERRATA_FAIL_POINT=name[:raise|exit[:n]]`` in
its environment, where ``exit`` (the default) ends the process at once, without any clean-up, as SIGKILL
would, and ``n`` says at which visit (1 by default).

This module holds the only mutable state of its kind: what is armed, per process.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

# a revert passes artifact_written to after_commit like a batch, and besides
REVERT_POINTS: Final[tuple[str, ...]] = ("after_revert_planned", "after_revert_applied", "after_memory_remove")
# a retraction comes with what is taken in, and is kept by a revert
RETRACTION_POINTS: Final[tuple[str, ...]] = ("after_retraction", "after_retraction_reverted")
# a repair passes artifact_written to after_commit like a batch, and besides
REPAIR_POINTS: Final[tuple[str, ...]] = ("after_repair", "after_repair_round")
# a compaction and an erasure, in their order
DROPPING_POINTS: Final[tuple[str, ...]] = (
    "after_floors_stored",
    "after_erase_begun",
    "after_erase_reverted",
    "after_receipts_cut",
    "gap_in_transaction",
    "after_gap",
    "after_first_dropped",
    "after_dropped",
    "after_memory_forgotten",
    "after_scrubbed",
    "erase_in_transaction",
    "after_erase_rows",
    "after_vacuum",
)
FAIL_POINTS: Final[tuple[str, ...]] = (
    # orchestrator/journal.py: inside the transaction (nothing is durable yet) and right after it
    "accept_in_transaction",
    "after_accept",
    "commit_in_transaction",
    "after_commit",
    "swap_in_transaction",
    "after_swap",
    # orchestrator/artifacts.py: the temporary file is complete, or already carries its final name
    "artifact_written",
    "artifact_renamed",
    # the run loop, in the order of one batch
    "after_batch_planned",
    "after_batch_applied",
    "after_keys_stored",
    "after_delta_stored",
    "after_memory_add",
    *REVERT_POINTS,
    *RETRACTION_POINTS,
    *REPAIR_POINTS,
    *DROPPING_POINTS,
    # orchestrator/snapshots.py: stored, and not in the journal yet
    "after_snapshot_stored",
    "after_refresh_started",
    "after_covariance_stored",
    "after_evaluation",
)

ENVIRONMENT_VARIABLE: Final = "ERRATA_FAIL_POINT"
EXIT_CODE: Final = 70
"""Exit code of a process ended by an armed point, so that a test tells it from a real failure."""

_lock = threading.Lock()
_armed: dict[str, int] = {}
_visits: dict[str, int] = {}


class InjectedCrash(BaseException):
    """Raised at an armed point. Not an ``Exception``, so that no planned retry swallows it."""


def reach(name: str) -> None:
    """Pass the point ``name``; crash if it is armed.

    Raises:
        ValueError: the name is not in ``FAIL_POINTS`` (a typo would make a crash test pass without a crash).
        InjectedCrash: the point was armed to raise.
    """
    _check(name)
    if _armed and _due(name):
        raise InjectedCrash(name)
    if setting := os.environ.get(ENVIRONMENT_VARIABLE):
        _reach_by_environment(name, setting)


@contextmanager
def raise_once(name: str, *, visit: int = 1) -> Iterator[None]:
    """Within the block, the ``visit``-th passage of ``name`` raises ``InjectedCrash``; later ones pass."""
    _check(name)
    if visit < 1:
        raise ValueError(f"visit must be at least 1, got {visit}")
    with _lock:
        _armed[name] = visit
    try:
        yield
    finally:
        with _lock:
            _armed.pop(name, None)


def _due(name: str) -> bool:
    with _lock:
        left = _armed.get(name)
        if left is None:
            return False
        if left > 1:
            _armed[name] = left - 1
            return False
        del _armed[name]
        return True


def _reach_by_environment(name: str, setting: str) -> None:
    wanted, _, rest = setting.partition(":")
    action, _, visit = rest.partition(":")
    _check(wanted)
    if action not in ("", "raise", "exit"):
        raise ValueError(f"{ENVIRONMENT_VARIABLE}={setting!r}: after the name comes 'raise' or 'exit'")
    if wanted != name:
        return
    with _lock:
        _visits[name] = _visits.get(name, 0) + 1
        due = _visits[name] == int(visit or 1)
    if due and action == "raise":
        raise InjectedCrash(name)
    if due:
        os._exit(EXIT_CODE)


def _check(name: str) -> None:
    if name not in FAIL_POINTS:
        raise ValueError(f"unknown fail point {name!r}; known: {', '.join(FAIL_POINTS)}")
