"""A durable queue in one file: what is to be tracked is here first, and stays after it was delivered."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

EntryKind = Literal["metric", "param", "tag", "artifact", "status", "input", "table", "trace"]
TOGETHER: Final = frozenset({"metric", "param", "tag"})
"""Kinds of which many go into one call; of the others one does."""

_FILE: Final = "tracking.jsonl"
_OFFSET: Final = "tracking.offset"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the spool."""

    run: str
    kind: EntryKind
    key: str
    value: float | str | None
    """A metric's number (None for one that is not finite), else text; of an input, a table or a trace JSON."""
    step: int
    timestamp: int
    """Milliseconds since 1970, of the moment it was logged: delivering the same point twice is then
    harmless."""


class Spool:
    """Lines in ``tracking.jsonl`` and, in ``tracking.offset``, up to where they were delivered.

    One process at a time; appending and reading may happen in different threads.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / _FILE
        self._offset_path = directory / _OFFSET
        self._lock = threading.Lock()
        directory.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab")
        self._drop_torn_line()
        self._offset = self._read_offset()

    def append(self, entries: Sequence[Entry]) -> None:
        """Add entries; they are on the disk when this returns.

        Raises:
            OSError: the disk is full, for example; then none of them is in the spool.
        """
        data = "".join(json.dumps(asdict(entry), allow_nan=False) + "\n" for entry in entries).encode()
        with self._lock:
            end = os.fstat(self._file.fileno()).st_size
            try:
                self._file.write(data)
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError:
                self._reopen_at(end)
                raise

    def read(self, limit: int) -> tuple[list[Entry], list[int]]:
        """Up to ``limit`` entries that were not delivered yet, and for each the offset right after it."""
        entries: list[Entry] = []
        ends: list[int] = []
        with self._lock, self.path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if len(entries) == limit or not line.endswith(b"\n"):
                    break
                fields: dict[str, Any] = json.loads(line)
                entries.append(Entry(**fields))
                ends.append((ends[-1] if ends else self._offset) + len(line))
        return entries, ends

    def everything(self) -> Iterator[Entry]:
        """Every entry, delivered or not, oldest first."""
        with self.path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield Entry(**json.loads(line))

    def acknowledge(self, end: int) -> None:
        """Everything before ``end`` was delivered. Not synced: after a power cut some of it is delivered
        again."""
        temporary = self._offset_path.with_suffix(".offset.tmp")
        temporary.write_text(str(end))
        os.replace(temporary, self._offset_path)
        self._offset = end

    def rewind(self) -> None:
        """Deliver everything again, to a store that does not have it."""
        self.acknowledge(0)

    def waiting(self) -> int:
        """How many entries were not delivered yet."""
        with self._lock, self.path.open("rb") as file:
            file.seek(self._offset)
            return sum(1 for line in file if line.endswith(b"\n"))

    def close(self) -> None:
        with self._lock:
            self._file.close()

    def _reopen_at(self, end: int) -> None:
        # a buffered writer keeps what it could not write and would try again: give it up
        descriptor = os.dup(self._file.fileno())
        try:
            os.ftruncate(descriptor, end)
        finally:
            os.close(descriptor)
        raw = self._file.detach()
        raw.close()
        self._file = self.path.open("ab")

    def _drop_torn_line(self) -> None:
        data = self.path.read_bytes()
        if data and not data.endswith(b"\n"):
            self._file.truncate(data.rfind(b"\n") + 1)

    def _read_offset(self) -> int:
        try:
            offset = int(self._offset_path.read_text())
        except (FileNotFoundError, ValueError):
            return 0
        return offset if 0 <= offset <= self.path.stat().st_size else 0
