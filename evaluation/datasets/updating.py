"""Streams of updates as a service meets them: most change a fact that is known, some come late, some are taken back.

Made up, not read: for tests, examples and benchmarks. How often a fact changes follows Zipf's law: a few facts change
all the time and most of them once.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from random import Random
from typing import Any, Final

START: Final = datetime(2026, 1, 1, tzinfo=UTC)
"""Event time of the first record."""
ANSWERS: Final = ("Paris", "Rome", "France", "Italy", "Canada", "Africa", "Angola", "French")
PEOPLE: Final = ("Alice Munro", "Thierry Henry", "Danielle Darrieux")


@dataclass(frozen=True)
class UpdatingStream:
    """What a stream of made-up updates is like. Iterating gives its records, in the order of their arrival.

    Attributes:
        edits: records that write something.
        facts: facts that they are about.
        exponent: of Zipf's law: the k-th known fact changes in proportion to ``k ** -exponent``; 0 for all alike.
        late: share of the records that arrive behind up to ``delay`` others that happened after them.
        retracted: share of the records that a later record takes back (``{"id": ..., "retracts": ...}``).
        timed: whether records say when their fact became true (``event_at``), one minute apart.
    """

    edits: int
    facts: int
    exponent: float = 1.0
    late: float = 0.0
    delay: int = 20
    retracted: float = 0.0
    timed: bool = False
    seed: int = 0
    subjects: Sequence[str] = PEOPLE
    answers: Sequence[str] = ANSWERS

    def __post_init__(self) -> None:
        if not 1 <= self.facts <= self.edits:
            raise ValueError(f"facts must be from 1 to the number of edits, {self.edits}; got {self.facts}")
        for name in ("late", "retracted"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        random = Random(self.seed)
        waiting: list[tuple[int, int, dict[str, Any]]] = []
        """(place in the order of arrival, place in the order of events, record)."""
        for place, record in enumerate(self._happened(random)):
            arrives = place + (random.randint(1, self.delay) if random.random() < self.late else 0)
            waiting.append((arrives, place, record))
            waiting.sort(key=lambda item: item[:2])
            while waiting and waiting[0][0] <= place:
                yield waiting.pop(0)[2]
        yield from (record for _, _, record in waiting)

    def _happened(self, random: Random) -> Iterator[dict[str, Any]]:
        """The records in the order in which they happened."""
        weights = list(accumulate((k + 1) ** -self.exponent for k in range(self.facts)))
        value: list[int] = []
        takes_back: list[tuple[int, str]] = []
        for number in range(self.edits):
            # new facts are spread evenly; in between, a known one changes
            if len(value) * self.edits <= number * self.facts:
                fact = len(value)
                value.append(random.randrange(len(self.answers)))
            else:
                fact = bisect_left(weights, random.random() * weights[len(value) - 1])
                value[fact] = (value[fact] + random.randint(1, len(self.answers) - 1)) % len(self.answers)
            record = self._record(number, fact, value[fact])
            if random.random() < self.retracted:
                takes_back.append((number + random.randint(1, self.delay), record["id"]))
            yield record
            for due, name in [item for item in takes_back if item[0] <= number]:
                takes_back.remove((due, name))
                yield self._taken_back(name, number)
        for _, name in takes_back:
            yield self._taken_back(name, self.edits)

    def _record(self, number: int, fact: int, answer: int) -> dict[str, Any]:
        subject = f"{self.subjects[fact % len(self.subjects)]} {fact}"
        record = {
            "id": f"edit-{number}",
            "subject": subject,
            "prompt": "{} works in",
            "target_new": self.answers[answer],
            "relation": "place of work",
        }
        return record | ({"event_at": _at(number)} if self.timed else {})

    def _taken_back(self, name: str, number: int) -> dict[str, Any]:
        return {"id": f"not-{name}", "retracts": name} | ({"event_at": _at(number)} if self.timed else {})


def _at(number: int) -> str:
    return (START + timedelta(minutes=number)).isoformat()
