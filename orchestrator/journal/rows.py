"""The rows of the journal as values, and the digest that names a version."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

from errata.editing.request import EditRequest

RequestState = Literal["accepted", "applied", "rejected", "superseded", "reverted"]
BatchKind = Literal["edit", "revert"]
RefreshState = Literal["started", "done", "refused", "swapped"]

STATES: Final[tuple[RequestState, ...]] = ("accepted", "applied", "rejected", "superseded", "reverted")


class VersionHash:
    """Running digest of a version: sha256 over the base's digest and the deltas' digests, in their order."""

    def __init__(self, base_digest: str, delta_digests: Iterable[str] = ()) -> None:
        self._sha = hashlib.sha256(f"errata version 1\n{base_digest}\n".encode())
        for digest in delta_digests:
            self._sha.update(f"{digest}\n".encode())

    def then(self, delta_digest: str | None) -> VersionHash:
        """The version after one more delta; after no delta, the same version."""
        other = VersionHash.__new__(VersionHash)
        other._sha = self._sha.copy()
        if delta_digest is not None:
            other._sha.update(f"{delta_digest}\n".encode())
        return other

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
    """The editor's figures: loss, steps, converged, clamped."""

    @property
    def request(self) -> EditRequest:
        """The request itself; raises for a record that never was a valid one."""
        return EditRequest.model_validate(dict(self.payload))


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

    @property
    def requests(self) -> int:
        return self.accepted + self.applied + self.rejected + self.superseded + self.reverted


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
