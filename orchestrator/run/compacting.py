"""``errata compact``: old versions become names, their files go, and what follows rests on an exact snapshot.

Versions that stay provable: those of the last days, tagged ones, published ones, and the newest. Each of them that lies
before the last days gets a snapshot of its own. What a revert of an edit in the weights needs stays as well, unless it
is asked that it go.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from errata.orchestrator.history.dropping import Dropped, drop, droppable
from errata.orchestrator.history.gaps import FLOOR, Gap, Gaps
from errata.orchestrator.journal.artifacts import ArtifactStore
from errata.orchestrator.journal.fail_points import reach
from errata.orchestrator.journal.reading import JournalReader
from errata.orchestrator.run.offline import OfflineRun

COMPACTED: Final = "compacted"


@dataclass(frozen=True)
class CompactPlan:
    """What a compaction would do."""

    floors: tuple[int, ...]
    """Versions that get a snapshot of their own; everything newer rests on the last one. Empty: nothing to do."""
    versions: int
    """That become names."""
    files: tuple[Dropped, ...]
    kept_for_reverts: int | None = None
    """The newest version that would have been dropped, and stays so that edits in the weights can be reverted."""

    @property
    def size(self) -> int:
        """Bytes that go."""
        return sum(file.size for file in self.files)


def plan_compaction(
    journal: JournalReader, store: ArtifactStore, *, days: float, now: datetime, reverts: bool = True
) -> CompactPlan:
    """Find out what can go; nothing is changed.

    Args:
        days: versions not older than so many days stay provable.
        reverts: what a revert of any edit in the weights needs stays.
    """
    gaps = Gaps.of(journal)
    last = journal.newest_before(now - timedelta(days=days))
    wanted = last
    if reverts:
        first = journal.first_living()
        wanted = min(last, last if first is None else first - 1)
    held = wanted if wanted < last else None
    start = gaps.newest
    if wanted <= start:
        unfinished = droppable(journal, store, gaps)
        return CompactPlan((), 0, tuple(unfinished), last if held is not None else None)
    named = set(journal.tags().values()) | published(journal)
    floors = tuple(sorted({number for number in named if start < number < wanted} | {wanted}))
    made = [_gap(first, floor, "", "") for first, floor in _spans(start, floors)]
    files = droppable(journal, store, gaps.with_more(made))
    return CompactPlan(floors, sum(g.floor - g.first for g in made), tuple(files), last if held is not None else None)


def compact(run: OfflineRun, plan: CompactPlan) -> None:
    """Carry a plan out. Killed anywhere, nothing that was to stay is lost, and doing it again ends it."""
    journal, store = run.journal, run.store
    if plan.floors:
        start = Gaps.of(journal).newest
        digests = run.snapshots_at(plan.floors)
        reach("after_floors_stored")
        for first, floor in _spans(start, plan.floors):
            gap = _gap(first, floor, journal.version(floor).digest, digests[floor])
            journal.open_gap(FLOOR, gap.plain(), range(first, floor), gap.state, gap.reason)
    drop(store, droppable(journal, store, Gaps.of(journal)))


def published(journal: JournalReader) -> set[int]:
    """Versions that a server was switched to, or that a registry knows."""
    told = (event.data for event in journal.events("publication"))
    return {int(data["sequence"]) for data in told if data.get("what") in ("switched", "already", "registered")}


def _spans(start: int, floors: tuple[int, ...]) -> list[tuple[int, int]]:
    before = (start, *floors)
    return [(low + 1, high) for low, high in zip(before, floors, strict=False)]


def _gap(first: int, floor: int, version: str, snapshot: str) -> Gap:
    return Gap(first, floor, version, snapshot, COMPACTED, f"compacted: v{floor} is kept as a snapshot")
