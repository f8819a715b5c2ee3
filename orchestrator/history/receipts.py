"""From journal and files back to what they stand for: receipts, covariances, the history of a run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from errata.editing.covariance import KeyCovariance
from errata.editing.delta import WeightDelta
from errata.editing.digest import digest_json, digest_tensors
from errata.editing.editors.base import Sweep
from errata.editing.errors import DamagedFileError
from errata.editing.reverting import HistoryItem
from errata.editing.session import EditReceipt, Part, RequestResult, Snapshot
from errata.editing.state import OldKeys
from errata.editing.tensors import read_tensors, write_tensors
from errata.orchestrator.history.gaps import Gaps, load_floor
from errata.orchestrator.history.modules import ModulesInForce, joined, split, store_modules
from errata.orchestrator.history.snapshots import newest_snapshot, snapshot_digest
from errata.orchestrator.journal.artifacts import ArtifactStore, Digester
from errata.orchestrator.journal.fail_points import reach
from errata.orchestrator.journal.reading import JournalReader
from errata.orchestrator.journal.remote_artifacts import RemoteArtifacts, note_place, place_of
from errata.orchestrator.journal.rows import CommitData, RequestOutcome, RequestRow, Version, VersionParts
from errata.retrieval.memory import MemoryEntry
from errata.retrieval.statements import StatementConfig, statement_of

_FORMAT = "errata-receipt-1"
_CORRECTED = "errata-receipt-2"
"""Of a batch that was corrected: with all its sweeps."""
RECEIPTS = (_FORMAT, _CORRECTED)


def receipt_digest(path: Path) -> str:
    """Digest of a receipt file's content, independent of how its header is laid out."""
    return _content_digest(*read_tensors(path, RECEIPTS, "receipt file"))


def _content_digest(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    return digest_json({"metadata": metadata, "tensors": digest_tensors(tensors)})


def read_receipt(store: ArtifactStore, digest: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a stored receipt, checked against its name; the file is read once.

    Raises:
        DamagedFileError, FileNotFoundError: it is damaged or gone.
    """
    path = store.get("keys", digest, verify=False)
    metadata, tensors = read_tensors(path, RECEIPTS, "receipt file")
    _require_named(path, digest, _content_digest(metadata, tensors))
    return metadata, tensors


def read_change(store: ArtifactStore, digest: str) -> WeightDelta:
    """A stored change, checked against its name; the file is read once.

    Raises:
        DamagedFileError, FileNotFoundError: it is damaged or gone.
    """
    path = store.get("deltas", digest, verify=False)
    delta = WeightDelta.load(path)
    _require_named(path, digest, delta.digest)
    return delta


def _require_named(path: Path, name: str, digest: str) -> None:
    if digest != name:
        raise DamagedFileError(f"{path} holds {digest}, not what its name says")


def open_store(root: Path) -> ArtifactStore:
    """The files of a run, wherever they are; deltas, covariances and receipts are known by their content, not by their
    headers."""
    digesters: Mapping[str, Digester] = {
        "deltas": lambda path: WeightDelta.load(path).digest,
        "covariances": lambda path: KeyCovariance.load(path).digest,
        "keys": receipt_digest,
        "snapshots": snapshot_digest,
    }
    url = place_of(root)
    return ArtifactStore(root, digesters=digesters) if url is None else RemoteArtifacts(root, url, digesters=digesters)


def open_for_writing(root: Path, url: str | None) -> ArtifactStore:
    """The files of a run that its writer has opened, with what crashes left half-written deleted.

    Args:
        url: where they are to be kept, as its configuration says; what is only here is brought there.

    Raises:
        UserError: they are kept somewhere else already.
    """
    if url is not None:
        note_place(root, url)
    store = open_store(root)
    store.sweep()
    if isinstance(store, RemoteArtifacts):
        store.complete()
    return store


def store_receipt(store: ArtifactStore, receipt: EditReceipt) -> tuple[str | None, str]:
    """Write a batch's delta and its keys and target values; returns both digests (no delta: None)."""
    tensors: dict[str, Tensor] = {f"keys.{layer}": keys.contiguous() for layer, keys in receipt.keys.items()}
    if receipt.targets is not None:
        tensors["targets"] = receipt.targets.contiguous()
    if not tensors:
        tensors["empty"] = torch.zeros(1)
    metadata = {
        "sequence": str(receipt.sequence),
        "request_ids": json.dumps(receipt.request_ids),
        "fact_keys": json.dumps(receipt.fact_keys),
        "superseded": json.dumps(receipt.superseded),
        "covariance": receipt.covariance_digest or "",
    }
    if receipt.kind == "revert":
        tensors |= {f"memory.{name}": value.clone().contiguous() for name, value in receipt.memory.items()}
        metadata |= {
            "kind": receipt.kind,
            "taken_out": json.dumps(receipt.taken_out),
            "parts": json.dumps([asdict(part) for part in receipt.parts]),
            "whole": json.dumps(receipt.whole),
        }
    if leaving := {name: keys for name, keys in receipt.old_keys.items() if name in leaves_with(receipt)}:
        # so that a replay reads one receipt for a commit, not one for each key that left with it
        metadata["left"] = json.dumps(list(leaving))
        layers = next(iter(leaving.values()))
        tensors |= {f"left.{layer}": torch.stack([keys[layer] for keys in leaving.values()], 1) for layer in layers}
    form = _FORMAT
    if receipt.sweeps:
        form = _CORRECTED
        metadata["sweeps"] = str(len(receipt.sweeps))
        for number, sweep in enumerate(receipt.sweeps):
            tensors |= {
                f"sweep.{number}.targets": sweep.targets.clone().contiguous(),
                f"sweep.{number}.ridge": sweep.ridge.clone().contiguous(),
                **{f"sweep.{number}.keys.{n}": keys.clone().contiguous() for n, keys in sweep.keys.items()},
            }
    keys = store.put_file("keys", lambda path: write_tensors(path, tensors, form, metadata))
    reach("after_keys_stored")
    weights = None if receipt.delta is None else split(receipt.delta)[0]
    return None if weights is None else store.put_file("deltas", weights.save), keys


def store_parts(store: ArtifactStore, receipt: EditReceipt, in_force: ModulesInForce) -> VersionParts:
    """Write what a batch adds to the version beside its delta; comes after `store_receipt`."""
    return in_force.parts(receipt.delta, store_modules(store, receipt.delta))


def load_receipt(store: ArtifactStore, version: Version, gaps: Gaps | None = None) -> EditReceipt:
    """What the editor needs to take a commit over without computing it.

    Args:
        gaps: where files of erased edits were replaced by what is left of them; None reads the commit's own.

    Raises:
        DamagedFileError, FileNotFoundError: a file of the commit is damaged or gone.
    """
    if version.keys is None:
        raise DamagedFileError(f"commit {version.sequence} names no receipt")
    keys = version.keys if gaps is None else gaps.receipt(version.keys)
    change = version.delta if gaps is None else gaps.change(version.delta)
    if keys is None:
        return EditReceipt(version.sequence, None, (), (), (), (), covariance_digest=version.covariance)
    metadata, tensors = read_receipt(store, keys)
    delta = None if change is None else read_change(store, change)
    dropped = gaps is not None and any(gap.lacks(version.sequence) for gap in gaps.all)
    delta = delta if dropped else joined(store, delta, version.parts)
    return EditReceipt(
        sequence=version.sequence,
        delta=delta,
        results=(),
        request_ids=tuple(json.loads(metadata["request_ids"])),
        fact_keys=tuple(json.loads(metadata["fact_keys"])),
        superseded=tuple(json.loads(metadata["superseded"])),
        keys=_keys_by_layer(tensors),
        targets=tensors.get("targets"),
        covariance_digest=metadata["covariance"] or None,
        seconds=version.seconds,
        kind="revert" if version.kind in ("revert", "erase") else "edit",
        taken_out=tuple(json.loads(metadata.get("taken_out", "[]"))),
        parts=tuple(Part(**part) for part in json.loads(metadata.get("parts", "[]"))),
        whole=bool(json.loads(metadata.get("whole", "false"))),
        memory={n.removeprefix("memory."): t for n, t in tensors.items() if n.startswith("memory.")},
        sweeps=tuple(_sweep(tensors, number) for number in range(int(metadata.get("sweeps", "0")))),
        old_keys=_columns(json.loads(metadata.get("left", "[]")), tensors, "left"),
    )


def leaves_with(receipt: EditReceipt) -> tuple[str, ...]:
    """Requests whose keys of before leave the past keys with a commit, as far as they were among them."""
    return receipt.superseded if receipt.kind != "revert" else (*receipt.taken_out, *receipt.request_ids)


def _sweep(tensors: Mapping[str, Tensor], number: int) -> Sweep:
    start = f"sweep.{number}."
    own = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
    return Sweep(own["targets"], own["ridge"], _keys_by_layer(own))


def _keys_by_layer(tensors: Mapping[str, Tensor], kind: str = "keys") -> dict[int, Tensor]:
    return {int(name.split(".")[1]): value for name, value in tensors.items() if name.startswith(f"{kind}.")}


def _columns(names: Sequence[str], tensors: Mapping[str, Tensor], kind: str = "keys") -> dict[str, dict[int, Tensor]]:
    """Keys (d_in,) by request and layer: the columns of a receipt's matrices."""
    matrices = _keys_by_layer(tensors, kind)
    return {
        name: {layer: matrix[:, column].clone() for layer, matrix in matrices.items()}
        for column, name in enumerate(names)
    }


def commit_data(
    receipt: EditReceipt,
    *,
    delta: str | None,
    keys: str,
    contexts: str | None,
    norms: dict[int, float],
    superseded: tuple[tuple[str, str], ...] = (),
    reverts: tuple[str, ...] = (),
    reason: str | None = None,
    repair: Mapping[str, Any] | None = None,
    parts: VersionParts | None = None,
) -> CommitData:
    """A receipt as the journal records it.

    Args:
        repair: of a commit of kind ``repair``, what it tells besides: its requests were applied before and stay so.
    """
    outcomes = tuple(
        RequestOutcome(
            result.request_id, result.applied, result.reason, _figures(result), result.outcome, result.figures
        )
        for result in receipt.results
    )
    asked = [outcome.outcome for outcome in outcomes if outcome.outcome is not None]
    figures = (
        None
        if receipt.moved is None
        else {"moved": receipt.moved, "landed": asked.count("landed"), "weak": asked.count("weak")}
    )
    again = tuple(outcome for outcome in outcomes if outcome.applied) if repair is not None else ()
    return CommitData(
        sequence=receipt.sequence,
        outcomes=outcomes if repair is None else (),
        remeasured=again,
        delta=delta,
        keys=keys,
        contexts=contexts,
        covariance=receipt.covariance_digest,
        norms=norms,
        delta_norms={} if receipt.delta is None else receipt.delta.norms(),
        seconds=receipt.seconds,
        superseded=superseded,
        kind=receipt.kind if repair is None else "repair",
        reverts=reverts,
        reason=reason,
        sweeps=max(1, len(receipt.sweeps)),
        figures=figures if repair is None else {**(figures or {}), **repair},
        recomputed=recomputed_by(receipt),
        parts=parts or VersionParts(),
    )


def recomputed_by(receipt: EditReceipt) -> tuple[int, ...]:
    """The batches that a receipt's commit computed again, as the journal's table of them has it."""
    return (0,) if receipt.whole else tuple(sorted({part.sequence for part in receipt.parts}))


def history(
    journal: JournalReader,
    store: ArtifactStore,
    *,
    since: Snapshot | None = None,
    after: int | None = None,
    upto: int | None = None,
    before: int | None = None,
) -> Iterator[HistoryItem]:
    """Everything that made the editor's state, in order: covariances where they took effect, and commits.

    Args:
        since: stands for the commits up to its own.
        after: go on after this commit, of a history that was read up to it.
        upto: the last commit that is wanted; all by default.
        before: the state before this commit is wanted, so nothing newer may stand for what came before.
    """
    swaps = {swap.after_sequence: swap.covariance for swap in journal.swaps()}
    gaps = Gaps.of(journal)
    if since is None and after is None:
        last = journal.head().sequence if upto is None else upto
        gap = gaps.floor(last if before is None else min(last, before - 1))
        since = None if gap is None else load_floor(store, gap)
    start = after if after is not None else 0 if since is None else since.sequence
    first = swaps.get(0) if since is None else since.about["covariance"]
    if first is not None and after is None:
        yield load_covariance(store, first)
    if since is not None:
        yield since
        if start in swaps and swaps[start] != first:
            yield load_covariance(store, swaps[start])
    for sequence in range(start + 1, (journal.head().sequence if upto is None else upto) + 1):
        version = journal.version(sequence)
        yield with_old_keys(journal, store, load_receipt(store, version, gaps), version)
        if version.sequence in swaps:
            yield load_covariance(store, swaps[version.sequence])


def history_before(journal: JournalReader, store: ArtifactStore, batches: Sequence[int]) -> Iterator[HistoryItem]:
    """The history with each of some commits in it and the editor's exact state before each; what lies between is left
    out where a snapshot stands for it."""
    at: int | None = None
    covariance: str | None = None
    for batch in batches:
        snapshot = newest_snapshot(journal, store, before=batch, after=at or 0)
        since = None if snapshot is None else snapshot[1]
        for item in history(journal, store, since=since, after=None if since is not None else at, upto=batch):
            if isinstance(item, KeyCovariance):
                if item.digest == covariance:
                    continue  # taking it over again would cost a factorization
                covariance = item.digest
            yield item
        at = batch


def with_old_keys(journal: JournalReader, store: ArtifactStore, receipt: EditReceipt, version: Version) -> EditReceipt:
    """The receipt with the keys that leave by it, where the editor may not hold them any more.

    A receipt has them itself; one of a release before 0.2 has not, and they are looked for where they were written.
    """
    widths = [keys.shape[0] for keys in receipt.keys.values()]
    # an editor gives raw keys up when it has d_in of them, which takes as many edits
    if receipt.old_keys or receipt.whole or not widths or version.edits < min(widths):
        return receipt
    leaving = leaves_with(receipt)
    if not leaving:
        return receipt
    return replace(receipt, old_keys=old_keys(journal, store, leaving, before=version.sequence))


def old_keys(journal: JournalReader, store: ArtifactStore, names: Iterable[str], *, before: int) -> OldKeys:
    """The keys that requests have in the editor's state just before commit ``before``, from their receipts.

    A request's key is that of the commit that wrote it last, or of a later revert that computed its batch again.

    Raises:
        DamagedFileError, FileNotFoundError: a receipt is damaged or gone.
    """
    left: dict[str, list[int]] = {}
    for name in names:
        wrote = journal.written_in(name, before)
        if wrote is not None:
            left[name] = [*journal.recomputed(wrote, before), wrote]
    found: dict[str, dict[int, Tensor]] = {}
    gaps = Gaps.of(journal)
    while left:  # a receipt is read once for all whose keys it may hold
        sequence = max(places[0] for places in left.values())
        members = [name for name, places in left.items() if places[0] == sequence]
        held = _stored_keys(journal, store, gaps, sequence)
        for name in members:
            if name in held:
                found[name] = held[name]
            left[name] = [] if name in held else left[name][1:]
        left = {name: places for name, places in left.items() if places}
    return found


def _stored_keys(
    journal: JournalReader, store: ArtifactStore, gaps: Gaps, sequence: int
) -> dict[str, dict[int, Tensor]]:
    """Keys (d_in,) by request and layer as a commit's receipt has them; none where an erasure or a compaction left
    nothing of it."""
    version = journal.version(sequence)
    keys = gaps.receipt(version.keys)
    again = version.kind in ("revert", "erase")
    if keys is None or (again and gaps.lacks(sequence) and not store.contains("keys", keys)):
        return {}
    metadata, tensors = read_receipt(store, keys)
    return _columns(json.loads(metadata["request_ids"]), tensors)


def load_covariance(store: ArtifactStore, digest: str) -> KeyCovariance:
    """A stored covariance, verified."""
    return KeyCovariance.load(store.get("covariances", digest))


def memory_entry(row: RequestRow, statement: StatementConfig | None = None) -> MemoryEntry:
    """What the memory keeps of a request, numbered by its acceptance."""
    return MemoryEntry.of(row.request, row.seq, statement=statement_of(row.request, statement))


def memory_entries(journal: JournalReader, statement: StatementConfig | None = None) -> list[MemoryEntry]:
    """Statements the memory holds now: those of applied requests."""
    return [memory_entry(row, statement) for row in journal.requests("applied")]


def held_entries(
    rows: Iterable[RequestRow], sequence: int, statement: StatementConfig | None = None
) -> list[MemoryEntry]:
    """Statements the memory held right after commit ``sequence``."""
    held = [row for row in rows if row.applied_in is not None and row.applied_in <= sequence]
    return [memory_entry(row, statement) for row in held if row.ended_in is None or row.ended_in > sequence]


def _figures(result: RequestResult) -> dict[str, Any]:
    if not result.applied:
        return {}
    kept = asdict(result)
    norms = [name for name in ("delta_norm", "state_norm", "kp_loss") if kept[name] is not None]
    return {name: kept[name] for name in ("loss", "steps", "converged", "clamped", *norms)}
