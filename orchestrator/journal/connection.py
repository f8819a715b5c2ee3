"""How a journal's file is opened: one writer, under a lock, and readers that change nothing."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from pathlib import Path

from errata.editing.errors import ErrataError, UserError
from errata.orchestrator.journal.schema import MIGRATIONS, schema_version

LOCK_SECONDS = 30.0
"""How long a write waits for another process that has the file locked, unless `Journal.patience` says otherwise."""


class JournalBusyError(ErrataError):
    """Another process has the journal's file locked; nothing was written."""


class WriterLock:
    """Exclusive lock on ``<journal>.lock``; the file holds the owner's process id.

    The kernel releases it when the process ends, however it ends.

    Raises:
        UserError: another process (or another object of this process) writes this journal.
    """

    def __init__(self, journal: Path) -> None:
        self.path = journal.with_name(journal.name + ".lock")
        self._descriptor: int | None = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(self._descriptor)
            self._descriptor = None
            raise UserError(
                f"{journal} is being written by process {holder}; a journal has one writer: stop that process first"
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give the lock back. The file stays: deleting it would let two writers lock two files of one
        name."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None


def connect_writer(path: Path) -> sqlite3.Connection:
    """A connection whose committed transactions survive a power cut."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=LOCK_SECONDS)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """A connection that cannot write; an older journal is copied into memory, to be migrated there."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=30.0,
    )
    connection.row_factory = sqlite3.Row
    if 0 < schema_version(connection) < len(MIGRATIONS):
        copy = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        copy.row_factory = sqlite3.Row
        connection.backup(copy)
        connection.close()
        return copy
    return connection


def is_locked(error: sqlite3.Error) -> bool:
    """Whether another process holds the file, which may pass."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
