"""The covariance of a run: the first one, its refreshes, and the batch boundaries at which they take over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from actors.covariance import CovarianceEstimator, Estimate, EstimateProgress
from actors.editor import EditorClient
from editing.covariance import KeyCovariance
from editing.editors import make_editor
from editing.errors import UserError
from orchestrator.artifacts import ArtifactStore
from orchestrator.config import RunConfig
from orchestrator.covariance_store import CovarianceStore, obtain
from orchestrator.fail_points import reach
from orchestrator.journal import Journal
from orchestrator.journal_rows import CovarianceRow, RefreshRow, Version
from orchestrator.progress import Display
from orchestrator.refresh import REFUSED, PendingRefresh, Refresher, blend, crossed, refusal
from orchestrator.tracking import NullTracker, Tracker
from orchestrator.versions import load_covariance


class Refreshing:
    """Which covariance is in force when. The editor is told after the journal; at most one refresh is under way."""

    def __init__(
        self,
        config: RunConfig,
        journal: Journal,
        store: ArtifactStore,
        editor: EditorClient,
        estimator: CovarianceEstimator,
        *,
        tracker: Tracker | NullTracker,
        display: Display,
    ) -> None:
        self._config, self._journal, self._store, self._editor = config, journal, store, editor
        self._tracker, self._display = tracker, display
        self._layers: tuple[int, ...] = make_editor(config.editor).layers
        self._estimator, self._refresher = estimator, Refresher(estimator)
        self._pending: PendingRefresh | None = None
        self.seconds = 0.0
        """Spent on estimates that were taken in, the first one included."""

    # --- the first one ---

    def first(self) -> None:
        """Obtain and journal the covariance that the run begins with, unless it is there or not needed."""
        swaps = {swap.after_sequence for swap in self._journal.swaps()}
        if 0 in swaps or not make_editor(self._config.editor).needs_covariance:
            return
        if self._config.covariance.source == "identity":
            covariance = KeyCovariance.identity(self._editor.map_widths())
        else:
            place = self._config.covariance.store
            found = obtain(
                self._config.covariance,
                self._layers,
                self._journal.base().digest,
                self._estimator,
                dtype=self._config.model.dtype,
                store=None if place is None else CovarianceStore(Path(place).expanduser()),
                progress=lambda part, p: self._show(f"first {part}", p),
            )
            covariance = found.covariance
            self.seconds += found.seconds
        self._keep(covariance, self._journal.base().digest)
        self._journal.record_swap(0, covariance.digest, 0)

    # --- triggers ---

    def at_boundary(self, before: int, version: Version, *, replayed: bool) -> None:
        """Trigger the refresh that the schedule wants at this version, ``before`` edits being those of its parent."""
        if crossed(before, version.edits, self._config.refresh.every) is not None:
            self._trigger(version, self._config.refresh.lag, replayed=replayed)
        elif replayed and self._begun_at(version) is not None:
            self._trigger(version, 0, replayed=True)  # somebody asked for it here, and it was cut short

    def request(self) -> bool:
        """Begin a refresh of the newest version outside the schedule.

        Returns:
            False if one is under way, or one was begun at this number of edits already.

        Raises:
            UserError: the covariance of this run never changes.
        """
        source = self._config.covariance.source
        if source in ("identity", "mixture") or not make_editor(self._config.editor).needs_covariance:
            raise UserError(
                f"refresh: covariance.source {source!r} with editor {self._config.editor.type!r} has nothing to refresh"
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
        live = self._config.refresh.model == "live"
        for row in self._journal.refreshes():
            if row.state == "started" and row.triggered_at == version.edits:
                return row if not live or row.from_version == version.digest else None
        return None

    def _trigger(self, version: Version, lag: int, *, replayed: bool) -> None:
        row = next((row for row in self._journal.refreshes() if row.triggered_at == version.edits), None)
        if self._pending is not None or (row is not None and row.state in ("swapped", "refused")):
            return
        if replayed and row is None and self._was_passed_over(version):
            return
        live = self._config.refresh.model == "live"
        source = version.digest if live else self._journal.base().digest
        shift = version.edits  # every refresh draws other tokens, and a replay the same ones
        job = self._config.covariance.job(self._layers, source, seed_shift=shift)
        self._journal.record_refresh(version.edits, "started", from_version=source)
        reach("after_refresh_started")
        weights: Any = self._editor.weights() if live else {}
        stage = f"refresh at {version.edits}"
        self._pending = self._refresher.start(
            job, weights, triggered_at=version.edits, lag=lag, progress=lambda p: self._show(stage, p)
        )

    def _was_passed_over(self, version: Version) -> bool:
        """Whether the run before the interruption went by this trigger, because another refresh was under way."""
        swapped_here = any(swap.after_sequence == version.sequence for swap in self._journal.swaps())
        refused_here = any(event.data["after_sequence"] == version.sequence for event in self._journal.events(REFUSED))
        return swapped_here or refused_here or version.sequence < self._journal.head().sequence

    # --- swaps ---

    def swap_if_due(self) -> None:
        """At a batch boundary: take the pending estimate over, or refuse it, if its turn has come.

        Under ``schedule: deterministic`` the turn comes by the number of edits, and a late estimate is waited for;
        under ``asap`` it comes when the estimate is there.
        """
        pending, head = self._pending, self._journal.head()
        if pending is None or self._taken(head.sequence):
            return
        if not (pending.future.done() if self._config.schedule == "asap" else pending.due(head.edits)):
            return
        estimate: Estimate = pending.future.result()
        self.seconds += estimate.seconds
        if (reason := self._refusal(estimate)) is not None:
            self._refuse(pending, estimate, reason)
            return
        covariance = estimate.recorded
        if self._config.refresh.mode == "ema":
            # the one the newest batch was made on: a swap that a crash cut short may stand in the journal already
            current = self._journal.covariance_for(head.sequence)
            assert current is not None
            covariance = blend(load_covariance(self._store, current), covariance, self._config.refresh.ema_weight)
        self._keep(covariance, pending.version)
        self._journal.record_swap(head.sequence, covariance.digest, head.edits)
        self._journal.record_refresh(
            pending.triggered_at, "swapped", covariance=covariance.digest, seconds=estimate.seconds
        )
        self._editor.swap(covariance)
        self._pending = None
        self._tracker.log_metrics({"covariance_tokens": float(covariance.tokens)}, step=head.edits)
        self._display.say(f"covariance of version {pending.version[:10]} in force after {head.edits} edits")

    def _taken(self, sequence: int) -> bool:
        """Whether another refresh has its swap at this boundary, which can have one only."""
        done = {row.covariance for row in self._journal.refreshes() if row.state == "swapped"}
        return any(swap.after_sequence == sequence and swap.covariance in done for swap in self._journal.swaps())

    def _refusal(self, estimate: Estimate) -> str | None:
        """Why an estimate may not take over, or None: its documents against those of the first estimate."""
        bound = self._config.refresh.max_jsd
        first = next((swap.covariance for swap in self._journal.swaps() if swap.after_sequence == 0), None)
        if bound is None or first is None:
            return None
        record = load_covariance(self._store, first).record
        return refusal(None if record is None else record.documents, estimate.documents, bound)

    def _refuse(self, pending: PendingRefresh, estimate: Estimate, reason: str) -> None:
        """The covariance in force stays, and everybody hears of it."""
        head = self._journal.head()
        data = {
            "triggered_at": pending.triggered_at,
            "edits": head.edits,
            "after_sequence": head.sequence,
            "version": pending.version,
            "reason": reason,
        }
        # the event first: a resumed run reads off it at which boundary the refresh was done with
        if all(event.data["triggered_at"] != pending.triggered_at for event in self._journal.events(REFUSED)):
            self._journal.record_event(REFUSED, data)
        self._journal.record_refresh(pending.triggered_at, "refused", reason=reason, seconds=estimate.seconds)
        self._pending = None
        self._display.say(
            f"refresh triggered at {pending.triggered_at} edits REFUSED after {head.edits}: {reason}; "
            "the covariance in force stays"
        )

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

    def _show(self, stage: str, progress: EstimateProgress) -> None:
        note = f"{progress.tokens_per_second:.0f} tokens/s"
        if progress.repeated:
            note += f", {progress.repeated} blocks repeated"
        total = self._config.covariance.tokens
        if total is None:
            self._display.update(stage, round(100 * progress.share), 100, note)
        else:
            self._display.update(stage, min(progress.tokens, total), total, note)
