"""Files that commits in a gap do not need any more: found, and deleted. Again, it changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from errata.editing.tensors import write_tensors
from errata.orchestrator.history.gaps import Gaps
from errata.orchestrator.history.receipts import RECEIPTS, read_receipt
from errata.orchestrator.journal.artifacts import ArtifactStore
from errata.orchestrator.journal.fail_points import reach
from errata.orchestrator.journal.reading import JournalReader
from errata.orchestrator.journal.rows import Version

_AT_ONCE: Final = 1000


@dataclass(frozen=True, slots=True)
class Dropped:
    """A stored file that goes."""

    kind: str
    digest: str
    size: int


def droppable(journal: JournalReader, store: ArtifactStore, gaps: Gaps) -> list[Dropped]:
    """Stored files of commits in gaps that nothing needs which can still be rebuilt.

    Receipts of requests that are in the weights stay: their keys are read when a newer edit of the fact comes
    (`errata.orchestrator.history.receipts.old_keys`). So do those of reverts, which hold keys as they were computed
    again. Of an erasure only what was replaced goes (`Gap.replaced`, `Gap.deltas`).
    """
    named: dict[str, set[str]] = {kind: set() for kind in ("deltas", "keys", "modules", "pieces")}
    needed: dict[str, set[str]] = {kind: set() for kind in named}
    living = journal.living_writes()
    gone = gaps.replaced.keys() | gaps.changes.keys()
    for version in _commits(journal):
        lacks = gaps.lacks(version.sequence)
        for kind, digest in _files(version):
            stays = kind == "keys" and (version.sequence in living or version.kind in ("revert", "erase"))
            (named if digest in gone or (lacks and not stays) else needed)[kind].add(digest)
    # what stood for an erased part may have been replaced in its turn
    named["keys"] |= gaps.replaced.keys()
    named["deltas"] |= gaps.changes.keys()
    files = [
        Dropped(kind, digest, store.get(kind, digest, verify=False).stat().st_size)
        for kind, digests in named.items()
        for digest in sorted(digests - needed[kind])
        if store.contains(kind, digest)
    ]
    kept = gaps.snapshots()
    for row in journal.events("snapshot"):
        digest = str(row.data["digest"])
        if gaps.at(int(row.data["sequence"])) and digest not in kept and store.contains("snapshots", digest):
            files.append(Dropped("snapshots", digest, store.get("snapshots", digest, verify=False).stat().st_size))
    return files


def drop(store: ArtifactStore, files: Sequence[Dropped]) -> None:
    """Delete files, one after the other."""
    for number, file in enumerate(files):
        store.discard(file.kind, file.digest)
        if number == 0:
            reach("after_first_dropped")
    reach("after_dropped")


def without_names(
    store: ArtifactStore, digest: str, names: Mapping[str, str]
) -> tuple[str, dict[str, Tensor], dict[str, str]] | None:
    """A stored receipt without the columns of some requests, and with other names for them elsewhere.

    Args:
        names: by id, what stands in its place.

    Returns:
        Format, tensors and metadata to be written; None where no request is left in it.
    """
    metadata, tensors = read_receipt(store, digest)
    ids = json.loads(metadata["request_ids"])
    kept = [i for i, name in enumerate(ids) if name not in names]
    if not kept and metadata.get("kind") != "revert":
        return None
    shown = {"request_ids": [ids[i] for i in kept], "fact_keys": [json.loads(metadata["fact_keys"])[i] for i in kept]}
    for key in ("superseded", "taken_out"):
        if key in metadata:
            shown[key] = [names.get(name, name) for name in json.loads(metadata[key])]
    left = json.loads(metadata.get("left", "[]"))
    stays = [i for i, name in enumerate(left) if name not in names]
    if left:
        shown["left"] = [left[i] for i in stays]
    changed = {**metadata, **{key: json.dumps(value) for key, value in shown.items()}}
    columns = torch.tensor(kept)

    def cut(name: str, value: Tensor) -> Tensor:
        if name.startswith("left."):
            return value[:, stays].contiguous()
        if value.ndim and name.split(".")[-2:-1] == ["keys"] and value.shape[1] == len(ids):
            return value[:, columns].contiguous()
        if name.split(".")[-1] in ("targets", "ridge") and len(value) == len(ids):
            return value[columns].contiguous()
        return value

    form = RECEIPTS[1] if "sweeps" in metadata else RECEIPTS[0]
    return form, {name: cut(name, value) for name, value in tensors.items()}, changed


def store_cut(store: ArtifactStore, digest: str, names: Mapping[str, str]) -> str | None:
    """Keep a receipt without some requests beside the whole one; returns its digest, None where nothing is left."""
    left = without_names(store, digest, names)
    if left is None:
        return None
    form, tensors, metadata = left
    return store.put_file("keys", lambda path: write_tensors(path, tensors, form, metadata))


def _files(version: Version) -> Iterable[tuple[str, str]]:
    pairs = [("deltas", version.delta), ("keys", version.keys), ("pieces", version.parts.pieces)]
    pairs += [("modules", digest) for digest in version.parts.modules]
    return [(kind, digest) for kind, digest in pairs if digest is not None]


def _commits(journal: JournalReader) -> Iterable[Version]:
    head = journal.head().sequence
    for start in range(0, head, _AT_ONCE):
        yield from journal.versions_between(start, min(start + _AT_ONCE, head))
