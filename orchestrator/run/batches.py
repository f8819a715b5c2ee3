"""Batches: which of the requests that wait make the next one, and how it is given to the editor.

`plan_batch` and `Batcher` are pure: the same requests and the same clock readings give the same batches. `Attempts`
keeps in the journal what the editor has in hand, so that a batch it dies of is cut and not tried for ever.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

from errata.editing.cutting import cut_out_culprits
from errata.editing.errors import EditorFaultError, ErrataError, in_words
from errata.editing.request import EditBatch, EditRequest
from errata.editing.session import CONTROL, EditReceipt
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.rows import AttemptOutcome

logger = logging.getLogger(__name__)

# ---------------------------------------------------------------- planning


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """What goes into the next batch."""

    requests: tuple[EditRequest, ...]
    """In the order of acceptance; one per fact."""
    superseded: tuple[tuple[str, str], ...] = ()
    """(older id, newer id): the older request of a fact gives way to the newer one of this batch, by event time where
    they tell it."""

    def batch(self, sequence: int) -> EditBatch:
        """The batch under its number."""
        return EditBatch(sequence=sequence, requests=self.requests)


def plan_batch(
    pending: Sequence[EditRequest],
    size: int,
    *,
    distinct_subjects: bool = False,
    by_subject: bool = False,
    arrived: Mapping[str, datetime] | None = None,
) -> BatchPlan | None:
    """The next batch: out of the first ``size`` requests that wait, the newest of each fact.

    The newest is the one that became true last, where requests tell (``event_at``), else the one that was accepted
    last. Only the order of acceptance matters for the rest: so a run over the same stream forms the same batches.

    Args:
        pending: requests that wait, in the order of acceptance.
        size: most requests taken at once, at least 1.
        distinct_subjects: take one edit per subject; another one of the same subject waits for the next
            batch. Keys of one subject are nearly parallel, and written together they share out one direction.
        by_subject: take the edits of one subject, that of the first in line; all others wait.
        arrived: when each was accepted, by id; stands for the event time of one that tells none, beside one that does.

    Returns:
        None if nothing waits.
    """
    if size < 1:
        raise ValueError(f"a batch holds at least one request, got size {size}")
    window = pending[:size]
    newest: dict[str, EditRequest] = {}
    for request in window:
        other = newest.get(request.fact_key)
        if other is None or not _newer(other, request, arrived or {}):
            newest[request.fact_key] = request
    chosen: list[EditRequest] = []
    subjects: set[str] = set()
    for request in window:
        subject = request.subject.casefold()
        if newest[request.fact_key] is not request or (distinct_subjects and subject in subjects):
            continue
        if by_subject and subjects and subject not in subjects:
            continue
        chosen.append(request)
        subjects.add(subject)
    taken = {request.fact_key: request.id for request in chosen}
    superseded = tuple(
        (request.id, taken[request.fact_key])
        for request in window
        if request.fact_key in taken and newest[request.fact_key] is not request
    )
    return BatchPlan(tuple(chosen), superseded) if chosen else None


def _newer(first: EditRequest, second: EditRequest, arrived: Mapping[str, datetime]) -> bool:
    """Whether the first of two, in the order of acceptance, holds over the second."""
    if first.event_at is None and second.event_at is None:
        return False
    one, other = first.event_at or arrived.get(first.id), second.event_at or arrived.get(second.id)
    return one is not None and other is not None and one > other


@dataclass(frozen=True, slots=True)
class Batcher:
    """When a batch is due.

    Without ``max_age_seconds`` batches form by count only (schedule ``deterministic``): a batch is due when
    ``size`` requests wait or the stream has ended. With it, a batch is also due when its oldest request has
    waited that long.
    """

    size: int
    max_age_seconds: float | None = None
    distinct_subjects: bool = False
    by_subject: bool = False

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"a batch holds at least one request, got size {self.size}")
        if self.max_age_seconds is not None and not self.max_age_seconds >= 0:
            raise ValueError(f"max_age_seconds must not be negative, got {self.max_age_seconds}")

    def due(self, waiting: int, *, ended: bool, oldest: datetime | None = None, now: datetime | None = None) -> bool:
        """Whether the next batch is to be formed now.

        Args:
            waiting: how many requests wait.
            ended: no more will come (or a drain was asked for).
            oldest: when the oldest of them was accepted; needed with ``max_age_seconds``.
            now: the current time, of the same clock.
        """
        if waiting <= 0:
            return False
        if waiting >= self.size or ended:
            return True
        if self.max_age_seconds is None or oldest is None or now is None:
            return False
        age = now - oldest
        # a clock that was set back must not hold a batch up for as long as it was set back
        return age < timedelta(0) or age >= timedelta(seconds=self.max_age_seconds)

    def plan(self, pending: Sequence[EditRequest], arrived: Mapping[str, datetime] | None = None) -> BatchPlan | None:
        """:func:`plan_batch` with this batcher's settings."""
        return plan_batch(
            pending,
            self.size,
            distinct_subjects=self.distinct_subjects,
            by_subject=self.by_subject,
            arrived=arrived,
        )


# ---------------------------------------------------------------- giving them to the editor

MOST_DEATHS: Final = 3
"""So often the editor may die on one batch before its requests are looked at one by one; a machine may fail as well."""
KEPT: Final = "nothing was written, and the edits still wait"
"""What an editor at fault leaves behind."""


class EditorDiedError(ErrataError):
    """The editor's process ended while it had these requests in hand."""


class Writes(Protocol):
    """What of `errata.actors.parts.EditorPart` is needed."""

    def apply(self, batch: EditBatch, died: Callable[[Exception], None] | None = None) -> EditReceipt: ...

    def rehearse(self, requests: Sequence[EditRequest], died: Callable[[Exception], None] | None = None) -> None: ...


class Attempts:
    """Gives batches to an editor, with every attempt in the journal, so that nothing it dies of is tried for ever.

    What a request raises is refused by the editor itself. What ends the editor's process, or this one, leaves an
    attempt in the journal: after three deaths on one batch its requests are tried in halves until the one at fault
    stands alone; it is rejected, and the others are written.

    Args:
        say: told of every request that is set aside.
    """

    def __init__(self, journal: Journal, editor: Writes, say: Callable[[str], None]) -> None:
        self._journal, self._editor, self._say = journal, editor, say
        self._open: int | None = None

    def apply(self, batch: EditBatch) -> EditReceipt | None:
        """Have the editor write a batch, or the part of it that it survives.

        Requests of the batch that the receipt does not name wait for another batch, or have been rejected. Call
        `committed` when the journal has the receipt, and `failed` when it could not take it.

        Returns:
            None where nothing of the batch is left to be written.

        Raises:
            EditorFaultError: the editor fails on, or dies of, whatever it is given; every request still waits.
        """
        requests: Sequence[EditRequest] = batch.requests
        while requests:
            if self._deaths(batch.sequence, requests) >= MOST_DEATHS:
                requests = self._survived(batch.sequence, requests)
                continue
            try:
                return self._given(batch.model_copy(update={"requests": tuple(requests)}))
            except EditorDiedError:
                logger.warning("the editor died %d times on one batch; it is cut", MOST_DEATHS)
        return None

    def committed(self) -> None:
        """The journal has what the last `apply` returned."""
        self._end("committed")

    def failed(self, error: BaseException) -> None:
        """The journal could not take what the last `apply` returned: no death, and no request's fault."""
        self._end("failed", error)

    # --- parts ---

    def _given(self, batch: EditBatch) -> EditReceipt:
        self._open = self._journal.begin_attempt(batch.sequence, [request.id for request in batch.requests])

        def died(error: Exception) -> None:
            self._end("died", error)
            if self._deaths(batch.sequence, batch.requests) >= MOST_DEATHS:
                raise EditorDiedError(in_words(error)) from error
            self._open = self._journal.begin_attempt(batch.sequence, [request.id for request in batch.requests])

        try:
            return self._editor.apply(batch, died)
        except EditorDiedError:
            raise
        except EditorFaultError as error:
            self._end("failed", error)
            raise EditorFaultError(f"{error}; {KEPT}") from error
        except (Exception, KeyboardInterrupt, SystemExit) as error:  # an interruption is no death either
            self._end("failed", error)
            raise

    def _survived(self, sequence: int, requests: Sequence[EditRequest]) -> Sequence[EditRequest]:
        """What the editor survives of requests that it dies of together; those at fault are rejected."""

        def attempt(part: Sequence[EditRequest]) -> None:
            # what has been seen already, by a process that may have died since, is not tried again
            if self._deaths(sequence, part) >= (MOST_DEATHS if len(part) == len(requests) else 1):
                raise EditorDiedError(self._last_words(sequence, part))
            self._rehearse(sequence, part)

        cut = cut_out_culprits(requests, attempt, EditorDiedError)
        if cut.culprits and not cut.kept:
            try:
                self._rehearse(sequence, [CONTROL])
            except EditorDiedError as error:
                raise EditorFaultError(
                    f"the editor dies of every edit, a plain one too: {error}; give it more memory; {KEPT}"
                ) from error
        for request, death in cut.culprits:
            reason = f"the editor's process died every time it had this edit in hand ({death})"
            self._journal.set_aside(request.id, reason)
            self._say(f"edit {request.id} not applied: {reason}")
        return cut.kept

    def _rehearse(self, sequence: int, part: Sequence[EditRequest]) -> None:
        self._open = self._journal.begin_attempt(sequence, [request.id for request in part])

        def died(error: Exception) -> None:
            self._end("died", error)
            raise EditorDiedError(in_words(error)) from error

        try:
            self._editor.rehearse(part, died)
        except EditorDiedError:
            raise
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            self._end("failed", error)
            raise
        self._end("passed")

    def _deaths(self, sequence: int, requests: Sequence[EditRequest]) -> int:
        return len(self._died(sequence, requests))

    def _died(self, sequence: int, requests: Sequence[EditRequest]) -> list[str]:
        """Why, for every death on exactly these requests; one without an end is a death of this process, earlier."""
        names = {request.id for request in requests}
        return [
            row.reason or "this process ended as well"
            for row in self._journal.attempts(sequence)
            if set(row.request_ids) == names and row.outcome in (None, "died") and row.number != self._open
        ]

    def _last_words(self, sequence: int, requests: Sequence[EditRequest]) -> str:
        return self._died(sequence, requests)[-1]

    def _end(self, outcome: AttemptOutcome, error: BaseException | None = None) -> None:
        if self._open is not None:
            self._journal.end_attempt(self._open, outcome, None if error is None else in_words(error))
            self._open = None
