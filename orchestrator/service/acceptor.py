"""Taking edits in: many clients share one transaction, and nobody is answered before it is on the disk.

The cost of an acceptance is one synchronized write, a few milliseconds whatever it carries. So while one transaction
is being written the next clients gather, and go into the following one together.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final

from errata.editing.request import EditRequest
from errata.editing.wording import counted
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.intake import Admit, Intake
from errata.orchestrator.journal.rows import Accepted
from errata.orchestrator.service.errors import ServiceError, busy, unavailable

logger = logging.getLogger(__name__)

_MOST_TOGETHER: Final = 2000
"""Requests of one transaction: it holds the journal for as long as it takes."""


@dataclass
class _Item:
    requests: list[EditRequest]
    answer: Future[list[Accepted]] = field(default_factory=Future)


class Acceptor:
    """One thread that writes acceptances.

    Args:
        journal: open for writing; its own lock keeps this thread and the one that commits apart.
        max_waiting: edits that may wait to be written into the weights.
        max_waiting_bytes: bytes of them, as they are stored.
        max_queued: submissions that may wait for their transaction.
        retry_after: seconds after which a refused client may find room, as things are.
        accepted: called after every transaction.
        admit: the gate; see `errata.orchestrator.journal.intake`.
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
    ) -> None:
        self._journal, self._max_waiting, self._max_bytes = journal, max_waiting, max_waiting_bytes
        self._bytes = journal.waiting_bytes()
        """Of what waits, at most: what was written since the last look is still among it."""
        self._looked_at = time.monotonic()
        self._intake = Intake(journal, admit)
        self._retry_after, self._accepted = retry_after, accepted
        self._queue: queue.Queue[_Item | None] = queue.Queue(max_queued)
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
        item = _Item(list(requests))
        # from here on it cannot be canceled: whoever stops waiting does not undo what is being written
        item.answer.set_running_or_notify_cancel()
        with self._gate:
            if self._closed:
                raise unavailable("the service is ending; nothing was taken")
            try:
                self._queue.put_nowait(item)
            except queue.Full:
                raise busy("too many submissions wait for the journal", retry_after=1.0) from None
        return item.answer

    @property
    def depth(self) -> int:
        """Submissions that wait for their transaction."""
        return self._queue.qsize()

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
        while more:
            items, more = self._gather()
            if items:
                self._write(items)

    def _gather(self) -> tuple[list[_Item], bool]:
        item = self._queue.get()
        items: list[_Item] = []
        size = 0
        while item is not None:
            items.append(item)
            size += len(item.requests)
            if size >= _MOST_TOGETHER:
                return items, True
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return items, True
        return items, False

    def _write(self, items: list[_Item]) -> None:
        try:
            fitting = self._fitting(items)
            if not fitting:
                return
            started = time.perf_counter()
            answers = iter(self._intake.accept([request for item in fitting for request in item.requests]))
            self.write_seconds += time.perf_counter() - started
            self.transactions += 1
        except Exception as error:
            # nothing of a failed transaction was taken; the clients may try again under the same ids
            logger.exception("the journal could not take %d submissions", len(items))
            for item in items:
                if not item.answer.done():
                    item.answer.set_exception(unavailable(f"the journal cannot be written: {type(error).__name__}"))
            return
        for item in fitting:
            item.answer.set_result([next(answers) for _ in item.requests])
        self._accepted()

    def _fitting(self, items: list[_Item]) -> list[_Item]:
        """The submissions for which there is room; those that only repeat what is known always fit."""
        room = self._max_waiting - self._journal.waiting()
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
