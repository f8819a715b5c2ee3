"""Stored states of the editor, so that a restart goes on from the newest one instead of replaying every commit.

A snapshot is a convenience and never the truth: one that is damaged, missing or of another history is passed over, and
the next older one, or the beginning, takes its place. Which commit a file belongs to is an event in the journal.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor

from errata.editing.digest import digest_json, digest_tensors
from errata.editing.errors import DamagedFileError
from errata.editing.session import Snapshot
from errata.editing.tensors import read_tensors, write_tensors
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.artifacts import ArtifactStore
from errata.orchestrator.journal.fail_points import reach
from errata.orchestrator.journal.reading import JournalReader
from errata.orchestrator.journal.rows import Version

logger = logging.getLogger(__name__)

SNAPSHOT: Final = "snapshot"
"""Kind of the journal's event for a stored snapshot."""
_FORMAT: Final = "errata-snapshot-1"
_SAMPLED: Final = 20
"""Commits whose files are looked at to know how much room one takes."""


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """A snapshot that the journal tells of."""

    sequence: int
    version: str
    digest: str


def snapshot_digest(path: Path) -> str:
    """Digest of a snapshot file's content, independent of how its header is laid out."""
    metadata, tensors = read_tensors(path, _FORMAT, "snapshot file")
    return digest_json({"metadata": metadata, "tensors": digest_tensors(tensors)})


def store_snapshot(journal: Journal, store: ArtifactStore, snapshot: Snapshot, version: Version) -> str:
    """Write a snapshot of ``version`` and journal it; returns its digest. Again, it changes nothing.

    Raises:
        ValueError: it was not taken right after that version's commit.
    """
    if snapshot.sequence != version.sequence:
        raise ValueError(f"a snapshot of commit {snapshot.sequence} is none of v{version.sequence}")
    tensors = {f"weights.{layer}": weight.contiguous() for layer, weight in snapshot.weights.items()}
    tensors |= {f"state.{name}": value for name, value in snapshot.tensors.items()}
    metadata = {
        "sequence": str(snapshot.sequence),
        "version": version.digest,
        "about": json.dumps(snapshot.about, sort_keys=True),
    }
    digest = store.put_file("snapshots", lambda path: write_tensors(path, tensors, _FORMAT, metadata))
    reach("after_snapshot_stored")
    if all(row.digest != digest for row in snapshots(journal)):
        journal.record_event(SNAPSHOT, {"sequence": version.sequence, "version": version.digest, "digest": digest})
    return digest


def snapshots(journal: JournalReader) -> list[SnapshotRow]:
    """Every snapshot that was journaled, oldest commit first; one per commit, the newest."""
    rows = {
        event.data["sequence"]: SnapshotRow(event.data["sequence"], event.data["version"], event.data["digest"])
        for event in journal.events(SNAPSHOT)
    }
    return [rows[sequence] for sequence in sorted(rows)]


def newest_snapshot(
    journal: JournalReader, store: ArtifactStore, *, before: int | None = None, after: int = 0
) -> tuple[SnapshotRow, Snapshot] | None:
    """The newest snapshot that can be used: stored, undamaged, of this history.

    Args:
        before: of a commit with a lower number only.
        after: of a commit with a higher number only.
    """
    head = journal.head().sequence
    for row in reversed(snapshots(journal)):
        if row.sequence <= after or (before is not None and row.sequence >= before):
            continue
        if not store.contains("snapshots", row.digest):
            continue  # most old ones were deleted
        if row.sequence > head or journal.version(row.sequence).digest != row.version:
            logger.warning("the snapshot of v%d is of another history and is passed over", row.sequence)
            continue
        try:
            return row, load_snapshot(store, row)
        except FileNotFoundError:
            logger.info("the snapshot of v%d is gone; an older one is taken", row.sequence)
        except DamagedFileError as error:
            logger.warning("the snapshot of v%d is passed over: %s", row.sequence, error)
    return None


def load_snapshot(store: ArtifactStore, row: SnapshotRow) -> Snapshot:
    """A stored snapshot, verified.

    Raises:
        DamagedFileError, FileNotFoundError: its file is damaged or gone.
    """
    metadata, tensors = read_tensors(store.get("snapshots", row.digest), _FORMAT, "snapshot file")
    if metadata["version"] != row.version:
        raise DamagedFileError(f"snapshot {row.digest[:12]} is one of version {metadata['version'][:12]}")
    parts: dict[str, dict[str, Tensor]] = {"weights": {}, "state": {}}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        parts[kind][rest] = tensor
    weights = {int(layer): weight for layer, weight in parts["weights"].items()}
    return Snapshot(int(metadata["sequence"]), weights, json.loads(metadata["about"]), parts["state"])


def outlived(rows: Sequence[SnapshotRow], keep: int, apart: int | None = None) -> list[SnapshotRow]:
    """Of snapshots, oldest first, those that a running run deletes.

    It keeps the newest ``keep``; of the older ones the oldest of each doubling of the age, in commits; and, where
    ``apart`` is given, from the oldest on each that comes so many commits after the last one kept.
    """
    if len(rows) <= keep:
        return []
    newest = rows[-1].sequence
    ages: set[int] = set()
    out: list[SnapshotRow] = []
    last: int | None = None
    for row in rows[: len(rows) - keep]:
        age = (newest - row.sequence).bit_length()
        spaced = apart is not None and (last is None or row.sequence - last >= apart)
        if spaced:
            last = row.sequence
        if age in ages and not spaced:
            out.append(row)
        ages.add(age)
    return out


def spacing(every: int, head: int, most: int, worth: float) -> int | None:
    """Commits between two old snapshots, so that there are at most ``most`` of them and they take no more room than
    the commits do; None where ``most`` is 0.

    It is ``every`` times a power of two: what is kept at a spacing was kept at all smaller ones. With n commits it is
    at most twice max(``every``, n / ``most``, ``worth``), so a revert replays no more than that for each batch it
    computes again.

    Args:
        head: the newest commit's number.
        worth: how many commits' files take as much room as one snapshot.
    """
    if most < 1:
        return None
    apart = every
    while apart * most < head or apart < worth:
        apart *= 2
    return apart


def worth_of(journal: JournalReader, store: ArtifactStore, digest: str) -> float:
    """How many commits' files take as much room as a snapshot, by the newest commits'."""
    commits = journal.version_page(_SAMPLED)
    named = [(kind, name) for v in commits for kind, name in (("keys", v.keys), ("deltas", v.delta)) if name]
    named += [("pieces", v.parts.pieces) for v in commits if v.parts.pieces]
    named += [("modules", module) for v in commits for module in v.parts.modules]
    room = sum(size_of(store, kind, name) for kind, name in named if store.contains(kind, name))
    return size_of(store, "snapshots", digest) * len(commits) / max(1, room)


def size_of(store: ArtifactStore, kind: str, digest: str) -> int:
    """Bytes of a stored file."""
    return store.get(kind, digest, verify=False).stat().st_size


def superfluous(journal: JournalReader, store: ArtifactStore, keep: int) -> Iterator[str]:
    """Digests of stored snapshots that may be deleted: all but the newest ``keep`` that are there."""
    there = set(store.digests("snapshots"))
    kept = {str(event.data["snapshot"]) for event in journal.events("floor")}  # what later versions rest on
    needed = [row.digest for row in snapshots(journal) if row.digest in there][-keep:]
    yield from sorted(there.difference(needed, kept))
