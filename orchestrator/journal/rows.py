"""The rows of the journal as values, and the digest that names a version."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

from errata.editing.digest import digest_json
from errata.editing.request import EditRequest

RequestState = Literal["accepted", "applied", "rejected", "superseded", "reverted"]
ShownState = Literal["waiting", "applied", "rejected", "superseded", "reverted"]
BatchKind = Literal["edit", "revert", "repair", "module", "erase"]
Outcome = Literal["landed", "weak"]
AttemptOutcome = Literal["committed", "passed", "failed", "died"]
MarkState = Literal["compacted", "unprovable"]
RefreshState = Literal["started", "done", "refused", "swapped"]

STATES: Final[tuple[RequestState, ...]] = ("accepted", "applied", "rejected", "superseded", "reverted")
WAITING: Final = "waiting"
"""What everybody reads of a request that the journal calls ``accepted``."""


def shown_state(state: str) -> str:
    """The word for a state that people and clients read: ``waiting``, ``applied``, ``superseded``, ``reverted`` or
    ``rejected``. The journal's own words stay as they are."""
    return WAITING if state == "accepted" else state


def stored_state(shown: ShownState) -> RequestState:
    """The journal's word for a state; the inverse of `shown_state`."""
    return "accepted" if shown == WAITING else shown


@dataclass(frozen=True, slots=True)
class VersionParts:
    """What a commit adds to a version beside its weight delta, by digest. See docs/decisions/0009-commit-format.md."""

    modules: tuple[str, ...] = ()
    """Modules that it installs, in their order."""
    removed: tuple[str, ...] = ()
    """Modules of earlier commits that it takes out."""
    pieces: str | None = None
    """File with the low-rank pieces of its edits, for the regime ``retrieved``."""
    router: str | None = None
    """Router that takes force with it; None where the one of its parent stays."""

    def lines(self) -> Iterator[str]:
        """What enters the version's digest, one line each; nothing for a commit that has no parts."""
        yield from (f"module:{digest}" for digest in self.modules)
        yield from (f"removed:{digest}" for digest in self.removed)
        for name, digest in (("pieces", self.pieces), ("router", self.router)):
            if digest is not None:
                yield f"{name}:{digest}"

    def dump(self) -> dict[str, Any]:
        """As a column of the journal holds it: empty parts left out."""
        return {name: value for name, value in asdict(self).items() if value}

    @classmethod
    def load(cls, plain: Mapping[str, Any]) -> VersionParts:
        """The inverse of `dump`."""
        lists = {name: tuple(plain.get(name, ())) for name in ("modules", "removed")}
        return cls(**lists, pieces=plain.get("pieces"), router=plain.get("router"))


class VersionHash:
    """Running digest of a version: sha256 over the base's digest and, commit by commit, the digests of its delta and
    its parts."""

    def __init__(self, base_digest: str, delta_digests: Iterable[str] = ()) -> None:
        self._sha = hashlib.sha256(f"errata version 1\n{base_digest}\n".encode())
        for digest in delta_digests:
            self._sha.update(f"{digest}\n".encode())

    def then(self, delta_digest: str | None, parts: VersionParts | None = None) -> VersionHash:
        """The version after one more commit; after one with neither delta nor parts, the same version."""
        other = VersionHash.__new__(VersionHash)
        other._sha = self._sha.copy()
        other.add(delta_digest, parts)
        return other

    def add(self, delta_digest: str | None, parts: VersionParts | None = None) -> None:
        """Go on to the version after one more commit."""
        if delta_digest is not None:
            self._sha.update(f"{delta_digest}\n".encode())
        for line in () if parts is None else parts.lines():
            self._sha.update(f"{line}\n".encode())

    @property
    def digest(self) -> str:
        return self._sha.hexdigest()


def version_digest(base_digest: str, delta_digests: Iterable[str] = ()) -> str:
    """Name of a version, 64 hexadecimal digits; with no deltas the name of ``v0``, the base."""
    return VersionHash(base_digest, delta_digests).digest


@dataclass(frozen=True, slots=True)
class JournalMeta:
    """What a run is: written once, when the journal is made."""

    run_id: str
    base_digest: str
    editor_digest: str
    """Digest of everything about the editor that a replay depends on."""
    config: Mapping[str, Any]
    errata_version: str = ""
    created_at: datetime | None = None
    """Set by the journal."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """Answer to one submitted request."""

    id: str
    seq: int | None
    """Order of acceptance, from 1; None if the request was refused."""
    duplicate: bool = False
    """The journal already had it; whatever happened to it then still holds."""
    refused: str | None = None
    invalid: bool = False
    """Refused for what it is, and not for another of the same id."""


@dataclass(frozen=True, slots=True)
class RequestRow:
    """One request and what became of it."""

    seq: int
    id: str
    state: RequestState
    payload: Mapping[str, Any]
    fact_key: str | None
    accepted_at: datetime
    reason: str | None = None
    applied_in: int | None = None
    """Batch that wrote it into the weights."""
    ended_in: int | None = None
    """Batch that rejected, superseded or reverted it."""
    superseded_by: str | None = None
    result: Mapping[str, Any] | None = None
    """The editor's figures: loss, steps, converged, clamped, and of a target value the norms of delta and state."""
    outcome: Outcome | None = None
    """Of an applied request: whether the model says it (``landed``) or not yet (``weak``); None where nobody asked."""
    figures: Mapping[str, Any] | None = None
    """What the closed loop measured: share of the wanted change reached, cosine, P(target), argmax, contexts."""
    event_at: datetime | None = None
    """When the fact became true, where the request says so."""
    erased_at: datetime | None = None
    """When its content was erased; id and payload are then those of a tombstone."""

    @property
    def true_at(self) -> datetime:
        """When the fact became true, as far as it is known."""
        return self.event_at or self.accepted_at

    def newer_than(self, other: RequestRow) -> bool:
        """Whether this one holds, of two requests about one fact: by event time, where either tells it, else by
        arrival."""
        if self.event_at is None and other.event_at is None:
            return self.seq > other.seq
        return (self.true_at, self.seq) > (other.true_at, other.seq)

    @property
    def request(self) -> EditRequest:
        """The request itself; raises for a record that never was a valid one."""
        return EditRequest.model_validate(dict(self.payload)).named(self.fact_key)


@dataclass(frozen=True, slots=True)
class Fate:
    """One step in the life of a request."""

    state: RequestState
    sequence: int | None
    reason: str | None
    at: datetime


@dataclass(frozen=True, slots=True)
class RequestOutcome:
    """What the editor says of one request of a batch."""

    id: str
    applied: bool
    reason: str | None = None
    """Why it was not applied."""
    result: Mapping[str, Any] = field(default_factory=dict)
    outcome: Outcome | None = None
    """Of an applied request, where the closed loop has asked: ``landed`` or ``weak``."""
    figures: Mapping[str, Any] | None = None
    """What the closed loop measured, of an applied or of a refused request."""


@dataclass(frozen=True, slots=True)
class CommitData:
    """All that makes a version exist. The files its digests name are stored before it is written."""

    sequence: int
    outcomes: tuple[RequestOutcome, ...]
    delta: str | None
    """Digest of the delta's file; None if no request could be applied: the version then stays what it was."""
    keys: str | None = None
    """Digest of the file with the batch's keys and target values, from which it can be recomputed."""
    contexts: str | None = None
    """Digest of the context prefixes."""
    covariance: str | None = None
    norms: Mapping[int, float] = field(default_factory=dict)
    """Frobenius norm of every edited matrix after the commit."""
    delta_norms: Mapping[int, float] = field(default_factory=dict)
    seconds: float = 0.0
    kind: BatchKind = "edit"
    superseded: tuple[tuple[str, str], ...] = ()
    """(older, newer) request ids of one fact within the batch; the older ones were not attempted."""
    reverts: tuple[str, ...] = ()
    """For kind ``revert``: the requests taken out of the weights."""
    restores: tuple[str, ...] = ()
    """For kind ``revert``: superseded requests that hold again now that the newer one is gone. This release writes
    none: a revert takes older values of the fact out of the weights as well."""
    reason: str | None = None
    """For kind ``revert``: why, and who asked."""
    recomputed: tuple[int, ...] = ()
    """Batches that the commit computed again without what it takes out; 0 for everything from a batch on."""
    sweeps: int = 1
    """Times the batch's residuals were written: the first write and its corrections."""
    parts: VersionParts = VersionParts()
    figures: Mapping[str, Any] | None = None
    """Of the batch as a whole: what moved on held probes, seconds of the check."""
    remeasured: tuple[RequestOutcome, ...] = ()
    """For kind ``repair``: requests that stay applied and were written again, with their new outcomes."""


@dataclass(frozen=True, slots=True)
class Version:
    """A commit, as read back; sequence 0 is the base."""

    sequence: int
    digest: str
    parent: str | None
    edits: int
    """Edits applied by all commits up to this one; a revert does not lower it."""
    kind: BatchKind | Literal["base"] = "edit"
    delta: str | None = None
    keys: str | None = None
    contexts: str | None = None
    covariance: str | None = None
    norms: Mapping[int, float | None] = field(default_factory=dict)
    delta_norms: Mapping[int, float | None] = field(default_factory=dict)
    seconds: float = 0.0
    request_ids: tuple[str, ...] = ()
    at: datetime | None = None
    sweeps: int = 1
    parts: VersionParts = VersionParts()
    figures: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class CovarianceRow:
    """An estimate of the keys' second moment that was used or offered."""

    digest: str
    source: Mapping[str, Any]
    tokens: int
    layers: tuple[int, ...]
    from_version: str
    path: str
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class SwapRow:
    """From batch ``after_sequence + 1`` on, this covariance is in force."""

    after_sequence: int
    covariance: str
    edits: int
    at: datetime


@dataclass(frozen=True, slots=True)
class RefreshRow:
    """One re-estimate of the covariance, from the edit that triggered it to its swap."""

    triggered_at: int
    from_version: str
    state: RefreshState
    reason: str | None
    covariance: str | None
    seconds: float | None
    at: datetime


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    number: int
    version: str
    edits: int
    kind: str
    metrics: Mapping[str, Any]
    at: datetime


@dataclass(frozen=True, slots=True)
class EventRow:
    number: int
    kind: str
    data: Mapping[str, Any]
    at: datetime


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One time that the editor was given a batch. Without an end, the process died before it could say so."""

    number: int
    sequence: int
    request_ids: tuple[str, ...]
    started_at: datetime
    ended_at: datetime | None
    outcome: AttemptOutcome | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class MarkRow:
    """A version of which something was dropped: its digest stays as a name."""

    sequence: int
    state: MarkState
    reason: str
    at: datetime


@dataclass(frozen=True, slots=True)
class RetractionRow:
    """A request that is to be taken back, or was."""

    number: int
    id: str
    retracts: str
    """Id of the request."""
    event_at: datetime | None
    accepted_at: datetime
    state: Literal["waiting", "done"]
    sequence: int | None
    """The commit that took it out of the weights, if it was in them."""
    reason: str | None

    @property
    def at(self) -> datetime:
        """When the fact ceased to be true, as far as it is known."""
        return self.event_at or self.accepted_at


@dataclass(frozen=True, slots=True)
class Counts:
    """How many requests are in each state, and how many rows the other tables hold."""

    accepted: int
    """Waiting to be applied."""
    applied: int
    rejected: int
    superseded: int
    reverted: int
    batches: int
    swaps: int
    refreshes: int
    evaluations: int
    landed: int = 0
    weak: int = 0

    @property
    def requests(self) -> int:
        return self.accepted + self.applied + self.rejected + self.superseded + self.reverted


def payload_of(request: EditRequest) -> dict[str, Any]:
    """What the journal keeps of a request, as JSON."""
    return request.model_dump(mode="json", exclude_defaults=True)


def payload_digest(request: EditRequest) -> str:
    """Names what is asked for. Who asked and when may differ when a client tries again."""
    return digest_json({key: value for key, value in payload_of(request).items() if key != "provenance"})


def dump_json(value: Any) -> str:
    """JSON text for a column. A number that is not finite becomes null: JSON has no word for it."""
    return json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_finite(item) for item in value]
    return value
