"""``errata revert``: which requests a revert takes out, what that needs of the history, and its commit.

A revert takes the *fact* back: with a request go the older values of the same fact that it overwrote, which are still
in the weights underneath. So nothing that nobody asked for answers afterwards; whoever wants an older value back
submits it again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from errata.editing.delta import WeightDelta
from errata.editing.errors import DamagedFileError, UserError
from errata.editing.reverting import HistoryItem, RevertOrder, contribution
from errata.editing.session import EditReceipt
from errata.orchestrator.history.gaps import Gaps
from errata.orchestrator.history.modules import ModulesInForce
from errata.orchestrator.history.receipts import (
    commit_data,
    history,
    history_before,
    load_receipt,
    old_keys,
    store_parts,
    store_receipt,
)
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.artifacts import ArtifactStore
from errata.orchestrator.journal.fail_points import reach
from errata.orchestrator.journal.reading import JournalReader
from errata.orchestrator.journal.rows import RequestRow, Version


class RevertingEditor(Protocol):
    """What a revert asks of an editor's client."""

    def revert(self, order: RevertOrder, items: Callable[[], Iterable[HistoryItem]]) -> EditReceipt: ...

    def keys_wanted(self, fact_keys: Sequence[str]) -> tuple[str, ...]: ...

    def norms(self) -> dict[int, float]: ...


@dataclass(frozen=True)
class RevertPlan:
    """What a revert will do."""

    asked: tuple[str, ...]
    order: RevertOrder
    batches: tuple[int, ...]
    """Commits that wrote what leaves, in order."""
    upto: int
    """The last commit whose files computing it needs."""


def plan_revert(
    journal: JournalReader, store: ArtifactStore, request_ids: Sequence[str], *, commutes: bool
) -> RevertPlan:
    """Check what is asked and find out what it touches; nothing is changed.

    Args:
        commutes: whether the editor's updates commute; else everything from the first touched batch on is touched.

    Raises:
        UserError: a request is unknown, or is not in the weights.
        DamagedFileError: a file that the revert needs is damaged.
    """
    asked = tuple(dict.fromkeys(request_ids))
    if not asked:
        raise UserError("revert: name at least one edit")
    named = {row.id: row for row in journal.requests_named(asked)}
    for name in asked:
        _require_applied(name, named.get(name))
    head = journal.head().sequence
    # older values of a fact are requests of the same fact
    same = journal.requests_of_facts({row.fact_key for row in named.values() if row.fact_key is not None})
    leaving = gone(same, also=asked).difference(gone(same))
    taken_out = tuple(row.id for row in same if row.id in leaving)
    wrote = {name: _wrote(journal, name) for name in taken_out}
    batches = sorted({sequence for sequences in wrote.values() for sequence in sequences})
    gaps = Gaps.of(journal)
    for name, sequences in wrote.items():
        _require_kept(journal, gaps, name, sequences)
    if not commutes:
        return _plan_from_first(journal, asked, taken_out, batches, head)
    touched = contributions(journal, store, batches)
    members = journal.requests_named(name for batch in batches for name in journal.version(batch).request_ids)
    members = [row for row in members if row.applied_in is not None and row.erased_at is None]
    facts = journal.requests_of_facts({row.fact_key for row in members if row.fact_key is not None})
    last = {row.id: _wrote(journal, row.id)[-1] for row in members}
    order = RevertOrder(
        sequence=head + 1,
        taken_out=taken_out,
        gone=frozenset(gone(facts, also=asked)),
        touched=touched,
        first=batches[0],
        requests={row.id: row.request for row in members},
        written_last=last,
    )
    return RevertPlan(asked, order, tuple(batches), upto=batches[-1])


def _plan_from_first(
    journal: JournalReader, asked: tuple[str, ...], taken_out: tuple[str, ...], batches: Sequence[int], head: int
) -> RevertPlan:
    """Of an editor whose updates do not commute: everything is computed again from the first batch that ever lost a
    request, so everything is read."""
    rows = {row.id: row for row in journal.requests() if row.applied_in is not None and row.erased_at is None}
    gaps = Gaps.of(journal)
    out_after = gone(rows.values(), also=asked)
    # what was out before a floor is in its snapshot as it should be
    first = min([_batch(rows[name]) for name in out_after if _batch(rows[name]) > gaps.newest] + list(batches))
    for gap in gaps.all:
        first = min(first, gap.first) if gap.lacks(first) else first
    order = RevertOrder(
        sequence=head + 1,
        taken_out=taken_out,
        gone=frozenset(out_after),
        touched={},
        first=first,
        requests={name: row.request for name, row in rows.items() if _batch(row) >= first},
    )
    return RevertPlan(asked, order, tuple(batches), upto=head)


def _require_kept(journal: JournalReader, gaps: Gaps, name: str, sequences: Sequence[int]) -> None:
    """Raise UserError where what computing without an edit needs was dropped."""
    for sequence in sequences:
        compacted = [gap for gap in gaps.all if gap.state == "compacted"]
        lost = next((gap for gap in compacted if gap.lacks(sequence)), None)
        if lost is not None:
            raise UserError(
                f"revert: edit {name!r} was written in v{sequence}, and what computing without it needs is gone "
                f"({lost.reason}); a newer edit of the fact can still overwrite it"
            )


def _wrote(journal: JournalReader, name: str) -> list[int]:
    """Numbers of the commits that wrote a request: its own, and repairs."""
    return [f.sequence for f in journal.fates(name) if f.state == "applied" and f.sequence is not None]


def gone(rows: Iterable[RequestRow], also: Sequence[str] = ()) -> set[str]:
    """Requests that were in the weights once and are not any more: reverted, or overwritten by such a one.

    Args:
        also: take these for reverted as well.
    """
    applied = sorted((row for row in rows if row.applied_in is not None), key=_batch, reverse=True)
    names = {row.id for row in applied if row.state == "reverted"} | set(also)
    for row in applied:  # the one that overwrote comes before the overwritten
        if row.state == "superseded" and row.superseded_by in names:
            names.add(row.id)
    return names


def contributions(journal: JournalReader, store: ArtifactStore, batches: Sequence[int]) -> dict[int, WeightDelta]:
    """What each of some batches contributes to the newest weights: its own delta, or what a revert made of it.

    Raises:
        DamagedFileError, FileNotFoundError: a file of a commit is damaged or gone.
    """
    deltas: dict[int, WeightDelta] = {}
    gaps = Gaps.of(journal)
    for batch in batches:
        delta = load_receipt(store, journal.version(batch), gaps).delta
        if delta is None:
            raise DamagedFileError(f"v{batch} has no delta, yet edits were applied by it")
        deltas[batch] = delta
    again: dict[int, EditReceipt] = {}
    for batch in batches:
        for sequence in journal.recomputed(batch):
            if gaps.lacks(sequence):
                continue  # what it touched was refused before
            if sequence not in again:
                again[sequence] = load_receipt(store, journal.version(sequence), gaps)
            part = contribution(again[sequence], batch)
            if part is not None:
                deltas[batch] = part
                break
    return deltas


def commit_revert(
    journal: Journal,
    store: ArtifactStore,
    editor: RevertingEditor,
    request_ids: Sequence[str],
    *,
    commutes: bool,
    contexts: str | None,
    reason: str = "",
    by: str | None = None,
    kind: Literal["revert", "erase"] = "revert",
) -> tuple[Version, RevertPlan]:
    """Take requests out of the weights, as one commit. The memory is the caller's.

    Args:
        commutes: whether updates of the run's editor commute (`Editor.commutes`).
        contexts: digest of the context prefixes in use.

    Raises:
        UserError: a request is unknown, or is not in the weights; nothing has changed then.
        NumericalError: without it, another edit of a batch cannot be applied; nothing has changed then.
    """
    plan = plan_revert(journal, store, request_ids, commutes=commutes)
    reach("after_revert_planned")

    def items() -> Iterator[HistoryItem]:
        # only the states just before the touched batches are wanted: each from the snapshot that is nearest to it
        if plan.order.touched:
            return history_before(journal, store, plan.batches)
        return history(journal, store, upto=plan.upto, before=plan.order.first)

    asked = plan.order.requests.values()
    wanted = editor.keys_wanted([request.fact_key for request in asked])
    order = (
        replace(plan.order, old_keys=old_keys(journal, store, wanted, before=plan.order.sequence))
        if wanted
        else plan.order
    )
    receipt = editor.revert(order, items)
    reach("after_revert_applied")
    delta, keys = store_receipt(store, receipt)
    parts = store_parts(store, receipt, ModulesInForce(journal, store))
    reach("after_delta_stored")
    why = " ".join(part for part in (reason.strip(), f"(by {by})" if by else "") if part)
    data = commit_data(
        receipt,
        delta=delta,
        keys=keys,
        contexts=contexts,
        norms=editor.norms(),
        reverts=plan.asked,
        reason=why or None,
        parts=parts,
    )
    return journal.commit(replace(data, kind=kind)), plan


def forgotten(rows: Collection[RequestRow], names: Collection[str]) -> list[int]:
    """Numbers under which the memory may hold the facts of some reverted requests, with every older value of theirs.

    Args:
        rows: all requests of the same facts as they are after the revert.
    """
    facts = {row.fact_key for row in rows if row.id in names}
    return [row.seq for row in rows if row.fact_key in facts and row.state in ("reverted", "superseded")]


def _batch(row: RequestRow) -> int:
    assert row.applied_in is not None
    return row.applied_in


def _require_applied(name: str, row: RequestRow | None) -> None:
    if row is None:
        raise UserError(f"revert: there is no edit {name!r} in this run; `errata log` lists them")
    if row.state == "applied":
        return
    why: Mapping[str, str] = {
        "accepted": "it still waits and is not in the weights",
        "rejected": f"it was never applied: {row.reason}",
        "superseded": f"edit {row.superseded_by!r} has overwritten it; revert that one, and both values are out",
        "reverted": (
            "it was withdrawn before it was applied"
            if row.applied_in is None
            else f"v{row.ended_in} has reverted it already; to have the fact back, submit it again under a new id"
        ),
    }
    raise UserError(f"revert: edit {name!r} cannot be reverted: {why[row.state]}")
