"""What becomes of an edit: right after it, and at the end of the stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from errata.evaluation.metrics.card import metric

_SOURCE = "continual learning (Chaudhry et al. 2018, forgetting measure), for edits; METHODS section 6"


@dataclass(frozen=True)
class Retention:
    """A metric right after each edit and at the end of the stream, over the edits measured at both times."""

    right_after: float
    at_end: float
    kept: float | None
    """Share of what held right after that still holds; None where nothing held."""
    gained: float | None
    """Share of what did not hold right after that holds at the end; None where everything held."""
    edits: int


@metric("retained", version=1, source=_SOURCE)
def retained(right_after: Sequence[float], at_end: Sequence[float]) -> float | None:
    """Share kept: sum of ``min(after, end)`` over sum of ``after``, edit by edit; None where nothing held.

    For outcomes of 0 and 1 the share of the edits that held right after and hold at the end. What is gained later
    does not make up for what is lost.
    """
    held = sum(right_after)
    return sum(min(a, b) for a, b in zip(right_after, at_end, strict=True)) / held if held else None


@metric("forgetting", version=1, source=_SOURCE, higher_is_better=False)
def forgetting(right_after: Sequence[float], at_end: Sequence[float]) -> float:
    """Mean of the value right after an edit minus its value at the end; negative where values rose.

    Raises:
        ValueError: no edit.
    """
    if not right_after:
        raise ValueError("forgetting needs at least one edit")
    return sum(a - b for a, b in zip(right_after, at_end, strict=True)) / len(right_after)


def retention(right_after: Mapping[str, float], at_end: Mapping[str, float]) -> Retention | None:
    """Both ends of an edit's life, by request id; None where no edit was measured at both times.

    Args:
        right_after: value (0..1) of each edit on the version that its batch made.
        at_end: the same on the last version.
    """
    both = [name for name in right_after if name in at_end]
    if not both:
        return None
    first, last = [right_after[name] for name in both], [at_end[name] for name in both]
    room = sum(1 - value for value in first)
    return Retention(
        right_after=sum(first) / len(first),
        at_end=sum(last) / len(last),
        kept=retained(first, last),
        gained=sum(max(0.0, b - a) for a, b in zip(first, last, strict=True)) / room if room else None,
        edits=len(both),
    )
