"""Finding who is at fault in a batch: it is cut in halves until what fails stands alone.

Used wherever requests are tried together and one of them may spoil the attempt: by raising, by the death of the process
that tries it, or by what it would damage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Cut(Generic[T, R]):
    """What came of an attempt: every item is in exactly one of ``kept``, ``culprits`` and ``left``."""

    kept: tuple[T, ...] = ()
    """Items that went together, in their order."""
    result: R | None = None
    """What the attempt with these gave; None where nothing is kept."""
    culprits: tuple[tuple[T, Exception], ...] = ()
    """Items that fail alone, in their order, each with its error."""
    left: tuple[T, ...] = ()
    """Items that are not at fault alone and do not go with ``kept``: to be tried apart from it."""


@dataclass
class _Search(Generic[T, R]):
    items: Sequence[T]
    attempt: Callable[[Sequence[T]], R]
    errors: type[Exception] | tuple[type[Exception], ...]
    culprits: dict[int, Exception] = field(default_factory=dict)
    passed: list[tuple[tuple[int, ...], R]] = field(default_factory=list)

    def tried(self, places: Sequence[int]) -> R:
        return self.attempt([self.items[place] for place in places])

    def halve(self, places: Sequence[int], error: Exception) -> None:
        """Places that failed together."""
        if len(places) == 1:
            self.culprits[places[0]] = error
            return
        middle = len(places) // 2
        for half in (places[:middle], places[middle:]):
            try:
                self.passed.append((tuple(half), self.tried(half)))
            except self.errors as failed:
                self.halve(half, failed)


def cut_out_culprits(
    items: Sequence[T],
    attempt: Callable[[Sequence[T]], R],
    errors: type[Exception] | tuple[type[Exception], ...] = Exception,
) -> Cut[T, R]:
    """Attempt all items together; where that fails, without those that fail alone.

    An attempt that succeeds costs nothing more. k culprits among n items cost about 2 k log2(n) attempts beyond the
    first. Where the rest fails together though each half of it passes, as for lack of memory, the largest part that
    passed is kept and the others are left for another attempt.

    Args:
        attempt: tries some of the items, in their order; changes nothing that a later attempt sees.
        errors: what counts as a failure; anything else is raised.
    """
    if not items:
        return Cut()
    search = _Search(items, attempt, errors)
    everything = tuple(range(len(items)))
    try:
        return Cut(tuple(items), search.tried(everything))
    except errors as error:
        search.halve(everything, error)
    culprits = tuple((items[place], search.culprits[place]) for place in sorted(search.culprits))
    good = tuple(place for place in everything if place not in search.culprits)
    if not good:
        return Cut(culprits=culprits)
    kept, result = max(search.passed, key=lambda part: len(part[0]))
    if culprits and kept != good:
        with suppress(*(errors if isinstance(errors, tuple) else (errors,))):  # else the part that passed is kept
            kept, result = good, search.tried(good)
    left = tuple(items[place] for place in good if place not in kept)
    return Cut(tuple(items[place] for place in kept), result, culprits, left)
