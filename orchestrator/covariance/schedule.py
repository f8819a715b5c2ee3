"""The covariance of a run: the first one, its refreshes, and the batch boundaries at which they take over."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Any

from errata.actors.parts import EditorPart, EstimatorPart
from errata.actors.workers.covariance import Estimate, EstimateProgress
from errata.editing.covariance import KeyCovariance
from errata.editing.editors import EditorConfig, make_editor
from errata.editing.errors import ErrataError, UserError
from errata.editing.wording import counted
from errata.orchestrator.config.covariance import CovarianceConfig
from errata.orchestrator.config.refresh import RefreshConfig
from errata.orchestrator.covariance.drift import NOT_NEEDED, DriftWatch, Looked
from errata.orchestrator.covariance.jobs import estimate_job
from errata.orchestrator.covariance.places import open_store, shipped_store
from errata.orchestrator.covariance.refresh import REFUSED, PendingRefresh, Refresher, blend, crossed, refusal
from errata.orchestrator.covariance.store import obtain
from errata.orchestrator.history.receipts import load_covariance
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.artifacts import ArtifactStore
from errata.orchestrator.journal.fail_points import reach
from errata.orchestrator.journal.rows import CovarianceRow, RefreshRow, RefreshState, Version
from errata.orchestrator.progress import Display
from errata.orchestrator.tracking.tracker import NullTracker, TrackedData, Tracker


class Refreshing:
    """Which covariance is in force when. The editor is told after the journal; at most one refresh is under way."""

    def __init__(
        self,
        covariance: CovarianceConfig,
        refresh: RefreshConfig,
        journal: Journal,
        store: ArtifactStore,
        editor: EditorPart,
        estimator: EstimatorPart,
        *,
        method: EditorConfig,
        dtype: str,
        asap: bool,
        tracker: Tracker | NullTracker,
        display: Display,
    ) -> None:
        """Nothing is estimated before `first` or a trigger.

        Args:
            method: the editor's settings: which layers are edited, and whether a covariance is needed at all.
            dtype: of the model; a stored estimate of another one is not used.
            asap: a refresh takes over when its estimate is there; otherwise at the number of edits that it is due at.
        """
        self._covariance, self._refresh = covariance, refresh
        self._journal, self._store, self._editor = journal, store, editor
        self._tracker, self._display = tracker, display
        plain = make_editor(method)
        self._method, self._layers, self._needed = method.type, plain.mapped_layers, plain.needs_covariance
        self._dtype, self._asap = dtype, asap
        self._refresher = Refresher(estimator)
        self._pending: PendingRefresh | None = None
        self._watch = None if refresh.drift is None else DriftWatch(refresh.drift)
        self._clock: datetime | None = None
        self.seconds = 0.0
        """Spent on estimates that were taken in, the first one included."""

    # --- the first one ---

    def first(self) -> None:
        """Obtain and journal the covariance that the run begins with, unless it is there or not needed."""
        swaps = {swap.after_sequence for swap in self._journal.swaps()}
        if 0 in swaps or not self._needed:
            return
        if self._covariance.source == "identity":
            covariance = KeyCovariance.identity(self._editor.map_widths())
        else:
            place = self._covariance.store
            self._display.begin("obtaining the first covariance")
            obtained = obtain(
                self._covariance,
                self._layers,
                self._journal.base().digest,
                self._refresher,
                dtype=self._dtype,
                store=None if place is None else open_store(place),
                shipped=shipped_store(),
                progress=lambda part, p: self._show(f"first {part}", p),
            )
            covariance = obtained.covariance
            self.seconds += obtained.seconds
        self._keep(covariance, self._journal.base().digest)
        self._journal.record_swap(0, covariance.digest, 0)

    # --- triggers ---

    def at_boundary(self, before: int, version: Version, *, replayed: bool) -> None:
        """Trigger the refresh that the schedule wants at this version, ``before`` edits being those of its parent."""
        refresh = self._refresh
        if crossed(before, version.edits, refresh.every) is not None:
            self._trigger(version, refresh.lag, replayed=replayed)
        elif refresh.drift is not None and crossed(before, version.edits, refresh.drift.every) is not None:
            self._trigger(version, refresh.lag, replayed=replayed, watch=self._watch)
        elif replayed and self._begun_at(version) is not None:
            self._trigger(version, 0, replayed=True)  # somebody asked for it here, and it was cut short

    def scheduled(self, before: int, edits: int) -> bool:
        """Whether the schedule has a refresh, or a look for drift, between two numbers of edits."""
        refresh = self._refresh
        intervals = (refresh.every, None if refresh.drift is None else refresh.drift.every)
        return any(crossed(before, edits, every) is not None for every in intervals)

    def _by_clock(self, now: datetime) -> None:
        """Begin a refresh if the last one is ``refresh.seconds`` ago and edits have come since."""
        seconds = self._refresh.seconds
        if seconds is None or self._pending is not None or not self._needed:
            return
        if self._clock is None:
            # off the journal: a restart neither forgets nor repeats one
            times = [row.at for row in self._journal.swaps()] + [row.at for row in self._journal.refreshes()]
            self._clock = max(times, default=now)
        # a clock that was set back begins the interval anew: at worst a refresh comes one interval late
        self._clock = min(self._clock, now)
        if (now - self._clock).total_seconds() >= seconds and self.request():
            self._clock = now

    def request(self) -> bool:
        """Begin a refresh of the newest version outside the schedule.

        Returns:
            False if one is under way, or one was begun at this number of edits already.

        Raises:
            UserError: the covariance of this run never changes.
        """
        source = self._covariance.source
        if source in ("identity", "mixture") or not self._needed:
            raise UserError(
                f"refresh: covariance.source {source!r} with editor {self._method!r} has nothing to refresh"
            )
        head = self._journal.head()
        known = any(row.triggered_at == head.edits for row in self._journal.refreshes())
        if self._pending is not None or known or head.sequence == 0:
            return False
        self._trigger(head, 0, replayed=False)
        return True

    def started(self, version: Version) -> bool:
        """Whether the journal holds a refresh of this version that has not come to its end."""
        return self._begun_at(version) is not None

    def _begun_at(self, version: Version) -> RefreshRow | None:
        live = self._refresh.model == "live"
        for row in self._journal.refreshes():
            if row.state == "started" and row.triggered_at == version.edits:
                return row if not live or row.from_version == version.digest else None
        return None

    def _trigger(self, version: Version, lag: int, *, replayed: bool, watch: DriftWatch | None = None) -> None:
        row = next((row for row in self._journal.refreshes() if row.triggered_at == version.edits), None)
        if self._pending is not None or (row is not None and row.state in ("swapped", "refused", "done")):
            return
        if replayed and row is None and self._was_passed_over(version):
            return
        if replayed and row is not None and (covariance := self._unclaimed(version)) is not None:
            # a crash came between its swap and this row: by the clock it would take over a second time, later
            self._journal.record_refresh(version.edits, "swapped", covariance=covariance)
            return
        live = self._refresh.model == "live"
        source = version.digest if live else self._journal.base().digest
        shift = version.edits  # every refresh draws other tokens, and a replay the same ones
        job = estimate_job(self._covariance, self._layers, source, seed_shift=shift)
        self._journal.record_refresh(version.edits, "started", from_version=source)
        reach("after_refresh_started")
        weights: Any = self._editor.weights() if live else {}
        stage = f"refresh at {version.edits}"
        look = None
        # the one this version was made on: before a swap at its boundary, which a replay finds in the journal
        if watch is not None and (current := self._journal.covariance_for(version.sequence)) is not None:
            look = watch.look(job, current, partial(load_covariance, self._store, current))
        self._pending = self._refresher.start(
            job, weights, triggered_at=version.edits, lag=lag, progress=lambda p: self._show(stage, p), look=look
        )

    def _unclaimed(self, version: Version) -> str | None:
        """The covariance of a swap since this version that no refresh has for its own; only one is ever under way."""
        claimed = {row.covariance for row in self._journal.refreshes() if row.state == "swapped"}
        swaps = [swap for swap in self._journal.swaps() if swap.after_sequence >= version.sequence]
        return next((swap.covariance for swap in swaps if swap.covariance not in claimed), None)

    def _was_passed_over(self, version: Version) -> bool:
        """Whether the run before the interruption went by this trigger, because another refresh was under way."""
        swapped_here = any(swap.after_sequence == version.sequence for swap in self._journal.swaps())
        ended = [event for kind in (REFUSED, NOT_NEEDED) for event in self._journal.events(kind)]
        ended_here = any(event.data["after_sequence"] == version.sequence for event in ended)
        return swapped_here or ended_here or version.sequence < self._journal.head().sequence

    # --- swaps ---

    def swap_if_due(self) -> None:
        """At a batch boundary: take the pending estimate over, or refuse it, if its turn has come.

        Under ``schedule: deterministic`` the turn comes by the number of edits, and a late estimate is waited for;
        under ``asap`` it comes when the estimate is there.
        """
        self._by_clock(datetime.now(UTC))
        pending, head = self._pending, self._journal.head()
        if pending is None or self._taken(head.sequence):
            return
        if not (pending.future.done() if self._asap else pending.due(head.edits)):
            return
        try:
            result = pending.future.result()
        except ErrataError as error:
            # a service outlives its sampling server; a run that is to be repeatable ends, and resumes from here
            if not self._asap or self._covariance.server is None:
                raise
            self._refuse(pending, 0.0, f"the estimate failed: {error}")
            return
        drift = None
        estimate: Estimate
        if isinstance(result, Looked):
            drift = result.drift.text
            if result.estimate is None:
                self._not_needed(pending, drift, result.seconds)
                return
            estimate = result.estimate
        else:
            estimate = result
        self.seconds += result.seconds
        if (reason := self._refusal(estimate)) is not None:
            self._refuse(pending, estimate.seconds, reason)
            return
        covariance = self._joined(estimate.recorded, head.sequence)
        self._keep(covariance, pending.version)
        self._journal.record_swap(head.sequence, covariance.digest, head.edits)
        self._journal.record_refresh(
            pending.triggered_at, "swapped", covariance=covariance.digest, seconds=estimate.seconds, reason=drift
        )
        self._editor.swap(covariance)
        self._pending = None
        self._tracker.log_metrics({"covariance/tokens": float(covariance.tokens)}, step=head.edits)
        self._display.say(f"covariance of version {pending.version[:10]} in force after {counted(head.edits, 'edit')}")

    def _joined(self, estimate: KeyCovariance, sequence: int) -> KeyCovariance:
        """What takes over at a boundary: the estimate itself, or joined with the one in force or with the first."""
        refresh = self._refresh
        if refresh.mode == "ema":
            # the one the newest batch was made on: a swap that a crash cut short may stand in the journal already
            current = self._journal.covariance_for(sequence)
            assert current is not None
            return blend(load_covariance(self._store, current), estimate, refresh.ema_weight)
        first = self._first()
        if refresh.mode == "mixture" and first is not None:
            return blend(load_covariance(self._store, first), estimate, refresh.mixture_weight, "mixture")
        return estimate

    def _first(self) -> str | None:
        return next((swap.covariance for swap in self._journal.swaps() if swap.after_sequence == 0), None)

    def _not_needed(self, pending: PendingRefresh, distance: str, seconds: float) -> None:
        """A look that found no drift is done with: the covariance in force still fits."""
        self._ended(pending, NOT_NEEDED, "done", distance, seconds)
        self._display.say(f"no refresh at {counted(pending.triggered_at, 'edit')}: {distance}")

    def _taken(self, sequence: int) -> bool:
        """Whether another refresh has its swap at this boundary, which can have one only."""
        done = {row.covariance for row in self._journal.refreshes() if row.state == "swapped"}
        return any(swap.after_sequence == sequence and swap.covariance in done for swap in self._journal.swaps())

    def _refusal(self, estimate: Estimate) -> str | None:
        """Why an estimate may not take over, or None: its documents against those of the first estimate."""
        bound = self._refresh.max_jsd
        first = self._first()
        if bound is None or first is None:
            return None
        record = load_covariance(self._store, first).record
        return refusal(None if record is None else record.documents, estimate.documents, bound)

    def _refuse(self, pending: PendingRefresh, seconds: float, reason: str) -> None:
        """The covariance in force stays, and everybody hears of it."""
        edits = self._ended(pending, REFUSED, "refused", reason, seconds)
        self._display.say(
            f"refresh triggered at {counted(pending.triggered_at, 'edit')} REFUSED after {edits}: {reason}; "
            "the covariance in force stays"
        )

    def _ended(self, pending: PendingRefresh, kind: str, state: RefreshState, reason: str, seconds: float) -> int:
        """Journal that a refresh has come to an end without a swap; the number of edits by then."""
        head = self._journal.head()
        data = {
            "triggered_at": pending.triggered_at,
            "edits": head.edits,
            "after_sequence": head.sequence,
            "version": pending.version,
            "reason": reason,
        }
        # the event first: a resumed run reads off it at which boundary the refresh was done with
        if all(event.data["triggered_at"] != pending.triggered_at for event in self._journal.events(kind)):
            self._journal.record_event(kind, data)
        self._journal.record_refresh(pending.triggered_at, state, reason=reason, seconds=seconds)
        self._pending = None
        return head.edits

    # --- the rest ---

    @property
    def pending(self) -> bool:
        """Whether a refresh is under way."""
        return self._pending is not None

    def drop(self) -> None:
        """Give the pending estimate up: the stream has ended before its turn."""
        if self._pending is not None:
            self._refresher.close()
            self._pending = None

    def give_up(self) -> None:
        """Have whatever estimate is under way, the first one included, end with an error; call from any thread."""
        self._refresher.give_up()

    def close(self) -> None:
        """Stop what runs; the journal keeps where it stood."""
        self._refresher.close()

    def _keep(self, covariance: KeyCovariance, version: str) -> None:
        digest = self._store.put_file("covariances", covariance.save)
        reach("after_covariance_stored")
        path = str(self._store.get("covariances", digest, verify=False).relative_to(self._store.root))
        self._journal.record_covariance(
            CovarianceRow(digest, covariance.source, covariance.tokens, covariance.layers, version, path)
        )
        self._tracker.log_input(
            TrackedData(
                name=f"covariance of {version[:10]}",
                digest=digest,
                source_type=str(covariance.source.get("kind", "covariance")),
                source=covariance.source,
                profile={"tokens": covariance.tokens, "layers": list(covariance.layers)},
                context="covariance",
            )
        )

    def _show(self, stage: str, progress: EstimateProgress) -> None:
        note = rates(progress)
        if progress.repeated:
            note += f", {counted(progress.repeated, 'block')} repeated"
        total = self._covariance.tokens
        if total is None:
            self._display.update(stage, round(100 * progress.share), 100, note)
        else:
            self._display.update(stage, min(progress.tokens, total), total, note)


def rates(progress: EstimateProgress) -> str:
    """Tokens per second of all workers together, and of each."""
    return f"{progress.tokens_per_second:.0f} tokens/s ({progress.per_worker:.0f} a worker)"
