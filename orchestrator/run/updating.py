"""Streams that update: what is taken back, and what comes late.

Both are settled between batches by the thread that writes, before a batch is planned, so that the journal's order
decides and a crash anywhere changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.fail_points import reach
from errata.orchestrator.journal.rows import RequestRow, RetractionRow, Version

Revert = Callable[[Sequence[str], str], Version]
"""Takes applied requests out of the weights and the memory, in one commit; with a reason."""


def settle_retractions(journal: Journal, revert: Revert) -> Version | None:
    """Carry out the oldest retraction whose request is there; None where none is due.

    What is taken back is the fact as the request told it: the request and the older values of its fact. A newer value,
    by event time, stays. Returns the head where nothing had to leave the weights.
    """
    for due in journal.retractions_due(1):
        return _settle(journal, due, revert)
    return None


def _settle(journal: Journal, due: RetractionRow, revert: Revert) -> Version:
    target = journal.request(due.retracts)
    assert target is not None, "a retraction is due when its request is there"
    same = [target] if target.fact_key is None else journal.requests_of_facts([target.fact_key])
    older = [row for row in same if row.id == target.id or target.newer_than(row)]
    for row in older:
        if row.state == "accepted":
            journal.withdraw(row.id, f"taken back by {due.id}")
    applied = [row.id for row in older if row.state == "applied"]
    version = revert(applied, f"taken back by {due.id}") if applied else None
    reach("after_retraction_reverted")
    said = {
        "superseded": "a newer value holds",
        "rejected": "it had been rejected",
        "reverted": "it had been taken out before",
        "accepted": "it had not been written yet",
    }
    reason = "taken out of the weights" if version is not None else said.get(target.state, "it was not in the weights")
    journal.settle_retraction(due.number, None if version is None else version.sequence, reason)
    return version or journal.head()


def set_late_aside(journal: Journal, rows: Sequence[RequestRow]) -> int:
    """Of requests that wait, let those give way that came late: a newer value of the fact holds, or one that is newer
    was taken back. Only where an event time is told can a request be late.

    Returns:
        How many.
    """
    keys = {row.fact_key for row in rows if row.fact_key is not None}
    held = {row.fact_key: row for row in journal.requests_of_facts(keys, "applied")}
    taken_back: dict[str | None, list[tuple[RequestRow, RetractionRow]]] = {}
    for end in journal.retractions_of(keys):
        told = journal.request(end.retracts)
        if end.state == "done" and told is not None:
            taken_back.setdefault(told.fact_key, []).append((told, end))
    count = 0
    for row in rows:
        if row.fact_key is None:
            continue
        over = held.get(row.fact_key)
        ends = [end for told, end in taken_back.get(row.fact_key, ()) if told.newer_than(row)]
        if over is not None and over.newer_than(row):
            journal.come_late(row.id, over.id)
        elif ends:
            journal.withdraw(row.id, f"late: a newer value was taken back by {ends[-1].id}")
        else:
            continue
        count += 1
    return count
