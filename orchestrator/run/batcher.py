"""How waiting requests become batches. Pure: the same requests and the same clock readings give the same
batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from errata.editing.request import EditBatch, EditRequest


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
        return plan_batch(pending, self.size, distinct_subjects=self.distinct_subjects, arrived=arrived)
