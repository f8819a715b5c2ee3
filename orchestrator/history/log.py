"""What a journal tells: which facts every version holds, what each commit did, how two versions differ.

Everything here reads; values come out, and the command line turns them into text or JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from errata.editing.errors import UserError
from errata.editing.texts import spelled_out
from errata.orchestrator.history.events import EventEntry, event_entries
from errata.orchestrator.journal import JOURNAL_FILE
from errata.orchestrator.journal.reading import JournalReader
from errata.orchestrator.journal.rows import Fate, RefreshRow, RequestRow, RequestState, Version

RUNS: Final = Path("runs")


@dataclass(frozen=True, slots=True)
class Fact:
    """One request in a few words."""

    id: str
    subject: str
    prompt: str
    """With the subject filled in."""
    target: str
    state: RequestState
    """What it is now, whatever it was at the version in question."""
    fact_key: str | None = None
    ended_in: int | None = None
    superseded_by: str | None = None
    outcome: str | None = None
    """``landed`` or ``weak``, where somebody looked when it was written."""

    @classmethod
    def of(cls, row: RequestRow) -> Fact:
        """Also of a record that never was a valid request: what it lacks is empty."""
        text = {name: str(row.payload.get(name, "")) for name in ("subject", "prompt", "target_new")}
        return cls(
            id=row.id,
            subject=text["subject"],
            prompt=spelled_out(text["prompt"], text["subject"]),
            target=text["target_new"],
            state=row.state,
            fact_key=row.fact_key,
            ended_in=row.ended_in,
            superseded_by=row.superseded_by,
            outcome=row.outcome,
        )


@dataclass(frozen=True, slots=True)
class Ending:
    """A fact that a commit ended, or refused, and why."""

    fact: Fact
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class CommitEntry:
    """One commit, with what it did to every request it touched."""

    sequence: int
    version: str
    parent: str | None
    kind: str
    at: datetime | None
    edits: int
    applied: tuple[Fact, ...]
    """For a revert: facts that hold again because what superseded them is gone."""
    superseded: tuple[Ending, ...]
    reverted: tuple[Ending, ...]
    rejected: tuple[Ending, ...]
    norms: Mapping[int, float | None]
    delta_norms: Mapping[int, float | None]
    covariance: str | None
    seconds: float
    entry: Literal["commit"] = "commit"


@dataclass(frozen=True, slots=True)
class SwapEntry:
    """Another covariance came into force: for every commit after ``after_sequence``."""

    after_sequence: int
    covariance: str
    edits: int
    at: datetime
    tokens: int | None
    from_version: str | None
    entry: Literal["swap"] = "swap"


@dataclass(frozen=True, slots=True)
class RefreshEntry:
    """A re-estimate was triggered, and what became of it."""

    triggered_at: int
    after_sequence: int
    """The commit that triggered it."""
    from_version: str
    state: str
    reason: str | None
    covariance: str | None
    seconds: float | None
    at: datetime
    entry: Literal["refresh"] = "refresh"


LogEntry = CommitEntry | SwapEntry | RefreshEntry | EventEntry


@dataclass(frozen=True, slots=True)
class RequestStory:
    """One request and everything that happened to it."""

    fact: Fact
    request: Mapping[str, Any]
    """As it was submitted, provenance included."""
    accepted_at: datetime
    fates: tuple[Fate, ...]
    batch: tuple[Fact, ...]
    """All requests of the batch that settled it, itself included; empty while it waits."""
    commit: CommitEntry | None
    """The commit that wrote or refused it."""
    result: Mapping[str, Any] | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class VersionStory:
    """A version: its commit, and every fact it holds. The base has no commit."""

    version: Version
    commit: CommitEntry | None
    facts: tuple[Fact, ...]
    """Or those written last, where fewer were asked for."""
    holds: int = 0
    """How many there are."""


@dataclass(frozen=True, slots=True)
class VersionDiff:
    """From one version to another, in that direction."""

    first: Version
    second: Version
    gained: tuple[Fact, ...]
    lost: tuple[Fact, ...]
    superseded: tuple[tuple[Fact, Fact], ...]
    """(what the first holds, what the second holds instead), of one fact each."""
    norms: Mapping[int, tuple[float | None, float | None]]
    """Frobenius norm of every edited matrix at both; None where the journal does not know it (the base)."""
    covariances: tuple[SwapEntry, ...]
    """Swaps that count for the commits in between, oldest first."""
    change: Mapping[int, float] = field(default_factory=dict)
    """Frobenius norm of the difference of the matrices, where the deltas were at hand."""


def find_run(given: str | Path | None = None, *, runs: Path = RUNS) -> Path:
    """The directory of a run: as given, by its name under ``runs``, or the one written to last.

    Raises:
        UserError: no run is there.
    """
    if given is not None:
        if (directory := _run_of(given, runs)) is not None:
            return directory
        raise UserError(f"there is no run in {str(given)!r}: want a directory that holds {JOURNAL_FILE}")
    candidates = [path.parent for path in runs.glob(f"*/{JOURNAL_FILE}")]
    if not candidates:
        raise UserError(f"there is no run under {str(runs)!r}; name the directory of one")
    return max(candidates, key=_last_written)


def names_run(word: str, *, runs: Path = RUNS) -> bool:
    """Whether a word is the directory of a run, its journal, or its name under ``runs``."""
    return _run_of(word, runs) is not None


def _run_of(given: str | Path, runs: Path) -> Path | None:
    for candidate in (Path(given), runs / given):
        directory = candidate.parent if candidate.name == JOURNAL_FILE else candidate
        if (directory / JOURNAL_FILE).is_file():
            return directory
    return None


def _last_written(directory: Path) -> float:
    # a reader touches the lock and the shared memory, and may leave an empty log; only a writer touches these
    log = directory / f"{JOURNAL_FILE}-wal"
    written = [directory / JOURNAL_FILE, *([log] if log.is_file() and log.stat().st_size else [])]
    return max(path.stat().st_mtime for path in written)


class History:
    """A journal's rows brought together as they stand; make a new one to see what has been written since.

    Every question reads what its answer needs and no more; ``versions``, ``rows`` and ``fates`` read everything, for
    those who check everything.
    """

    def __init__(self, journal: JournalReader) -> None:
        self.journal = journal
        self.newest = journal.head().sequence
        """Of a run that goes on meanwhile, nothing newer than this is told."""

    @cached_property
    def versions(self) -> list[Version]:
        """The base and every commit."""
        return [self.journal.base(), *self.journal.versions_between(0, self.newest)]

    @cached_property
    def rows(self) -> dict[str, RequestRow]:
        """Every request by its id."""
        return {row.id: row for row in self.journal.requests()}

    @cached_property
    def fates(self) -> dict[str, list[Fate]]:
        """Everything that happened to every request."""
        return {name: self._fates(name) for name in self.rows}

    def _fates(self, name: str) -> list[Fate]:
        return [f for f in self.journal.fates(name) if f.sequence is None or f.sequence <= self.newest]

    # ---------------------------------------------------------------- what holds when

    def held(self, sequence: int) -> dict[str, RequestRow]:
        """Requests whose fact is in the weights at the version after batch ``sequence``, in order of acceptance."""
        return {row.id: row for row in self.journal.held(sequence)}

    def commit(self, sequence: int) -> CommitEntry:
        """One commit; ``sequence`` is that of a version other than the base."""
        return _commit(self.journal.version(sequence), self.journal.touched(sequence - 1, sequence))

    def log(self, limit: int | None = None) -> list[LogEntry]:
        """Newest first: commits, and between them refreshes, covariances swapped in, the guard's doings, publications.

        Args:
            limit: at most this many commits; what happened between and after them stays with them.
        """
        first = 0 if limit is None else max(0, self.newest + 1 - limit)
        versions = self.journal.versions_between(first - 1, self.newest)
        if first == 0:
            versions = [self.journal.base(), *versions]
        touched: dict[int, list[tuple[Fate, RequestRow]]] = {}
        for fate, row in self.journal.touched(first - 1, self.newest):
            assert fate.sequence is not None
            touched.setdefault(fate.sequence, []).append((fate, row))
        beside: dict[int, list[LogEntry]] = {}
        # what followed a commit stands above it: its refresh is triggered, then a swap takes effect
        for entries in (
            event_entries(self.journal, versions),
            self.swaps(),
            [self._refresh(row) for row in self.journal.refreshes()],
        ):
            for entry in entries:
                beside.setdefault(entry.after_sequence, []).append(entry)
        shown: list[LogEntry] = []
        for version in reversed(versions):
            shown += beside.get(version.sequence, [])
            if version.kind != "base":
                shown.append(_commit(version, touched.get(version.sequence, ())))
        return shown

    def swaps(self) -> list[SwapEntry]:
        """Covariances in the order in which they came into force, with what is known of their making."""
        made = {row.digest: row for row in self.journal.covariances()}
        return [
            SwapEntry(
                after_sequence=swap.after_sequence,
                covariance=swap.covariance,
                edits=swap.edits,
                at=swap.at,
                tokens=made[swap.covariance].tokens if swap.covariance in made else None,
                from_version=made[swap.covariance].from_version if swap.covariance in made else None,
            )
            for swap in self.journal.swaps()
        ]

    # ---------------------------------------------------------------- show and diff

    def show(self, name: str, facts: int | None = None) -> RequestStory | VersionStory:
        """A request by its id, a version by its name, or either by a prefix of at least four characters.

        Args:
            facts: of a version, bring at most so many of the facts that it holds; their number is told all the same.

        Raises:
            UserError: nothing has that name, or several things have.
        """
        if self.journal.request(name) is not None:
            return self.request(name)
        if name == "head" or (name[:1] == "v" and name[1:].isdecimal()):
            return self.version(self.journal.find_version(name), facts)
        requests = [row.id for row in self.journal.requests_starting(name)] if len(name) >= 4 else []
        versions = [v.digest for v in self.journal.versions_starting(name)] if len(name) >= 4 else []
        if len(requests) + len(versions) > 1:
            several = [*requests, *(digest[:12] for digest in versions)]
            shown = ", ".join(several[:5]) + (", ..." if len(several) > 5 else "")
            more = "20 or more" if len(several) >= 20 else str(len(several))
            raise UserError(f"{more} edits and versions start with {name!r}: {shown}; give more of it")
        if requests:
            return self.request(requests[0])
        if versions:
            return self.version(self.journal.find_version(versions[0]), facts)
        raise UserError(
            f"there is neither an edit nor a version {name!r}: give an edit's id, head, v<number> or "
            "four or more digits of a version's digest"
        )

    def request(self, name: str) -> RequestStory:
        """Everything about one request; ``name`` is its whole id."""
        row = self.journal.request(name)
        if row is None:
            raise UserError(f"there is no edit {name!r}")
        fates = self._fates(name)
        tried = next((f.sequence for f in fates if f.sequence is not None), None)
        commit = None if tried is None else self.commit(tried)
        members = () if tried is None else self.journal.version(tried).request_ids
        batch = {other.id: other for other in self.journal.requests_named(members)}
        return RequestStory(
            fact=Fact.of(row),
            request=row.payload,
            accepted_at=row.accepted_at,
            fates=tuple(fates),
            batch=tuple(Fact.of(batch[other]) for other in members if other in batch),
            commit=commit,
            result=row.result,
            reason=row.reason,
        )

    def version(self, version: Version, facts: int | None = None) -> VersionStory:
        """Everything about one version, with at most so many of its facts."""
        commit = None if version.kind == "base" else self.commit(version.sequence)
        held = self.journal.held(version.sequence, facts)
        total = len(held) if facts is None else self.journal.held_count(version.sequence)
        return VersionStory(version, commit, _facts(held), total)

    def diff(self, first: Version, second: Version, change: Mapping[int, float] | None = None) -> VersionDiff:
        """What one has to know when going from the first version to the second, older or newer."""
        before, after = self.held(first.sequence), self.held(second.sequence)
        old = {row.fact_key: row for row in before.values()}
        new = {row.fact_key: row for row in after.values()}
        layers = sorted({*first.norms, *second.norms})
        low, high = sorted((first.sequence, second.sequence))
        return VersionDiff(
            first=first,
            second=second,
            gained=_facts(row for row in after.values() if row.fact_key not in old),
            lost=_facts(row for row in before.values() if row.fact_key not in new),
            superseded=tuple(
                (Fact.of(row), Fact.of(new[key])) for key, row in old.items() if key in new and new[key].id != row.id
            ),
            norms={layer: (first.norms.get(layer), second.norms.get(layer)) for layer in layers},
            covariances=tuple(swap for swap in self.swaps() if low <= swap.after_sequence < high),
            change=dict(change or {}),
        )

    # ---------------------------------------------------------------- inside

    def _refresh(self, row: RefreshRow) -> RefreshEntry:
        reached = self.journal.first_reaching(row.triggered_at)
        return RefreshEntry(
            triggered_at=row.triggered_at,
            after_sequence=self.newest if reached is None else reached,
            from_version=row.from_version,
            state=row.state,
            reason=row.reason,
            covariance=row.covariance,
            seconds=row.seconds,
            at=row.at,
        )


def _commit(version: Version, here: Sequence[tuple[Fate, RequestRow]]) -> CommitEntry:
    def endings(state: RequestState) -> tuple[Ending, ...]:
        return tuple(Ending(Fact.of(row), fate.reason) for fate, row in here if fate.state == state)

    return CommitEntry(
        sequence=version.sequence,
        version=version.digest,
        parent=version.parent,
        kind=version.kind,
        at=version.at,
        edits=version.edits,
        applied=tuple(Fact.of(row) for fate, row in here if fate.state == "applied"),
        superseded=endings("superseded"),
        reverted=endings("reverted"),
        rejected=endings("rejected"),
        norms=version.norms,
        delta_norms=version.delta_norms,
        covariance=version.covariance,
        seconds=version.seconds,
    )


def _facts(rows: Iterable[RequestRow]) -> tuple[Fact, ...]:
    return tuple(Fact.of(row) for row in rows)
