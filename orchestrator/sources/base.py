"""What a source is, and how its records get into the journal."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from errata.editing.errors import UserError
from errata.editing.request import EditRequest, Retraction
from errata.evaluation.datasets import DATASETS, RetractingRecord, ValidRecord, detect_schema
from errata.evaluation.datasets.own import OWN
from errata.evaluation.datasets.record import build
from errata.orchestrator.journal.rows import Accepted

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Delivery:
    """One record as a source hands it out: a request, or why it is none. Exactly one of the two is set."""

    position: str
    """Names the record for good, so that a record that is no request is kept once: ``file:line``, ``stream/entry``."""
    request: EditRequest | Retraction | None = None
    problem: str | None = None
    token: Any = None
    """What the source needs to forget the record."""


class Source(Protocol):
    """A stream of records. One thread reads and settles; after `read` every delivery is settled before the next."""

    @property
    def ended(self) -> bool:
        """Nothing will come any more."""
        ...

    def read(self, timeout: float) -> list[Delivery]:
        """Records that are there now, waiting up to ``timeout`` seconds for the first; empty if none came."""
        ...

    def ack(self, *deliveries: Delivery) -> None:
        """The journal has these, and whatever was rejected since the last call: never hand them out again."""
        ...

    def reject(self, delivery: Delivery, reason: str) -> None:
        """The journal has noted that this record is no request: put it aside. An `ack` follows."""
        ...

    def close(self) -> None:
        """Let go of files and connections; what was not settled comes again."""
        ...


class TakesRequests(Protocol):
    """What of the journal a source is emptied into."""

    def accept(self, requests: Sequence[EditRequest | Retraction]) -> list[Accepted]: ...

    def reject(self, record: str, reason: str) -> Accepted: ...


@dataclass(frozen=True, slots=True)
class Taken:
    """What one call of `take_in` has moved."""

    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0

    def __bool__(self) -> bool:
        return bool(self.accepted or self.duplicates or self.rejected)


def take_in(journal: TakesRequests, source: Source, timeout: float, say: Callable[[str], None] | None = None) -> Taken:
    """Move what the source has into the journal, then let the source forget it: the order is what loses nothing.

    Args:
        timeout: seconds to wait for a first record.
        say: told of every record that is refused.
    """
    deliveries = source.read(timeout)
    if not deliveries:
        return Taken()
    good = [delivery for delivery in deliveries if delivery.request is not None]
    answers = journal.accept([delivery.request for delivery in good if delivery.request is not None]) if good else []
    reasons = {id(d): a.refused for d, a in zip(good, answers, strict=True)}
    refused = [(d, reason) for d in deliveries if (reason := reasons.get(id(d), d.problem)) is not None]
    for delivery, reason in refused:
        journal.reject(delivery.position, reason)
        source.reject(delivery, reason)
        if say is not None:
            say(f"{delivery.position}: {reason}")
    kept = [delivery for delivery in good if reasons[id(delivery)] is None]
    source.ack(*kept)
    new = sum(not a.duplicate and not a.refused for a in answers)
    return Taken(new, len(kept) - new, len(refused))


class Pump:
    """A thread that empties a source into the journal until it is closed or the source ends.

    Args:
        journal: safe to write from this thread.
        wake: called after every intake, from the pump's thread.
        room: whether more may be taken in; while it says no the source keeps what it has. None for always.
        poll: seconds after which an idle source is asked again, and the longest `close` waits for it.
    """

    def __init__(
        self,
        source: Source,
        journal: TakesRequests,
        *,
        wake: Callable[[Taken], None] | None = None,
        room: Callable[[], bool] | None = None,
        poll: float = 0.5,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._source, self._journal = source, journal
        self._wake, self._room, self._poll, self._say = wake, room, poll, say
        self._stop = threading.Event()
        self._done = threading.Event()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="errata-stream", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Nothing more will come: the source has ended, failed (see `error`) or was closed."""
        return self._done.is_set()

    def close(self) -> None:
        """Stop after the intake under way; what was read and not settled comes again another time."""
        self._stop.set()
        self._thread.join()
        self._source.close()

    def _run(self) -> None:
        try:
            while not self._stop.is_set() and not self._source.ended:
                if self._room is not None and not self._room():
                    self._stop.wait(self._poll)
                    continue
                taken = take_in(self._journal, self._source, self._poll, self._say)
                if taken and self._wake is not None:
                    self._wake(taken)
        except BaseException as error:
            # a full disk, a journal that was closed: whoever waits for the stream has to hear of it
            logger.error("the stream has stopped: %s", error)
            self.error = error
        finally:
            self._done.set()
            if self._wake is not None:
                self._wake(Taken())


def deliveries_of(raw: Any, position: str, token: Any, *, schema: str, target: str) -> Iterator[Delivery]:
    """The requests of one raw record, or why it holds none; never raises for what the record holds.

    Args:
        schema: name of a layout, or ``auto``: told from this record.
    """
    try:
        # a record that takes another back is of every layout
        plain = isinstance(raw, Mapping) and "retracts" in raw
        loader = OWN if plain else detect_schema([raw], position) if schema == "auto" else DATASETS[schema]
        wanted = loader.targets[0] if plain else loader.target(target)
    except (UserError, ValueError) as error:
        shown = f"no layout fits a record with the keys {sorted(map(str, raw))}" if isinstance(raw, Mapping) else None
        yield Delivery(position, problem=shown or str(error), token=token)
        return
    for record in build(loader, raw, wanted, position):
        if isinstance(record, RetractingRecord):
            problem = _unwritable(record.retraction)
            kept = record.retraction if problem is None else None
            yield Delivery(record.position, request=kept, problem=problem, token=token)
        elif not isinstance(record, ValidRecord):
            yield Delivery(record.position, problem=record.reason, token=token)
        elif (problem := _unwritable(record.request)) is not None:
            yield Delivery(record.position, problem=problem, token=token)
        else:
            yield Delivery(record.position, request=record.request, token=token)


def _unwritable(request: EditRequest | Retraction) -> str | None:
    # half of a surrogate pair passes every check of text and then fails the transaction of a whole batch
    try:
        request.model_dump_json()
    except ValueError:
        return "the record holds text that is not valid Unicode"
    return None
