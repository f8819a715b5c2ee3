"""Whether everything a run's journal promises is there and true; and removing what it never named."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from errata.editing.delta import WeightDelta, weight_norm
from errata.editing.digest import digest_json
from errata.editing.errors import DamagedFileError, UserError
from errata.editing.wording import counted
from errata.orchestrator.history.gaps import Gaps, load_floor
from errata.orchestrator.history.log import History
from errata.orchestrator.history.modules import changed
from errata.orchestrator.history.rebuild import BaseCheckpoint, advance, edited_layers, load_delta, weights_digest
from errata.orchestrator.history.receipts import load_receipt, open_store, read_receipt
from errata.orchestrator.history.snapshots import snapshots, superfluous
from errata.orchestrator.history.written import WrittenKeys
from errata.orchestrator.journal import JOURNAL_FILE, Journal
from errata.orchestrator.journal.artifacts import DIGEST, KINDS, ArtifactStore
from errata.orchestrator.journal.chain import check_chain
from errata.orchestrator.journal.connection import WriterLock, connect_reader
from errata.orchestrator.journal.derived import check_derived
from errata.orchestrator.journal.reading import JournalReader
from errata.orchestrator.journal.rows import RequestState, Version, VersionHash

_NORM_TOLERANCE: Final = 1e-6
"""Recorded norms are float64 sums over float32 bytes: another order of summation moves the last digits only."""
_KEPT: Final = 2
"""Snapshots that stay where the run's configuration does not say."""
_LEFTOVERS: Final = ".tmp-*"
"""Half-written files of an ``ArtifactStore``."""

Progress = Callable[[str, int, int], None]


def _silent(stage: str, done: int, total: int) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and where."""

    where: str
    what: str


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A version whose matrices could be rebuilt, and their digest."""

    sequence: int
    version: str
    weights: str


@dataclass
class Report:
    """What :func:`verify` found; the run is sound if there are no problems. Orphans and leftovers harm nothing."""

    problems: list[Problem] = field(default_factory=list)
    rebuilt: list[Rebuilt] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    """Files that nothing in the journal names: what a crash between storing and committing leaves."""
    leftovers: list[str] = field(default_factory=list)
    """Half-written files."""
    files: int = 0
    versions: int = 0
    requests: int = 0

    @property
    def sound(self) -> bool:
        return not self.problems

    def add(self, where: str, what: str) -> None:
        """Note one problem."""
        self.problems.append(Problem(where, what))


def named_files(journal: JournalReader) -> dict[str, set[str]]:
    """Digests that the journal needs, by kind of file. Snapshots are not among them: nothing needs one."""
    versions = journal.versions()
    covariances = {v.covariance for v in versions} | {swap.covariance for swap in journal.swaps()}
    covariances |= {row.digest for row in journal.covariances()} | {row.covariance for row in journal.refreshes()}
    parts = [v.parts for v in versions]
    named: dict[str, set[str | None]] = {
        "deltas": {v.delta for v in versions},
        "keys": {v.keys for v in versions},
        "contexts": {v.contexts for v in versions},
        "covariances": covariances,
        "modules": {digest for part in parts for digest in part.modules},
        "pieces": {part.pieces for part in parts},
        "routers": {part.router for part in parts},
    }
    return {kind: {digest for digest in digests if digest} for kind, digests in named.items()}


def _replacing(gaps: Gaps, kind: str) -> set[str]:
    """Files of a kind that stand for what was erased."""
    maps = {"keys": gaps.replaced, "deltas": gaps.changes}
    return {new for new in maps.get(kind, {}).values() if new is not None and new not in maps[kind]}


def _named_by(versions: Iterable[Version]) -> dict[str, set[str]]:
    """Files of the kinds that a gap may lack, as some commits name them."""
    digests: dict[str, set[str]] = {kind: set() for kind in ("deltas", "keys", "modules", "pieces")}
    for version in versions:
        digests["deltas"] |= {version.delta} if version.delta else set()
        digests["keys"] |= {version.keys} if version.keys else set()
        digests["modules"] |= set(version.parts.modules)
        digests["pieces"] |= {version.parts.pieces} if version.parts.pieces else set()
    return digests


def verify(run: Path, base: BaseCheckpoint | None, progress: Progress = _silent) -> Report:
    """Check a run: the journal's tables, every stored file, every version's digest, every version's weights.

    Args:
        base: the checkpoint that the run was begun on; None to leave out rebuilding the weights.
    """
    report = Report()
    try:
        store = open_store(run)
        journal = Journal.open(run / JOURNAL_FILE, read_only=True)
    except Exception as error:
        report.add("journal", f"cannot be opened: {_told(error)}")
        return report
    with journal:
        # what is damaged can raise anything: each part is looked at by itself, and says so where it cannot be
        with _told_in(report, "journal"):
            _check_database(run / JOURNAL_FILE, report, progress)
        with _told_in(report, "journal"):
            history = History(journal)
            report.versions, report.requests = len(history.versions), len(history.rows)
            with _told_in(report, "versions"):
                _check_versions(history, report)
            with _told_in(report, "commits"):
                _check_commits(history, store, report, progress)
                _check_recomputed(journal, store, report)
        with _told_in(report, "files"):
            _check_files(journal, store, report)
        if base is not None:
            with _told_in(report, "weights"):
                _check_weights(journal, store, base, report, progress)
    return report


@contextmanager
def _told_in(report: Report, where: str) -> Iterator[None]:
    """What a damaged file makes a reader raise becomes a problem of the report."""
    try:
        yield
    except Exception as error:
        report.add(where, f"cannot be checked: {_told(error)}")


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": ")


# ---------------------------------------------------------------- the journal


def _check_database(path: Path, report: Report, progress: Progress) -> None:
    connection = connect_reader(path)
    # text that is no UTF-8 any more is compared as it is, not read with an error
    connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    try:
        checks = "PRAGMA integrity_check", "PRAGMA foreign_key_check"
        with _told_in(report, "journal"):
            for row in connection.execute(checks[0]):  # reads CHECK and NOT NULL constraints again as well
                if row[0] != "ok":
                    report.add("journal", str(row[0]))
        with _told_in(report, "journal"):
            for row in connection.execute(checks[1]):
                report.add(
                    "journal", f"row {row['rowid']} of {row['table']} needs a row of {row['parent']} that is gone"
                )
        with _told_in(report, "chain"):
            for broken in check_chain(connection):
                report.add(f"{broken.kind} {broken.ref}", broken.what)
        with _told_in(report, "journal"):
            for deviation in check_derived(connection):
                report.add(deviation.where, deviation.what)
        with _told_in(report, "requests"):
            query = "SELECT id, payload, payload_digest, fact_key, erased_at FROM requests ORDER BY seq"
            for row in connection.execute(query):
                if row["fact_key"] is None or row["erased_at"] is not None:
                    continue  # never was a valid request, or holds nothing any more
                asked = {key: value for key, value in json.loads(row["payload"]).items() if key != "provenance"}
                if digest_json(asked) != row["payload_digest"]:
                    report.add(f"request {row['id']}", "its content is not what was accepted")
    finally:
        connection.close()


def _check_versions(history: History, report: Report) -> None:
    """Sequence numbers without gaps, every digest that of its parent and its delta, edits counted right."""
    hash_ = VersionHash(history.journal.meta.base_digest)
    before = history.versions[0]
    for number, version in enumerate(history.versions[1:], 1):
        where = f"v{version.sequence}"
        if version.sequence != number:
            report.add(where, f"stands where v{number} should")
        if version.parent != before.digest:
            report.add(where, f"names the parent {_short(version.parent)}, v{before.sequence} is {before.digest[:12]}")
        hash_.add(version.delta, version.parts)
        if version.digest != hash_.digest:
            report.add(where, f"is called {version.digest[:12]}, base and deltas give {hash_.digest[:12]}")
        if version.kind == "edit":
            applied = len(_applied(history, version))
            if version.edits - before.edits != applied:
                report.add(
                    where,
                    f"counts {counted(version.edits - before.edits, 'edit')}, "
                    f"{counted(applied, 'request')} {'was' if applied == 1 else 'were'} applied",
                )
        before = version


def _applied(history: History, version: Version) -> set[str]:
    return _fated(history, version, "applied")


def _fated(history: History, version: Version, state: RequestState) -> set[str]:
    """Requests that the version's commit brought into a state."""
    touched = history.journal.touched(version.sequence - 1, version.sequence)
    return {row.id for fate, row in touched if fate.state == state}


# ---------------------------------------------------------------- the files


def _check_files(journal: JournalReader, store: ArtifactStore, report: Report) -> None:
    damaged = store.verify()
    for damage in damaged:
        report.add(f"{damage.kind}/{damage.path.name}", damage.reason)
    gaps = Gaps.of(journal)
    may_lack = _named_by(v for v in journal.versions() if gaps.lacks(v.sequence))
    must = _named_by(v for v in journal.versions() if not gaps.lacks(v.sequence))
    for gap in gaps.all:
        if not store.contains("snapshots", gap.snapshot):
            report.add(f"v{gap.floor}", f"rests on the snapshot {gap.snapshot[:12]}, which is missing")
    for kind, digests in named_files(journal).items():
        stored = list(store.digests(kind))
        digests = digests | _replacing(gaps, kind)
        report.files += len(stored)
        report.orphans += [f"{kind}/{digest}" for digest in stored if digest not in digests]
        for digest in sorted(digests.difference(stored)):
            if digest in may_lack.get(kind, ()) and digest not in must.get(kind, ()):
                continue
            if digest in gaps.replaced or digest in gaps.changes:
                continue
            report.add(f"{kind}/{digest}", "is missing")
    kept = list(store.digests("snapshots"))
    report.files += len(kept)
    report.orphans += [f"snapshots/{digest}" for digest in kept if digest not in {r.digest for r in snapshots(journal)}]
    report.leftovers = [f"{path.parent.name}/{path.name}" for path in _leftovers(store)]


def _leftovers(store: ArtifactStore) -> list[Path]:
    return sorted(path for kind in KINDS for path in (store.root / kind).glob(_LEFTOVERS))


def _check_commits(history: History, store: ArtifactStore, report: Report, progress: Progress) -> None:
    """Each commit's files say the same as its row."""
    swaps = {swap.after_sequence: swap.covariance for swap in history.journal.swaps()}
    in_force = swaps.get(0)
    gaps = Gaps.of(history.journal)
    written = WrittenKeys()
    for version in history.versions[1:]:
        where = f"v{version.sequence}"
        if changed(version) and version.covariance != in_force:
            report.add(where, f"was made on covariance {_short(version.covariance)}, in force was {_short(in_force)}")
        in_force = swaps.get(version.sequence, in_force)
        replaced = gaps.receipt(version.keys) != version.keys or gaps.change(version.delta) != version.delta
        if gaps.lacks(version.sequence) or replaced:
            written.forget()
            continue  # its files may be gone, or hold what is left of it
        try:
            receipt = load_receipt(store, version)
        except (DamagedFileError, FileNotFoundError):
            written.forget()
            continue  # told already, or nothing to compare with
        except Exception as error:
            written.forget()
            report.add(where, f"its receipt cannot be read: {_told(error)}")
            continue
        if receipt.sequence != version.sequence:
            report.add(where, "its receipt is that of another batch")
        if version.kind in ("edit", "repair") and set(receipt.request_ids) != _applied(history, version):
            report.add(where, f"its receipt names the edits {sorted(receipt.request_ids)}, the journal others")
        if version.kind in ("revert", "erase") and not _fated(history, version, "reverted") <= set(receipt.taken_out):
            report.add(where, f"its receipt takes out {sorted(receipt.taken_out)}, the journal reverts others")
        if others := list(written.differing(receipt)):
            report.add(where, f"its receipt keeps other keys of the edits {others[:5]} than those that were written")
        if receipt.delta is not None:
            _compare_norms(where, "change", version.delta_norms, receipt.delta.norms(), report)
        progress("commits", version.sequence, len(history.versions) - 1)


def _check_recomputed(journal: JournalReader, store: ArtifactStore, report: Report) -> None:
    """What is looked up as computed again by a commit is what its receipt has, as far as one is left."""
    gaps = Gaps.of(journal)
    for version in journal.versions():
        keys = gaps.receipt(version.keys)
        if version.kind not in ("revert", "erase") or keys is None or not store.contains("keys", keys):
            continue
        said = journal.recomputed_in(version.sequence)
        if said == {0}:
            continue
        try:
            metadata, _ = read_receipt(store, keys)
            parts = {int(part["sequence"]) for part in json.loads(metadata.get("parts", "[]"))}
            whole = json.loads(metadata.get("whole", "false"))
        except (DamagedFileError, FileNotFoundError, ValueError, KeyError, TypeError):
            continue  # told already
        if said != ({0} if whole else parts):
            report.add(
                f"v{version.sequence}", f"computed the batches {sorted(parts)} again, the journal says {sorted(said)}"
            )


def _compare_norms(
    where: str, what: str, recorded: Mapping[int, float | None], actual: Mapping[int, float], report: Report
) -> None:
    for layer, norm in recorded.items():
        if norm is None or layer not in actual:
            report.add(where, f"layer {layer}: the {what} has no recorded norm, or no matrix to compare it with")
        elif not math.isclose(norm, actual[layer], rel_tol=_NORM_TOLERANCE):
            report.add(where, f"layer {layer}: the {what} has norm {actual[layer]:.9g}, recorded is {norm:.9g}")


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:12]


# ---------------------------------------------------------------- the weights


def _check_weights(
    journal: JournalReader, store: ArtifactStore, base: BaseCheckpoint, report: Report, progress: Progress
) -> None:
    weights: dict[int, Tensor] = {layer: base.map(layer) for layer in edited_layers(journal)}
    versions = journal.versions()
    gaps = Gaps.of(journal)
    floors = {gap.floor: gap for gap in gaps.all}
    for version in versions:
        if gaps.at(version.sequence) is not None:
            continue  # a name, marked as such
        try:
            if version.sequence in floors:
                weights = dict(load_floor(store, floors[version.sequence]).weights)
            else:
                delta: WeightDelta | None = load_delta(store, version)
                weights = advance(weights, delta)
        except DamagedFileError as error:
            last = versions[-1].sequence
            also = "" if last == version.sequence else f", nor can v{version.sequence + 1} to v{last}"
            report.add(f"v{version.sequence}", f"cannot be rebuilt{also}: {error}")
            return
        where = f"v{version.sequence}"
        norms = {layer: weight_norm(weight) for layer, weight in weights.items()}
        for layer, weight in weights.items():
            if not bool(torch.isfinite(weight.float()).all()):
                report.add(where, f"layer {layer}: not all weights are finite")
        _compare_norms(where, "matrix", version.norms, norms, report)
        report.rebuilt.append(Rebuilt(version.sequence, version.digest, weights_digest(weights)))
        progress("weights", version.sequence, versions[-1].sequence)


# ---------------------------------------------------------------- garbage


@dataclass(frozen=True, slots=True)
class Garbage:
    """A file that nothing names."""

    path: Path
    size: int


def collect_garbage(run: Path, *, dry_run: bool = False) -> list[Garbage]:
    """Delete the files of a run that its journal does not name, and half-written ones; returns what they were.

    Whatever a commit, a swap, a refresh or a recorded covariance names stays. So do the newest snapshots, as many as
    ``snapshots.keep`` of the configuration says, and any file that is not named after a digest.

    Raises:
        UserError: the run is being written: what it has stored may be named a moment later; or it is not sound: what
            looks like garbage may be what a damaged row no longer names.
    """
    path = run / JOURNAL_FILE
    lock = WriterLock(path)
    try:
        report = verify(run, None)
        if not report.sound:
            first = report.problems[0]
            raise UserError(
                f"gc: the run is not sound ({len(report.problems)} problems; {first.where}: {first.what}); nothing was "
                "deleted. `errata verify` tells them all"
            )
        with Journal.open(path, read_only=True) as journal:
            store = open_store(run)
            garbage = [Garbage(file, file.stat().st_size) for file in _unnamed(journal, store)]
        if not dry_run:
            for item in garbage:
                name = item.path.name.split(".", 1)[0]
                if DIGEST.fullmatch(name):
                    store.discard(item.path.parent.name, name)  # wherever it is kept
                else:
                    item.path.unlink(missing_ok=True)
        return garbage
    finally:
        lock.release()


def _unnamed(journal: JournalReader, store: ArtifactStore) -> Iterator[Path]:
    gaps = Gaps.of(journal)
    for kind, needed in named_files(journal).items():
        needed = needed | _replacing(gaps, kind)
        for digest in store.digests(kind):
            if digest not in needed:
                yield store.get(kind, digest, verify=False)
    for digest in superfluous(journal, store, _kept_snapshots(journal)):
        yield store.get("snapshots", digest, verify=False)
    yield from _leftovers(store)


def _kept_snapshots(journal: JournalReader) -> int:
    section = journal.meta.config.get("snapshots")
    return int(section.get("keep", _KEPT)) if isinstance(section, Mapping) else _KEPT
