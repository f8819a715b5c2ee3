"""Versions that cannot be rebuilt any more, and the exact snapshots that later ones rest on.

A compaction or an erasure drops files of commits. What was dropped is a *gap*: from its first version to the one before
its *floor*, a version of which a whole snapshot of the editor is kept for good. Versions in a gap stay in the journal
under their digests, as names; those from a floor on are rebuilt from its snapshot instead of the base. Floors are
events of the journal, and the versions in between are marked (`errata.orchestrator.journal.rows.MarkRow`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from torch import Tensor

from errata.editing.errors import DamagedFileError, UserError
from errata.editing.session import Snapshot
from errata.orchestrator.history.snapshots import SnapshotRow, load_snapshot
from errata.orchestrator.journal.artifacts import ArtifactStore
from errata.orchestrator.journal.reading import JournalReader
from errata.orchestrator.journal.rows import MarkState, Version

FLOOR: Final = "floor"
"""Kind of the journal's event for one."""


_FIELDS: Final = ("first", "floor", "version", "snapshot", "state", "reason")


@dataclass(frozen=True, slots=True)
class Gap:
    """Versions ``first`` to ``floor - 1``; the commits ``first`` to ``floor`` may lack their files."""

    first: int
    floor: int
    version: str
    """Digest of the version at the floor."""
    snapshot: str
    """Digest of its snapshot."""
    state: MarkState
    reason: str
    replaced: Mapping[str, str | None] = field(default_factory=dict)
    """By the digest of a receipt that went, that of what is left of it; None for nothing."""
    deltas: Mapping[str, str | None] = field(default_factory=dict)
    """By the digest of a change that went, that of what its other edits contribute now; None for nothing. Reverts of
    these compute with it; what the weights were is not told by it."""

    def holds(self, sequence: int) -> bool:
        """Whether a version cannot be rebuilt."""
        return self.first <= sequence < self.floor

    def lacks(self, sequence: int) -> bool:
        """Whether a commit may lack its files."""
        return self.first <= sequence <= self.floor

    def plain(self) -> dict[str, Any]:
        """As an event's data."""
        return {"what": "set", **{name: getattr(self, name) for name in _FIELDS}, **self._maps()}

    def _maps(self) -> dict[str, Any]:
        return {"replaced": dict(self.replaced), "deltas": dict(self.deltas)}


class Gaps:
    """All gaps of a journal; what is asked of them reads nothing more."""

    def __init__(self, gaps: Iterable[Gap] = ()) -> None:
        given = sorted(gaps, key=lambda gap: (gap.first, gap.floor))
        # a floor within a later gap is none any more: its snapshot went with it
        self.all = [gap for gap in given if not any(other.holds(gap.floor) for other in given if other is not gap)]
        self._every = given

    @classmethod
    def of(cls, journal: JournalReader) -> Gaps:
        """As the journal has them."""
        names = (*_FIELDS, "replaced", "deltas")
        return cls(Gap(**{name: event.data[name] for name in names}) for event in journal.events(FLOOR))

    def with_more(self, gaps: Iterable[Gap]) -> Gaps:
        """These and others."""
        return Gaps([*self._every, *gaps])

    @property
    def replaced(self) -> dict[str, str | None]:
        """All receipts of which a part is left, or nothing."""
        return {old: new for gap in self._every for old, new in gap.replaced.items()}

    @property
    def changes(self) -> dict[str, str | None]:
        """All changes of which a part is left, or nothing."""
        return {old: new for gap in self._every for old, new in gap.deltas.items()}

    def receipt(self, digest: str | None) -> str | None:
        """The digest of a commit's receipt as it is stored now; None where nothing is left."""
        return _followed(digest, self.replaced)

    def change(self, digest: str | None) -> str | None:
        """The digest of a commit's change as it is stored now; None where nothing is left."""
        return _followed(digest, self.changes)

    def __bool__(self) -> bool:
        return bool(self._every)

    def at(self, sequence: int) -> Gap | None:
        """The gap that a version is in; None where it can be rebuilt."""
        return next((gap for gap in self._every if gap.holds(sequence)), None)

    def lacks(self, sequence: int) -> bool:
        """Whether a commit may lack its files, for a compaction."""
        return any(gap.lacks(sequence) for gap in self._every if gap.state == "compacted")

    def floor(self, sequence: int) -> Gap | None:
        """The newest floor at or before a version."""
        return max((gap for gap in self.all if gap.floor <= sequence), key=lambda gap: gap.floor, default=None)

    @property
    def newest(self) -> int:
        """Number of the newest floor; 0, the base, where there is none."""
        return max((gap.floor for gap in self.all), default=0)

    def snapshots(self) -> set[str]:
        """Digests of the snapshots that must stay."""
        return {gap.snapshot for gap in self.all}

    def require(self, version: Version, what: str) -> None:
        """Raise UserError where a version cannot be rebuilt.

        Args:
            what: what it is wanted for, as a message begins.
        """
        gap = self.at(version.sequence)
        if gap is not None:
            raise UserError(
                f"{what}: v{version.sequence} cannot be rebuilt any more ({gap.reason}); "
                f"v{gap.floor} and what follows can"
            )


def _followed(digest: str | None, replaced: Mapping[str, str | None]) -> str | None:
    while digest is not None and digest in replaced:
        digest = replaced[digest]
    return digest


def load_floor(store: ArtifactStore, gap: Gap) -> Snapshot:
    """The snapshot of a floor, verified.

    Raises:
        DamagedFileError: it is damaged or gone; versions from there on cannot be rebuilt then.
    """
    try:
        return load_snapshot(store, SnapshotRow(gap.floor, gap.version, gap.snapshot))
    except FileNotFoundError as error:
        raise DamagedFileError(f"v{gap.floor}: its snapshot {gap.snapshot[:12]} is missing") from error


def start_for(
    journal: JournalReader, store: ArtifactStore, base: Mapping[int, Tensor], version: Version
) -> tuple[int, dict[int, Tensor]]:
    """From where a version is rebuilt: a number, and the float32 masters (O, I) at it.

    Args:
        base: the unedited maps.

    Raises:
        UserError: the version cannot be rebuilt any more.
        DamagedFileError: the snapshot that it rests on is damaged or gone.
    """
    gaps = Gaps.of(journal)
    gaps.require(version, f"version {version.digest[:12]}")
    gap = gaps.floor(version.sequence)
    if gap is None:
        return 0, dict(base)
    return gap.floor, dict(load_floor(store, gap).weights)
