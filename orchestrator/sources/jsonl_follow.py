"""A file of JSON lines that grows: read as ``tail -F`` reads it, going on where the journal says it was left."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from errata.editing.errors import UserError
from errata.evaluation.datasets import DATASETS
from errata.orchestrator.journal import Journal
from errata.orchestrator.sources.base import Delivery, deliveries_of

logger = logging.getLogger(__name__)

EVENT: Final = "stream_place"
"""Kind of the journal's events that say how far a file was read."""

MAX_LINE: Final = 4 << 20
"""Bytes after which a line without an end is given up."""
_CHUNK: Final = 1 << 18
_MAX_LINES: Final = 256
"""Lines handed out at once: one transaction, one event."""
_TAIL: Final = 256
"""Bytes before the place that are compared to tell whether it is still the same file."""


@dataclass(frozen=True, slots=True)
class FilePlace:
    """How far a file was read, and by what it is known again."""

    file: str
    offset: int = 0
    line: int = 0
    """Lines before the offset."""
    generation: int = 1
    """Counts the files that have had this name: the next one after each rotation or truncation."""
    tail: str = ""
    """Digest of the bytes before the offset."""

    def position(self, line: int) -> str:
        """Name of a line; of a later file of the same name with the number of that file."""
        again = f"~{self.generation}" if self.generation > 1 else ""
        return f"{self.file}{again}:{line}"


class FollowedFile:
    """See the module. Lines are separated by newlines; what comes after the last one is waited for.

    Args:
        path: may not be there yet.
        schema: layout of the records, or ``auto``: told from each record.
        target: which answer is written where a layout offers several.
        place: where to go on, from :func:`last_place`; None for the beginning.
        save: keeps a place durably; called by :meth:`ack`.
        poll: seconds between two looks at the file.

    Raises:
        UserError: the path is a directory or a packed file, or the schema is unknown.
    """

    ended = False

    def __init__(
        self,
        path: Path,
        *,
        schema: str = "auto",
        target: str = "default",
        place: FilePlace | None = None,
        save: Callable[[FilePlace], None],
        poll: float = 0.2,
    ) -> None:
        self._path = Path(path)
        if self._path.is_dir():
            raise UserError(f"stream {str(path)!r} is a directory; only a file can be followed")
        if self._path.suffix == ".gz":
            raise UserError(f"stream {str(path)!r} is packed; only plain JSON Lines can be followed")
        if schema != "auto" and schema not in DATASETS:
            raise UserError(f"stream.schema {schema!r} is unknown; allowed: auto, {', '.join(DATASETS)}")
        self._schema, self._target, self._save, self._poll = schema, target, save, poll
        self._place = place or FilePlace(self._path.name)
        self._settled: FilePlace | None = None
        self._handle: int | None = None
        self._missed = False
        self._skipping = False

    # ---------------------------------------------------------------- the protocol

    def read(self, timeout: float) -> list[Delivery]:
        deadline = time.monotonic() + timeout
        while True:
            if deliveries := self._look():
                return deliveries
            left = deadline - time.monotonic()
            if left <= 0:
                return []
            time.sleep(min(self._poll, left))

    def ack(self, *deliveries: Delivery) -> None:
        places = [d.token for d in deliveries] + ([self._settled] if self._settled else [])
        self._settled = None
        if places:
            last = max(places, key=lambda place: (place.generation, place.offset))
            self._save(replace(last, tail=self._tail(last.offset)))

    def reject(self, delivery: Delivery, reason: str) -> None:
        place: FilePlace = delivery.token
        old = self._settled
        if old is None or (place.generation, place.offset) > (old.generation, old.offset):
            self._settled = place

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    # ---------------------------------------------------------------- reading

    def _look(self) -> list[Delivery]:
        if self._handle is None and not self._open():
            return []
        assert self._handle is not None
        size = os.fstat(self._handle).st_size
        if size < self._place.offset or self._tail(self._place.offset) != (self._place.tail or _digest(b"")):
            what = f"was cut to {size} bytes" if size < self._place.offset else "was rewritten"
            self._begin_anew(f"{what} after {self._place.offset} bytes had been read")
            return []
        before = self._place.offset
        data = os.pread(self._handle, _CHUNK, before)
        if len(data) == _CHUNK and b"\n" not in data:
            data = os.pread(self._handle, MAX_LINE, before)
        lines, rest = self._cut(data)
        if lines or self._place.offset != before:
            return lines
        rotated = self._rotated()
        if rest and (rotated or len(rest) >= MAX_LINE):
            return self._last_words(rest, whole=rotated)
        if rotated:
            self.close()
            logger.info("stream %s: a new file has taken the name; reading it from its start", self._path)
            self._place = FilePlace(self._place.file, generation=self._place.generation + 1)
            self._skipping = False
        return []

    def _cut(self, data: bytes) -> tuple[list[Delivery], bytes]:
        """Deliveries of the whole lines, and what is left after the last of them; moves the place."""
        deliveries: list[Delivery] = []
        at = 0
        while len(deliveries) < _MAX_LINES and (end := data.find(b"\n", at)) >= 0:
            deliveries += self._line(data[at:end], end + 1 - at)
            at = end + 1
        if at:
            self._place = replace(self._place, tail=self._tail(self._place.offset))
        return deliveries, data[at:]

    def _line(self, text: bytes, size: int) -> list[Delivery]:
        """The deliveries of one line of ``size`` bytes in the file."""
        self._place = replace(self._place, offset=self._place.offset + size, line=self._place.line + 1)
        position = self._place.position(self._place.line)
        if self._skipping:  # the end of a line that was given up before
            self._skipping = False
            return []
        if not text.strip():
            return []
        try:
            raw = json.loads(text.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            return [Delivery(position, problem=f"malformed JSON: {why}", token=self._place)]
        return list(deliveries_of(raw, position, self._place, schema=self._schema, target=self._target))

    def _last_words(self, rest: bytes, *, whole: bool) -> list[Delivery]:
        """A line without an end: the last of a file that was rotated away, or one that is too long to wait for."""
        if whole:
            deliveries = self._line(rest, len(rest))
        else:
            self._place = replace(self._place, offset=self._place.offset + len(rest))
            position = self._place.position(self._place.line + 1)
            problem = f"the line is longer than {MAX_LINE} bytes"
            deliveries = [] if self._skipping else [Delivery(position, problem=problem, token=self._place)]
            self._skipping = True
        self._place = replace(self._place, tail=self._tail(self._place.offset))
        return deliveries

    # ---------------------------------------------------------------- which file it is

    def _open(self) -> bool:
        for path in (self._path, *self._siblings()):
            try:
                self._handle = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise UserError(f"stream {str(path)!r} cannot be read: {error.strerror}") from error
            size = os.fstat(self._handle).st_size
            if size >= self._place.offset and self._tail(self._place.offset) == (self._place.tail or _digest(b"")):
                if path != self._path:
                    logger.info("stream %s: going on in %s, to which it was renamed", self._path, path.name)
                self._missed = False
                return True
            self.close()
        if self._path.exists():
            self._begin_anew(f"is not the file of which {self._place.offset} bytes had been read")
            return self._open()
        if not self._missed:
            logger.warning("stream %s is not there yet; waiting for it", self._path)
        self._missed = True
        return False

    def _siblings(self) -> list[Path]:
        """Files beside it that may be this one under the name a rotation has given it."""
        if self._place.offset == 0:
            return []
        return sorted(path for path in self._path.parent.glob(f"{self._path.name}?*") if path.suffix != ".gz")

    def _begin_anew(self, why: str) -> None:
        logger.warning(
            "stream %s %s; reading it from its start. Lines of before that were not read yet are not read any more; "
            "records that come again change nothing",
            self._path,
            why,
        )
        self.close()
        self._skipping = False
        self._place = FilePlace(self._place.file, generation=self._place.generation + 1)

    def _rotated(self) -> bool:
        """Whether another file has the name now. While none has it, the old one may still grow."""
        assert self._handle is not None
        try:
            named = os.stat(self._path)
        except FileNotFoundError:
            return False
        held = os.fstat(self._handle)
        return (named.st_dev, named.st_ino) != (held.st_dev, held.st_ino)

    def _tail(self, offset: int) -> str:
        if self._handle is None:
            return self._place.tail
        start = max(0, offset - _TAIL)
        return _digest(os.pread(self._handle, offset - start, start))


def last_place(journal: Journal, name: str) -> FilePlace | None:
    """How far the file of that name was read, by the journal; None if it never was."""
    for event in reversed(journal.events(EVENT)):
        if event.data.get("file") == name:
            known: Mapping[str, Any] = {key: event.data[key] for key in FilePlace.__dataclass_fields__}
            return FilePlace(**known)
    return None


def open_followed(path: Path, journal: Journal, *, schema: str = "auto", target: str = "default") -> FollowedFile:
    """A file followed from where this journal's run left it.

    Raises:
        UserError: see :class:`FollowedFile`.
    """

    def save(place: FilePlace) -> None:
        journal.record_event(EVENT, asdict(place))

    path = Path(path)
    return FollowedFile(path, schema=schema, target=target, place=last_place(journal, path.name), save=save)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
