"""``errata erase``: edits leave the weights, and then every trace of their text and vectors leaves the run's directory.

In this order, so that a process may die anywhere and the next call goes on: an event says what is to be erased; waiting
edits are withdrawn and those in the weights reverted, in a commit of kind ``erase``; a snapshot of what is left becomes
the floor of all that follows (`errata.orchestrator.history.gaps`), and versions that held the facts are marked
``unprovable``; files that held their vectors go; the memory, and whatever else in the directory held their text, is
rewritten; last the journal's rows are emptied and its file is made anew.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from errata.editing.errors import UserError
from errata.editing.request import EditRequest
from errata.orchestrator.history.dropping import Dropped, drop, droppable, store_cut
from errata.orchestrator.history.gaps import FLOOR, Gap, Gaps
from errata.orchestrator.history.receipts import load_receipt, read_receipt
from errata.orchestrator.history.scrubbing import Needles, Scrubbed, scrub
from errata.orchestrator.journal.artifacts import ArtifactStore
from errata.orchestrator.journal.erasing import erased_id
from errata.orchestrator.journal.fail_points import reach
from errata.orchestrator.journal.reading import JournalReader
from errata.orchestrator.journal.rows import EventRow, RequestRow, Version
from errata.orchestrator.report import render_report
from errata.orchestrator.report.summary import read_facts, read_summary
from errata.orchestrator.run.offline import OfflineRun
from errata.orchestrator.run.reverting import contributions
from errata.retrieval.kept import forget_saved

_NAMED: Final = ("request_ids", "superseded", "taken_out", "left")
ERASE: Final = "erase"
"""Kind of the journal's events, and of the commit."""


@dataclass(frozen=True)
class ErasePlan:
    """What an erasure takes out."""

    rows: tuple[RequestRow, ...]
    """The named edits and the older values of their facts, in the order of acceptance."""
    reverts: tuple[str, ...]
    """Those that are in the weights."""
    withdraws: tuple[str, ...]
    """Those that wait."""
    first: int | None
    """The first version that held one of them; None where none ever was in the weights."""
    others: tuple[str, ...]
    """Newer edits of the same facts, which stay: they may hold the same words."""


def plan_erasure(journal: JournalReader, names: Sequence[str]) -> ErasePlan:
    """Find out what an erasure takes out; nothing is changed.

    Raises:
        UserError: an edit is unknown, was erased before, or was overwritten by one that is not named.
    """
    asked = tuple(dict.fromkeys(names))
    if not asked:
        raise UserError("erase: name at least one edit")
    named = {row.id: row for row in journal.requests_named(asked)}
    for name in asked:
        if name not in named:
            raise UserError(f"erase: there is no edit {name!r} in this run; `errata log` lists them")
        if named[name].erased_at is not None:
            raise UserError(f"erase: edit {name!r} was erased before")
    newest: dict[str, int] = {}
    for row in named.values():
        if row.fact_key is not None:
            newest[row.fact_key] = max(row.seq, newest.get(row.fact_key, 0))
    same = journal.requests_of_facts(newest)
    rows = {row.seq: row for row in named.values()}
    rows |= {row.seq: row for row in same if row.fact_key is not None and row.seq <= newest[row.fact_key]}
    for row in rows.values():
        holder = row.superseded_by
        while holder is not None and (over := journal.request(holder)) is not None and over.seq not in rows:
            if over.state == "applied":
                raise UserError(
                    f"erase: edit {over.id!r} has overwritten {row.id!r}, whose change is in the weights underneath; "
                    f"name {over.id!r} as well"
                )
            holder = over.superseded_by
    ordered = tuple(rows[seq] for seq in sorted(rows))
    wrote = [fate for row in ordered for fate in journal.fates(row.id) if fate.state == "applied"]
    return ErasePlan(
        ordered,
        tuple(row.id for row in ordered if row.state == "applied"),
        tuple(row.id for row in ordered if row.state == "accepted"),
        min((fate.sequence for fate in wrote if fate.sequence is not None), default=None),
        tuple(row.id for row in same if row.seq not in rows and row.erased_at is None),
    )


def files_of(journal: JournalReader, store: ArtifactStore, plan: ErasePlan) -> list[Dropped]:
    """Stored files that would go, as far as it is known before the revert."""
    if plan.first is None:
        return []
    head = journal.head().sequence
    gap = Gap(plan.first, head, "", "", "unprovable", "")
    return droppable(journal, store, Gaps.of(journal).with_more([gap]))


def erase(run: OfflineRun, directory: Path, names: Sequence[str], *, reason: str = "") -> tuple[ErasePlan, Scrubbed]:
    """Erase edits; see the module.

    Raises:
        UserError: see `plan_erasure`, or the revert is refused; nothing has changed then.
    """
    plan = plan_erasure(run.journal, names)
    if plan.reverts:
        run.check_revert(plan.reverts)
    texts = Needles(_texts(run.journal, plan.rows, []), [row.id for row in plan.rows])
    why = "" if texts.within(reason.encode()) else reason  # the reason stays: it must not tell what goes
    data = {"what": "begun", "numbers": [row.seq for row in plan.rows], "reason": why}
    number = run.journal.record_event(ERASE, data)
    reach("after_erase_begun")
    return plan, _carry_out(run, directory, number, data)


def open_erasures(journal: JournalReader) -> list[EventRow]:
    """Erasures that were begun and have not ended."""
    events = journal.events(ERASE)
    done = {event.data.get("begun") for event in events if event.data["what"] == "done"}
    return [event for event in events if event.data["what"] == "begun" and event.number not in done]


def finish_erasures(run: OfflineRun, directory: Path) -> list[Scrubbed]:
    """Go on with erasures that were cut short."""
    return [_carry_out(run, directory, event.number, event.data) for event in open_erasures(run.journal)]


# ---------------------------------------------------------------- the steps


def _carry_out(run: OfflineRun, directory: Path, number: int, data: Any) -> Scrubbed:
    journal, store = run.journal, run.store
    rows = journal.requests_by_number(data["numbers"])
    left = [row for row in rows if row.erased_at is None]
    scrubbed = Scrubbed()
    if left:
        for row in left:
            if row.state == "accepted":
                journal.withdraw(row.id, "erased")
        applied = [row.id for row in left if row.state == "applied"]
        if applied:
            run.revert(applied, reason=data["reason"], kind=ERASE)
        reach("after_erase_reverted")
        _open_gap(run, left, number)
        names = {row.id: erased_id(row.seq) for row in left}
        gaps = Gaps.of(journal)
        drop(store, droppable(journal, store, gaps))
        statements = run.statements(left)
        forget_saved(directory / "memory", [row.seq for row in left], statements)
        reach("after_memory_forgotten")
        texts = _texts(journal, left, statements)
        scrubbed = scrub(directory, Needles(texts, list(names)), _render)
        reach("after_scrubbed")
        journal.erase_rows([row.seq for row in left], number, texts, "erased")
    journal.shred()
    journal.record_event(ERASE, {"what": "done", "begun": number})
    return scrubbed


def _open_gap(run: OfflineRun, rows: Sequence[RequestRow], number: int) -> None:
    """Mark the versions that held the facts, and let what follows rest on a snapshot without them."""
    journal, store = run.journal, run.store
    touched = sorted({fate.sequence for row in rows for fate in journal.fates(row.id) if fate.sequence is not None})
    wrote = [
        fate.sequence
        for row in rows
        for fate in journal.fates(row.id)
        if fate.state == "applied" and fate.sequence is not None
    ]
    if not wrote or any(event.data.get("erasure") == number for event in journal.events(FLOOR)):
        return
    first, head = min(wrote), journal.head()
    digest = run.snapshot()[1]
    names = {row.id: erased_id(row.seq) for row in rows}
    replaced: dict[str, str | None] = {}
    affected: list[Version] = []
    gaps = Gaps.of(journal)
    for sequence in sorted({*touched, *journal.reverts(first, head.sequence + 1), head.sequence}):
        keys = gaps.receipt(journal.version(sequence).keys)
        if keys is None or not store.contains("keys", keys):
            continue
        metadata, _ = read_receipt(store, keys)
        if {name for key in _NAMED for name in json.loads(metadata.get(key, "[]"))} & names.keys():
            replaced[keys] = store_cut(store, keys, names)
            affected.append(journal.version(sequence))
    deltas = _contributions(journal, store, gaps, affected)
    reach("after_receipts_cut")
    reason = f"a fact that it held was erased: v{head.sequence} is kept as a snapshot"
    gap = Gap(first, head.sequence, head.digest, digest, "unprovable", reason, replaced, deltas)
    data = {**gap.plain(), "erasure": number}
    journal.open_gap(FLOOR, data, range(first, head.sequence), "unprovable", reason)


def _contributions(
    journal: JournalReader, store: ArtifactStore, gaps: Gaps, affected: Sequence[Version]
) -> dict[str, str | None]:
    """What stands for the changes that go: what their other edits contribute to the weights now, so that those can be
    reverted later.

    Args:
        affected: commits whose receipts name what goes.
    """
    if any(load_receipt(store, version, gaps).whole for version in affected if version.kind != "edit"):
        # of an editor whose updates do not commute: a revert computes everything again from the first such batch
        return {gaps.change(v.delta): None for v in affected if gaps.change(v.delta)}  # type: ignore[misc]
    batches = {version.sequence for version in affected if version.kind in ("edit", "repair")}
    for version in affected:
        batches |= {part.sequence for part in load_receipt(store, version, gaps).parts}
    batches = {number for number in batches if gaps.change(journal.version(number).delta) is not None}
    now = contributions(journal, store, sorted(batches)) if batches else {}
    deltas: dict[str, str | None] = {}
    for version in affected:
        if version.kind not in ("edit", "repair") and (old := gaps.change(version.delta)):
            deltas[old] = None
    for sequence, change in now.items():
        old = gaps.change(journal.version(sequence).delta)
        width = next(iter(c.right.shape[0] for c in change.layers.values() if c.right is not None), 0)
        if old is not None:
            new = store.put_file("deltas", change.save) if width else None
            deltas |= {old: new} if new != old else {}
    return deltas


def _texts(journal: JournalReader, rows: Sequence[RequestRow], statements: Sequence[str]) -> list[str]:
    """Texts that name the facts, without those that other requests hold as well."""
    texts = set(statements)
    for row in rows:
        try:
            request: EditRequest = row.request
        except Exception:  # a record that never was a valid request: whatever texts it has
            texts |= {value for value in row.payload.values() if isinstance(value, str) and len(value) > 3}
            continue
        texts |= {request.text, request.statement, request.subject, *request.paraphrases}
        texts |= {probe.prompt for probe in request.neighborhood}
        texts |= {probe.prompt for probe in request.portability}
        if request.provenance is not None:
            texts |= {text for text in (request.provenance.why, request.provenance.who) if text}
    wanted = {text for text in texts if text.strip()}
    return sorted(wanted - journal.texts_elsewhere(wanted, {row.seq for row in rows}))


def _render(directory: Path) -> str:
    summary = read_summary(directory / "summary.json")
    facts = [fact.model_dump(mode="json") for fact in read_facts(directory / "facts.jsonl")]
    resolved = directory / "resolved.yaml"
    text = resolved.read_text(encoding="utf-8") if resolved.is_file() else ""
    return render_report(summary.model_dump(mode="json"), facts, text)


def in_stream(path: str, rows: Sequence[RequestRow]) -> list[str]:
    """Lines of a run's own stream file that hold one of the edits still: a resumed run would take it in again."""
    file = Path(path).expanduser()
    if not path or not file.is_file():
        return []
    needles = Needles([], [row.id for row in rows])
    subjects = Needles([str(row.payload.get("subject")) for row in rows if row.payload.get("subject")], [])
    lines = file.read_bytes().split(b"\n")
    return [f"{path}:{number}" for number, line in enumerate(lines, 1) if needles.within(line) or subjects.within(line)]
