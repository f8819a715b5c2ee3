"""Taking edits in: many clients share one transaction, and nobody is answered before it is on the disk.

Each client's thread sends its own edits through the gate. One thread writes: a synchronized write costs a few
milliseconds whatever it carries, so while one transaction is being written the next clients gather, and go into the
following one together. A transaction is short: of a long list a part goes into each, beside what others hand in, so
that one edit does not wait for another client's thousand.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final

from errata.editing.request import EditRequest
from errata.editing.wording import counted
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.intake import Admit, Intake
from errata.orchestrator.journal.reading import JournalReader
from errata.orchestrator.journal.rows import Accepted
from errata.orchestrator.service.errors import ServiceError, busy, unavailable

logger = logging.getLogger(__name__)

_TOGETHER: Final = 100
"""Requests of one transaction, which holds the journal for some 25 ms then."""
_SHARE: Final = 25
"""Of them of one submission, while others wait beside it."""


@dataclass(eq=False)
class _Item:
    judged: list[EditRequest | Accepted]
    """As the gate left them: a request, or the answer to one that it refused."""
    answer: Future[list[Accepted]] = field(default_factory=Future)
    written: list[Accepted] = field(default_factory=list)
    """Answers so far, in order."""

    @property
    def requests(self) -> list[EditRequest]:
        return [request for request in self.judged if isinstance(request, EditRequest)]

    @property
    def left(self) -> int:
        return len(self.judged) - len(self.written)


class Acceptor:
    """One thread that writes acceptances.

    Args:
        journal: open for writing; its own lock keeps this thread and the one that commits apart.
        max_waiting: edits that may wait to be written into the weights.
        max_waiting_bytes: bytes of them, as they are stored.
        max_queued: submissions that may wait for their transaction.
        retry_after: seconds after which a refused client may find room, as things are.
        accepted: called after every transaction.
        admit: the gate; see `errata.orchestrator.journal.intake`. Asked by the threads that submit.
        reader: another connection to the journal, for what those threads look up.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        max_waiting: int,
        max_queued: int,
        max_waiting_bytes: int = 1 << 40,
        retry_after: Callable[[], float] = lambda: 1.0,
        accepted: Callable[[], None] = lambda: None,
        admit: Admit = EditRequest.cleaned,
        reader: JournalReader | None = None,
    ) -> None:
        self._reader = reader or journal
        self._journal, self._max_waiting, self._max_bytes = journal, max_waiting, max_waiting_bytes
        self._bytes = journal.waiting_bytes()
        """Of what waits, at most: what was written since the last look is still among it."""
        self._looked_at = time.monotonic()
        self._intake = Intake(journal, admit, reader=reader)
        self._retry_after, self._accepted = retry_after, accepted
        self._max_queued = max_queued
        self._queue: queue.Queue[_Item | None] = queue.Queue()
        self._going: deque[_Item] = deque()
        """Submissions for which there is room, a part of which may be written."""
        self._gate = threading.Lock()
        self._closed = False
        self.transactions = 0
        self.write_seconds = 0.0
        self._thread = threading.Thread(target=self._work, name="errata-accept", daemon=True)
        self._thread.start()

    def submit(self, requests: Sequence[EditRequest]) -> Future[list[Accepted]]:
        """Have requests journaled; the future holds one answer each, once they are on the disk.

        Raises:
            ServiceError: 429 when too many submissions wait, 503 while the service ends. The future holds a 429 when
                too many edits wait to be written, and a 503 when the journal could not be written.
        """
        self._check_open()
        if len(requests) > self._max_waiting - self._reader.waiting():
            self._check_hopeless(requests)
        item = _Item([self._intake.gate(request) for request in requests])
        # from here on it cannot be canceled: whoever stops waiting does not undo what is being written
        item.answer.set_running_or_notify_cancel()
        with self._gate:
            self._check_open()
            self._queue.put_nowait(item)
        return item.answer

    def _check_open(self) -> None:
        if self._closed:
            raise unavailable("the service is ending; nothing was taken")
        if self.depth >= self._max_queued:
            raise busy("too many submissions wait for the journal", retry_after=1.0)

    def _check_hopeless(self, requests: Sequence[EditRequest]) -> None:
        """Before the gate, which costs a millisecond for two edits: whoever finds no room is not to cost that."""
        new = sum(self._reader.payload_digest(request.id) is None for request in requests)
        if new > self._max_waiting - self._reader.waiting():
            raise self._full(new)

    @property
    def depth(self) -> int:
        """Submissions that wait for their transaction."""
        return self._queue.qsize() + len(self._going)

    @property
    def waiting_bytes(self) -> int:
        """Bytes of edits that wait to be written, at most: what was written of late may be among them."""
        return self._bytes

    def close(self) -> None:
        """Refuse what comes from now on, journal what was submitted, end the thread."""
        with self._gate:
            first, self._closed = not self._closed, True
        if first:
            self._queue.put(None)
        self._thread.join()

    # --- the thread ---

    def _work(self) -> None:
        more = True
        while more or self._going:
            items: list[_Item] = []
            if more:
                items, more = self._gather(wait=not self._going)
            try:
                self._going.extend(self._fitting(items))
                self._write()
            except Exception as error:
                # nothing of a failed transaction was taken, of a long list what went before it: the clients may try
                # again under the same ids
                failed = {item for item in (*items, *self._going) if not item.answer.done()}
                logger.exception("the journal could not take %s", counted(len(failed), "submission"))
                self._going.clear()
                for item in failed:
                    item.answer.set_exception(unavailable(f"the journal cannot be written: {type(error).__name__}"))

    def _gather(self, *, wait: bool) -> tuple[list[_Item], bool]:
        """What was submitted since, and whether more may come."""
        items: list[_Item] = []
        try:
            while True:
                item = self._queue.get(block=wait and not items)
                if item is None:
                    return items, False
                items.append(item)
        except queue.Empty:
            return items, True

    def _write(self) -> None:
        """One transaction: a share of every submission, in turn, then more of the first as far as there is room."""
        parts: list[tuple[_Item, int]] = []
        room = _TOGETHER
        for item in self._going:
            part = min(item.left, _SHARE, room)
            parts.append((item, part))
            room -= part
            if room <= 0:
                break
        for place, (item, part) in enumerate(parts):
            more = min(item.left - part, room)
            parts[place] = item, part + more
            room -= more
        if not parts:
            return
        started = time.perf_counter()
        answers = iter(
            self._intake.take([one for item, part in parts for one in item.judged[len(item.written) :][:part]])
        )
        self.write_seconds += time.perf_counter() - started
        self.transactions += 1
        for item, part in parts:
            self._going.popleft()
            item.written += [next(answers) for _ in range(part)]
            if item.left:
                self._going.append(item)
            else:
                item.answer.set_result(item.written)
        self._accepted()

    def _fitting(self, items: list[_Item]) -> list[_Item]:
        """The submissions for which there is room; those that only repeat what is known always fit."""
        if not items:
            return []
        room = self._max_waiting - self._journal.waiting() - sum(item.left for item in self._going)
        fitting = []
        for item in items:
            size, weight = len(item.requests), sum(map(_bytes_of, item.requests))
            if size > room or not self._has_room(weight):
                new = [request for request in item.requests if self._journal.request(request.id) is None]
                size, weight = len(new), sum(map(_bytes_of, new))
            if size > room:
                item.answer.set_exception(self._full(size))
                continue
            if weight and not self._has_room(weight):
                item.answer.set_exception(self._too_heavy(weight))
                continue
            room -= size
            self._bytes += weight
            fitting.append(item)
        return fitting

    def _has_room(self, weight: int) -> bool:
        """Whether so many bytes more may wait; what waits is summed up anew where it matters, once a second at most."""
        now = time.monotonic()
        if self._bytes + weight > self._max_bytes and now - self._looked_at > 1.0:
            self._bytes, self._looked_at = self._journal.waiting_bytes(), now
        return self._bytes + weight <= self._max_bytes

    def _too_heavy(self, weight: int) -> ServiceError:
        if weight > self._max_bytes:
            return ServiceError(413, "too_large", f"{weight} bytes at once; at most {self._max_bytes} may wait")
        return busy(
            f"{self._max_bytes} bytes of edits may wait to be written, and so many do", retry_after=self._retry_after()
        )

    def _full(self, size: int) -> ServiceError:
        if size > self._max_waiting:
            return ServiceError(
                413, "too_many_edits", f"{counted(size, 'edit')} at once; at most {self._max_waiting} may wait"
            )
        return busy(
            f"{counted(self._max_waiting, 'edit')} may wait to be written, and so many do",
            retry_after=self._retry_after(),
        )


def _bytes_of(request: EditRequest) -> int:
    """Size of a request as the journal stores it, nearly."""
    return len(request.model_dump_json(exclude_none=True).encode("utf-8", "replace"))
