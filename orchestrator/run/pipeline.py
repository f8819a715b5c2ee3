"""The way of the data from the journal into weights and memory, for a run over a stream and for a service alike.

One writer: the thread that owns a `Pipeline` is the only one that changes versions. Everything else (editor, memory,
evaluations) can be lost at any moment and is rebuilt from the journal.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Final

from errata.actors.parts import EditorPart, EvaluationPart, MemoryPart
from errata.editing.covariance import KeyCovariance
from errata.editing.editors import EditorConfig, make_editor
from errata.editing.errors import UserError
from errata.editing.request import EditBatch, EditRequest
from errata.editing.reverting import HistoryItem
from errata.editing.session import EditReceipt, Snapshot
from errata.editing.verify import in_short
from errata.editing.wording import counted
from errata.orchestrator.config.repair import RepairConfig
from errata.orchestrator.config.run import BatchingConfig, SnapshotConfig
from errata.orchestrator.covariance.refresh import crossed
from errata.orchestrator.covariance.schedule import Refreshing
from errata.orchestrator.history.gaps import Gaps
from errata.orchestrator.history.modules import ModulesInForce
from errata.orchestrator.history.rebuild import weights_digest
from errata.orchestrator.history.receipts import (
    commit_data,
    history,
    load_covariance,
    load_receipt,
    memory_entry,
    old_keys,
    store_parts,
    store_receipt,
    with_old_keys,
)
from errata.orchestrator.history.snapshots import (
    newest_snapshot,
    outlived,
    snapshots,
    spacing,
    store_snapshot,
    worth_of,
)
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.artifacts import ArtifactStore
from errata.orchestrator.journal.fail_points import reach
from errata.orchestrator.journal.rows import RequestRow, Version
from errata.orchestrator.measuring.measurer import Measurement, Measurer
from errata.orchestrator.measuring.timeline import Timeline
from errata.orchestrator.progress import Display
from errata.orchestrator.run.batches import Attempts, Batcher, BatchPlan
from errata.orchestrator.run.repairing import REPAIR, Repairs
from errata.orchestrator.run.reverting import commit_revert, forgotten
from errata.orchestrator.run.updating import set_late_aside, settle_retractions
from errata.orchestrator.tracking import names
from errata.orchestrator.tracking.tracker import NullTracker, Tracker
from errata.retrieval.memory import MemoryEntry
from errata.retrieval.statements import StatementConfig

logger = logging.getLogger(__name__)

ASKED: Final = "asked"
"""Kind of an evaluation that somebody asked for."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What editor and memory hold at one moment, as they themselves have it."""

    version: Version
    weights: str
    """Digest of the edited matrices, as `errata verify` prints it of every version that it rebuilds."""
    memory: str
    """Digest of the memory's active statements."""
    statements: int


class Past:
    """What an editor that is made anew replays: the journal's history from the newest snapshot.

    While a restoration is under way it is the history from where that began, so that an editor lost in the middle of
    it comes back to the same place.
    """

    def __init__(self, journal: Journal, store: ArtifactStore) -> None:
        self._journal, self._store = journal, store
        self._restoring = False
        self.since: Snapshot | None = None
        """Where the restoration under way began."""

    def __call__(self) -> Iterator[HistoryItem]:
        """The items, oldest first."""
        if self.since is None and not self._restoring:
            newest = newest_snapshot(self._journal, self._store)
            return history(self._journal, self._store, since=None if newest is None else newest[1])
        return history(self._journal, self._store, since=self.since)

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """Within the context a restoration is under way."""
        self._restoring = True
        yield
        # not in a finally: what interrupts a restoration ends the pipeline, or begins it again
        self._restoring, self.since = False, None


@dataclass(frozen=True)
class PipelineParts:
    """What a pipeline drives."""

    editor: EditorPart
    memory: MemoryPart
    evaluators: EvaluationPart
    measurer: Measurer
    timeline: Timeline
    refreshing: Refreshing
    past: Past
    """What ``editor`` replays when it is made anew."""


class Pipeline:
    """Editor, memory, covariance and evaluations around one journal.

    Attributes:
        editor, memory, journal, store: the parts, for reading; only the owner of the pipeline writes through them.
        after_commit: called with every new version (never with a replayed one), once it is in the journal, the weights
            and the memory, by the thread that committed it. What a hook raises reaches the caller of the commit.
    """

    def __init__(
        self,
        journal: Journal,
        store: ArtifactStore,
        parts: PipelineParts,
        *,
        method: EditorConfig,
        batching: BatchingConfig,
        snapshots: SnapshotConfig,
        statement: StatementConfig,
        every: int | None,
        tracker: Tracker | NullTracker,
        display: Display,
        final_follows: bool = False,
        retries: bool = False,
        repair: RepairConfig | None = None,
        seed: int = 0,
    ) -> None:
        """`errata.orchestrator.run.assembly.make_pipeline` makes one from the configuration of a run.

        Args:
            method: the editor's settings.
            statement: how the memory words a fact.
            every: edits between two points of the timeline; None for none.
            final_follows: when nothing waits any more, the owner evaluates everything, the timeline's facts too.
            retries: an edit that a batch left waiting is written in a batch of its own (``verify.on_weak: retry``).
            repair: when old facts are asked again; None for never.
            seed: of the samples that are asked.
        """
        self._retries = retries
        self.journal, self.store = journal, store
        self._final_follows = final_follows
        self._batching, self._snapshots, self._statement, self._every = batching, snapshots, statement, every
        self._commutes = make_editor(method).commutes
        self._tracker, self._display = tracker, display
        self.after_commit: list[Callable[[Version], None]] = []
        self.editor, self.memory, self.evaluators = parts.editor, parts.memory, parts.evaluators
        self.measurer, self.timeline, self.refreshing = parts.measurer, parts.timeline, parts.refreshing
        self.base_perplexity: Future[float | None] = self.measurer.base_perplexity()
        self._past = parts.past
        self._batcher = Batcher(
            batching.size, batching.max_age_seconds, batching.distinct_subjects, batching.by_subject
        )
        self._attempts = Attempts(journal, self.editor, display.warn)
        self._repairs = Repairs(
            repair or RepairConfig(),
            journal,
            self.editor,
            self._write_again,
            size=batching.size,
            seed=seed,
            say=display.say,
        )
        self._alone: list[str] = []
        """Requests that stayed weak among others and are to be tried in a batch of their own."""
        self._modules = ModulesInForce(journal, store)
        self._contexts_digest: str | None = None
        self._edits_before = 0

    # --- the owner's calls ---

    def start(self) -> None:
        """Obtain the first covariance, fix the context prefixes, and bring editor and memory to the journal's head."""
        with self._display.working():
            self.refreshing.first()
            self._display.begin("loading the editor")
            contexts = json.dumps(self.editor.contexts()).encode()
            self._contexts_digest = self.store.put_bytes("contexts", contexts, suffix=".json")
            with self._past.restoring():
                self._restore()
        if self._retries:
            # what a batch had in hand and left waiting was weak there
            oldest = next(iter(self.journal.pending(1)), None)
            rows = [] if oldest is None else self.journal.attempts_since(oldest.accepted_at)
            given = [name for row in rows if row.outcome == "committed" for name in row.request_ids]
            self._alone = list(dict.fromkeys(given))

    def head(self) -> Version:
        """The newest version."""
        return self.journal.head()

    def write_next(self, *, ended: bool) -> Version | None:
        """Write the next batch if one is due; before it a refreshed covariance takes over if its turn has come, and
        old facts are repaired if theirs has.

        Args:
            ended: no more requests will come, or all that wait are to be written now.

        Returns:
            The version that came of it, or None if no batch was due.
        """
        self.refreshing.swap_if_due()
        retracted = settle_retractions(self.journal, lambda ids, why: self.revert(ids, reason=why))
        if retracted is not None:
            return retracted
        repaired = self._repairs.next()
        if repaired is not None:
            self._settle(repaired)
            return repaired
        plan = self._next_alone()
        rows = [] if plan else self._waiting()
        oldest = rows[0].accepted_at if rows else None
        if plan is None and self._batcher.due(len(rows), ended=ended, oldest=oldest, now=datetime.now(UTC)):
            plan = self._batcher.plan([row.request for row in rows], {row.id: row.accepted_at for row in rows})
        if plan is None:
            return None
        version = self._write(plan)
        if version is None:
            return self.write_next(ended=ended)
        self._settle(version)
        return version

    def revert(self, request_ids: Sequence[str], *, reason: str = "", by: str | None = None) -> Version:
        """Take applied requests, and the older values of their facts, out of the weights and the memory, in one commit.

        Raises:
            UserError: a request is unknown, or is not in the weights; nothing has changed then.
            NumericalError: without it, another edit of a batch cannot be applied; nothing has changed then.
        """
        with self._undone_on_error():
            version, plan = commit_revert(
                self.journal,
                self.store,
                self.editor,
                request_ids,
                commutes=self._commutes,
                contexts=self._contexts_digest,
                reason=reason,
                by=by,
            )
        self._forget(plan.asked)
        reach("after_memory_remove")
        self._settle(version)
        return version

    def snapshot(self) -> str:
        """Store the editor as it stands, so that a restart goes on from here; returns the digest.

        Raises:
            UserError: nothing was edited yet.
        """
        head = self.head()
        if head.sequence == 0:
            raise UserError("snapshot: nothing was edited yet; there is nothing to keep")
        digest = store_snapshot(self.journal, self.store, self.editor.snapshot(), head)
        self.memory.save((head.sequence, head.digest))
        return digest

    def inspect(self) -> Inspection:
        """Fetch what editor and memory hold, to be compared with what the journal says; nothing changes."""
        weights = weights_digest(self.editor.snapshot().weights)
        return Inspection(self.head(), weights, self.memory.digest(), self.memory.add([]))

    def request_refresh(self) -> bool:
        """Begin to estimate the covariance anew on the newest version, outside the schedule.

        It takes over at the next batch boundary: under ``schedule: asap`` once it is there, else waiting for it.

        Returns:
            False if a refresh is under way or was begun at this number of edits, or nothing was edited yet.

        Raises:
            UserError: this run's covariance never changes.
        """
        return self.refreshing.request()

    def measure(
        self, requests: Sequence[EditRequest], *, kind: str = ASKED, wanted: Callable[[], bool] | None = None
    ) -> Future[Measurement]:
        """Evaluate facts on the newest version, frozen, in the background; the journal keeps the figures.

        Where ``wanted`` is given and says no meanwhile, it ends with AbandonedError.
        """
        return self.timeline.measure(requests, self.head(), kind, wanted=wanted)

    def give_up(self) -> None:
        """Have the start or the batch under way fail, from any thread; it has left no trace, and nothing follows it."""
        self.refreshing.give_up()
        self.editor.give_up()

    def wait_background(self) -> None:
        """Return when every timeline point that was begun is in the journal."""
        self.timeline.wait()

    def close(self) -> None:
        """Stop what runs in the background; nothing journaled is lost."""
        self.refreshing.close()
        self.measurer.close()

    # --- restoring ---

    def _restore(self) -> None:
        """Bring editor and memory to the journal's head, measuring again what an interruption left unmeasured."""
        head = self.journal.head()
        self._edits_before = 0
        if head.sequence == 0:
            self.editor.restore()
            self.timeline.begin(self.editor.norms())
            return
        first = max(self._first_to_visit(head), Gaps.of(self.journal).newest + 1)
        newest = newest_snapshot(self.journal, self.store, before=first)
        since = self._past.since = None if newest is None else newest[1]
        start = 0 if since is None else since.sequence
        self._display.say(
            f"resuming after {counted(head.edits, 'edit')} in {counted(head.sequence, 'batch')}"
            + (f", from the snapshot of v{start}" if start else "")
        )
        self._begin(since)
        swaps = {swap.after_sequence: swap.covariance for swap in self.journal.swaps()}
        self._fill_memory(start)
        self._edits_before = self.journal.version(start).edits
        for sequence in range(start + 1, head.sequence + 1):
            version = self.journal.version(sequence)
            self.editor.replay(with_old_keys(self.journal, self.store, load_receipt(self.store, version), version))
            if version.sequence in swaps:
                self.editor.replay(load_covariance(self.store, swaps[version.sequence]))
            if version.kind in ("revert", "erase"):
                self._forget(version.request_ids)
            self._remember(self.journal.requests_applied_in([version.sequence]))
            self._at_boundary(version, self._edits_before, replayed=True)

    def _fill_memory(self, sequence: int) -> None:
        """The memory as it was after a commit: as it was saved last, and what has changed since; else everything."""
        mark = self.memory.mark()
        if mark is not None and mark[0] <= self.journal.head().sequence:
            low, high = sorted((mark[0], sequence))
            changed = self.journal.facts_touched(low, high)
            if self.journal.version(mark[0]).digest == mark[1] and len(changed) <= self.journal.held_count(sequence):
                held = self.journal.held_of(changed, sequence)
                numbers = {row.seq for row in held}
                others = (row.seq for row in self.journal.requests_of_facts(changed))
                self.memory.remove([number for number in others if number not in numbers])
                self.memory.add([memory_entry(row, self._statement) for row in held])
                return
        self.memory.sync(self._held(sequence))

    def _held(self, sequence: int) -> Iterator[MemoryEntry]:
        """What the memory held after a commit; read where somebody wants it."""
        for row in self.journal.held(sequence):
            yield memory_entry(row, self._statement)

    def _begin(self, since: Snapshot | None) -> None:
        """The editor at a snapshot, or at the beginning."""
        items = history(self.journal, self.store, since=since, upto=0 if since is None else since.sequence)
        first = next(items, None)
        self.editor.begin(first if isinstance(first, KeyCovariance) else None)
        for item in chain([] if first is None or isinstance(first, KeyCovariance) else [first], items):
            self.editor.replay(item)
        self.timeline.begin(self.editor.norms() if since is None else None)

    def _first_to_visit(self, head: Version) -> int:
        """The first version whose weights are wanted: for a measurement or a refresh that was cut short."""
        wanted = [head.sequence + 1]
        every = self._every
        if every is not None:
            done = self.timeline.measured()
            for point in range(every, head.edits + 1, every):
                version = self._reaching(point)
                if version.edits not in done and not self._is_final(version):
                    wanted.append(version.sequence)
                    break
        refreshes = {row.triggered_at: row.state for row in self.journal.refreshes()}
        parent = self.journal.version(head.sequence - 1)
        if self.refreshing.scheduled(parent.edits, head.edits) and head.edits not in refreshes:
            wanted.append(head.sequence)
        for edits in refreshes:
            if edits <= head.edits and self.refreshing.started(version := self._reaching(edits)):
                wanted.append(version.sequence)
        return min(wanted)

    def _reaching(self, edits: int) -> Version:
        sequence = self.journal.first_reaching(edits)
        assert sequence is not None, "the head has as many edits"
        return self.journal.version(sequence)

    # --- one batch ---

    def _waiting(self) -> list[RequestRow]:
        """The next requests that wait, after those that came late have given way."""
        rows = self.journal.pending(self._batching.size)
        while set_late_aside(self.journal, rows):
            rows = self.journal.pending(self._batching.size)
        return rows

    def _next_alone(self) -> BatchPlan | None:
        """A batch of one request that stayed weak among others, if one still waits."""
        while self._alone:
            row = self.journal.request(self._alone.pop(0))
            if row is not None and row.state == "accepted":
                return BatchPlan((row.request,), ())
        return None

    def _write(self, plan: BatchPlan) -> Version | None:
        """Apply, store, commit, remember: the order is what makes a crash harmless.

        Returns:
            None where every request of the plan was set aside.
        """
        batch = plan.batch(self.journal.next_sequence())
        reach("after_batch_planned")
        batch = self._with_old_keys(batch)
        with self._display.working():
            receipt = self._attempts.apply(batch)
        if receipt is None:
            return None
        reach("after_batch_applied")
        try:
            with self._undone_on_error():
                version = self._commit(receipt, plan.superseded)
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            self._attempts.failed(error)
            raise
        self._attempts.committed()
        self._alone += receipt.later
        applied = {result.request_id for result in receipt.results if result.applied}
        for result in receipt.results:
            if not result.applied:
                self._display.warn(f"edit {result.request_id} not applied: {result.reason}")
            elif result.outcome == "weak":
                self._display.warn(f"edit {result.request_id} is weak: {in_short(result.figures or {})}")
        rows = [row for name in applied if (row := self.journal.request(name)) is not None]
        self._remember(sorted(rows, key=lambda row: row.seq))
        reach("after_memory_add")
        return version

    def _write_again(self, requests: Sequence[EditRequest], figures: Mapping[str, Any]) -> Version:
        """Applied requests once more, in a commit of kind ``repair``; what cannot be written stays as it was."""
        batch = EditBatch(sequence=self.journal.next_sequence(), requests=tuple(requests))
        batch = self._with_old_keys(batch)
        with self._undone_on_error():
            receipt = self.editor.apply(batch)
            return self._commit(receipt, (), repair=figures)

    def _with_old_keys(self, batch: EditBatch) -> EditBatch:
        """The batch with the stored keys of what it replaces, where the editor does not hold them."""
        wanted = self.editor.keys_wanted([request.fact_key for request in batch.requests])
        if not wanted:
            return batch
        leaving = old_keys(self.journal, self.store, wanted, before=batch.sequence)
        return batch.model_copy(update={"old_keys": leaving})

    def _forget(self, names: Sequence[str]) -> None:
        facts = {row.fact_key for row in self.journal.requests_named(names) if row.fact_key is not None}
        self.memory.remove(forgotten(self.journal.requests_of_facts(facts), names))

    def _remember(self, rows: Sequence[RequestRow]) -> None:
        self.memory.add([memory_entry(row, self._statement) for row in rows])

    def _commit(
        self,
        receipt: EditReceipt,
        superseded: tuple[tuple[str, str], ...],
        repair: Mapping[str, Any] | None = None,
    ) -> Version:
        """Files first, then the transaction that makes the version exist."""
        delta, keys = store_receipt(self.store, receipt)
        parts = store_parts(self.store, receipt, self._modules)
        reach("after_delta_stored")
        return self.journal.commit(
            commit_data(
                receipt,
                delta=delta,
                keys=keys,
                contexts=self._contexts_digest,
                norms=self.editor.norms(),
                superseded=superseded,
                repair=repair,
                parts=parts,
            )
        )

    @contextmanager
    def _undone_on_error(self) -> Iterator[None]:
        """An editor that is ahead of the journal, because a disk was full, goes back to where the journal stands."""
        try:
            yield
        except UserError:
            raise  # refused before anything was computed
        except Exception:
            logger.warning("a change was computed and could not be kept; the editor is restored from the journal")
            self.editor.restore()
            raise

    # --- what happens at batch boundaries ---

    def _settle(self, version: Version) -> None:
        """What follows a new commit that is in the journal, the weights and the memory."""
        metrics = {names.norm(layer): norm for layer, norm in version.norms.items() if norm is not None}
        metrics["time/batch_seconds"] = version.seconds
        figures = {} if version.kind == REPAIR or version.figures is None else version.figures
        metrics |= names.verified(figures)
        self._tracker.log_metrics(metrics, step=version.edits)
        every = self._snapshots.every
        if every is not None and version.sequence % every == 0:
            # before a swap, which belongs to the next batch
            self._thin_out(self.snapshot(), every)
        self._at_boundary(version, self._edits_before, replayed=False)
        for hook in self.after_commit:
            hook(version)

    def _thin_out(self, newest: str, every: int) -> None:
        """Delete the snapshots that the newest one makes superfluous."""
        there = set(self.store.digests("snapshots"))
        floors = Gaps.of(self.journal).snapshots()
        kept = [row for row in snapshots(self.journal) if row.digest in there and row.digest not in floors]
        worth = worth_of(self.journal, self.store, newest)
        apart = spacing(every, self.head().sequence, self._snapshots.spread, worth)
        for row in outlived(kept, self._snapshots.keep, apart):
            self.store.discard("snapshots", row.digest)

    def _at_boundary(self, version: Version, before: int, *, replayed: bool) -> None:
        self._edits_before = version.edits
        counts = self.journal.counts()
        total = counts.accepted + counts.applied + counts.superseded
        self._display.update("edits", version.edits, max(total, version.edits), f"version {version.digest[:10]}")
        if crossed(before, version.edits, self._every) is not None and not self._is_final(version):
            self.timeline.point(version)
        self.refreshing.at_boundary(before, version, replayed=replayed)

    def _is_final(self, version: Version) -> bool:
        """Whether the point of this version is read off the final evaluation, which asks the same and more."""
        if not self._final_follows or self.journal.counts().accepted:
            return False
        return version.sequence == self.journal.head().sequence
