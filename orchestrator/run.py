"""The run loop: a stream flows into the weights and into the memory, and both are measured as it goes.

One writer: only this loop writes the journal. Everything else (editor, memory, evaluations) can be lost at any moment
and is rebuilt from it.
"""

from __future__ import annotations

import json
import logging
import time
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from actors.cluster import Cluster
from actors.covariance import Estimate, EstimateProgress
from actors.editor import ContextSpec, EditorClient
from actors.evaluation import EvaluationSettings
from actors.retrieval import MemoryClient
from editing.covariance import KeyCovariance
from editing.editors import make_editor
from editing.request import EditRequest
from orchestrator.artifacts import ArtifactStore
from orchestrator.batcher import BatchPlan, plan_batch
from orchestrator.config import RunConfig
from orchestrator.covariance_store import CovarianceStore, obtain
from orchestrator.fail_points import reach
from orchestrator.journal import Journal
from orchestrator.journal_rows import CovarianceRow, Version
from orchestrator.measure import Measurement, Measurer
from orchestrator.outputs import write_outputs
from orchestrator.progress import Display
from orchestrator.refresh import REFUSED, PendingRefresh, Refresher, blend, crossed, refusal
from orchestrator.tracking import NullTracker, Tracker
from orchestrator.versions import (
    commit_data,
    history,
    load_covariance,
    load_receipt,
    memory_entries,
    store_receipt,
)
from retrieval.memory import MemoryEntry

logger = logging.getLogger(__name__)

_TIMELINE = "timeline"
_FINAL = "final"


@dataclass
class _Clock:
    """Wall seconds by stage."""

    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    started: float = field(default_factory=time.perf_counter)
    covariance: float = 0.0

    def elapsed(self) -> float:
        return time.perf_counter() - self.started


class RunLoop:
    """One run from the state of its journal to its end, or to an interruption that loses nothing."""

    def __init__(
        self,
        config: RunConfig,
        journal: Journal,
        store: ArtifactStore,
        cluster: Cluster,
        *,
        output: Path,
        model_digest: str,
        tracker: Tracker | NullTracker,
        display: Display,
    ) -> None:
        self._config, self._journal, self._store = config, journal, store
        self._output, self._model_digest = output, model_digest
        self._tracker, self._display = tracker, display
        self._clock = _Clock()
        self._layers: tuple[int, ...] = make_editor(config.editor).layers
        self._estimator = cluster.estimator()
        self._refresher = Refresher(self._estimator)
        self._editor: EditorClient = cluster.editor(
            config.editor,
            ContextSpec(config.contexts.count, config.contexts.length, config.seed),
            lambda: history(journal, store),
        )
        self._memory: MemoryClient = cluster.memory(
            config.memory.embedder, config.memory.index, lambda: memory_entries(journal)
        )
        settings = EvaluationSettings(
            config.memory.scr,
            config.evaluation.arms,
            config.evaluation.max_new_tokens,
            config.evaluation.stop_at_newline,
        )
        self._measurer = Measurer(cluster.evaluators(settings), self._memory, config.evaluation, config.memory)
        self._base_perplexity: Future[float | None] = self._measurer.base_perplexity()
        self._timeline: list[Future[Measurement]] = []
        self._pending_refresh: PendingRefresh | None = None

    # --- the whole course ---

    def run(self) -> None:
        """Go on from the journal until nothing waits, then measure and write what comes out."""
        self._display.say(
            f"model {self._config.model.name}, editor {self._config.editor.type}, layers {list(self._layers)}"
        )
        self._first_covariance()
        self._contexts_digest = self._keep_contexts()
        self._restore()
        while (plan := self._next_plan()) is not None:
            self._swap_if_due()
            version = self._write(plan)
            self._after_commit(version, replayed=False)
        # a refresh whose turn comes exactly with the last edit still belongs to the run
        self._swap_if_due()
        self._finish()

    def close(self) -> None:
        """Stop what runs in the background; nothing journalled is lost."""
        self._refresher.close()
        self._measurer.close()

    # --- covariance ---

    def _first_covariance(self) -> None:
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
                progress=lambda part, p: self._show_estimate(f"first {part}", p),
            )
            covariance = found.covariance
            self._clock.covariance += found.seconds
        self._keep_covariance(covariance, self._journal.base().digest)
        self._journal.record_swap(0, covariance.digest, 0)

    def _keep_covariance(self, covariance: KeyCovariance, version: str) -> None:
        digest = self._store.put_file("covariances", covariance.save)
        reach("after_covariance_stored")
        path = str(self._store.get("covariances", digest, verify=False).relative_to(self._output))
        self._journal.record_covariance(
            CovarianceRow(digest, covariance.source, covariance.tokens, covariance.layers, version, path)
        )

    def _show_estimate(self, stage: str, progress: EstimateProgress) -> None:
        note = f"{progress.tokens_per_second:.0f} tokens/s"
        if progress.repeated:
            note += f", {progress.repeated} blocks repeated"
        total = self._config.covariance.tokens
        if total is None:
            self._display.update(stage, round(100 * progress.share), 100, note)
        else:
            self._display.update(stage, min(progress.tokens, total), total, note)

    # --- restoring and writing ---

    def _keep_contexts(self) -> str:
        contexts = self._editor.contexts()
        return self._store.put_bytes("contexts", json.dumps(contexts).encode(), suffix=".json")

    def _restore(self) -> None:
        """Bring editor and memory to the journal's head, measuring again what an interruption left unmeasured."""
        head = self._journal.head()
        if head.sequence == 0:
            self._editor.restore()
            self._measure_timeline(self._journal.base())
            return
        self._display.say(f"resuming after {head.edits} edits in {head.sequence} batches")
        swaps = {swap.after_sequence: swap.covariance for swap in self._journal.swaps()}
        self._editor.begin(load_covariance(self._store, swaps[0]) if 0 in swaps else None)
        self._measure_timeline(self._journal.base())
        requests = {row.id: row for row in self._journal.requests()}
        for version in self._journal.versions():
            if version.kind == "base":
                continue
            self._editor.replay(load_receipt(self._store, version))
            if version.sequence in swaps:
                self._editor.replay(load_covariance(self._store, swaps[version.sequence]))
            rows = [requests[name] for name in version.request_ids if requests[name].applied_in == version.sequence]
            self._memory.add([MemoryEntry.of(row.request, row.seq) for row in rows])
            self._after_commit(version, replayed=True)

    def _next_plan(self) -> BatchPlan | None:
        size = self._config.batching.size
        return plan_batch([row.request for row in self._journal.pending(size)], size)

    def _write(self, plan: BatchPlan) -> Version:
        """Apply, store, commit, remember: the order is what makes a crash harmless."""
        batch = plan.batch(self._journal.next_sequence())
        reach("after_batch_planned")
        receipt = self._editor.apply(batch)
        reach("after_batch_applied")
        delta, keys = store_receipt(self._store, receipt)
        reach("after_delta_stored")
        version = self._journal.commit(
            commit_data(
                receipt,
                delta=delta,
                keys=keys,
                contexts=self._contexts_digest,
                norms=self._editor.norms(),
                superseded=plan.superseded,
            )
        )
        applied = {result.request_id for result in receipt.results if result.applied}
        for result in receipt.results:
            if not result.applied:
                self._display.say(f"edit {result.request_id} not applied: {result.reason}")
        rows = [row for name in applied if (row := self._journal.request(name)) is not None]
        self._memory.add([MemoryEntry.of(row.request, row.seq) for row in sorted(rows, key=lambda row: row.seq)])
        reach("after_memory_add")
        metrics = {f"norm.layer{layer}": norm for layer, norm in version.norms.items() if norm is not None}
        metrics["edit_seconds"] = receipt.seconds
        self._tracker.log_metrics(metrics, step=version.edits)
        return version

    # --- what happens at batch boundaries ---

    def _after_commit(self, version: Version, *, replayed: bool) -> None:
        counts = self._journal.counts()
        total = counts.accepted + counts.applied + counts.superseded
        self._display.update("edits", version.edits, max(total, version.edits), f"version {version.digest[:10]}")
        before = self._edits_before(version)
        # the last point of the timeline is read off the final evaluation, which asks the same and more
        last = not counts.accepted and version.sequence == self._journal.head().sequence
        if crossed(before, version.edits, self._config.evaluation.every) is not None and not last:
            self._measure_timeline(version)
        triggered = crossed(before, version.edits, self._config.refresh.every)
        if triggered is not None:
            self._trigger_refresh(version, replayed=replayed)

    def _edits_before(self, version: Version) -> int:
        versions = self._journal.versions()
        return max((v.edits for v in versions if v.sequence == version.sequence - 1), default=0)

    def _trigger_refresh(self, version: Version, *, replayed: bool) -> None:
        row = next((row for row in self._journal.refreshes() if row.triggered_at == version.edits), None)
        if self._pending_refresh is not None or (row is not None and row.state in ("swapped", "refused")):
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
        self._pending_refresh = self._refresher.start(
            job,
            weights,
            triggered_at=version.edits,
            lag=self._config.refresh.lag,
            progress=lambda p: self._show_estimate(stage, p),
        )

    def _was_passed_over(self, version: Version) -> bool:
        """Whether the run before the interruption went by this trigger, because another refresh was under way."""
        swapped_here = any(swap.after_sequence == version.sequence for swap in self._journal.swaps())
        refused_here = any(event.data["after_sequence"] == version.sequence for event in self._journal.events(REFUSED))
        return swapped_here or refused_here or version.sequence < self._journal.head().sequence

    def _swap_if_due(self) -> None:
        pending, head = self._pending_refresh, self._journal.head()
        if pending is None or not pending.due(head.edits):
            return
        estimate: Estimate = pending.future.result()
        self._clock.covariance += estimate.seconds
        if (reason := self._refusal(estimate)) is not None:
            self._refuse(pending, estimate, reason)
            return
        covariance = estimate.recorded
        if self._config.refresh.mode == "ema":
            # the one the newest batch was made on: a swap that a crash cut short may stand in the journal already
            current = self._journal.covariance_for(head.sequence)
            assert current is not None
            covariance = blend(load_covariance(self._store, current), covariance, self._config.refresh.ema_weight)
        self._keep_covariance(covariance, pending.version)
        self._journal.record_swap(head.sequence, covariance.digest, head.edits)
        self._journal.record_refresh(
            pending.triggered_at, "swapped", covariance=covariance.digest, seconds=estimate.seconds
        )
        self._editor.swap(covariance)
        self._pending_refresh = None
        self._tracker.log_metrics({"covariance_tokens": float(covariance.tokens)}, step=head.edits)
        self._display.say(f"covariance of version {pending.version[:10]} in force after {head.edits} edits")

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
        self._pending_refresh = None
        self._display.say(
            f"refresh triggered at {pending.triggered_at} edits REFUSED after {head.edits}: {reason}; "
            "the covariance in force stays"
        )

    # --- measuring ---

    def _sample(self) -> list[EditRequest]:
        """The fixed facts of the timeline: from the edits up to its first point, so that every point has them all."""
        rows = [row for row in self._journal.requests() if row.state in ("accepted", "applied", "superseded")]
        first = self._config.evaluation.every or len(rows)
        early = [row.request for row in rows[:first]]
        count = min(self._config.evaluation.sample, len(early))
        return [early[i * len(early) // count] for i in range(count)] if count else []

    def _measure_timeline(self, version: Version) -> None:
        if self._config.evaluation.every is None:
            return
        done = {(row.edits, row.kind) for row in self._journal.evaluations()}
        if (version.edits, _TIMELINE) in done:
            return
        sample = self._sample()
        if not sample:
            return
        future = self._measurer.submit(
            sample,
            self._editor.weights(),
            edits=version.edits,
            version=version.digest,
            done=lambda m: self._record(m, version, _TIMELINE, len(sample)),
        )
        self._timeline.append(future)

    def _close_timeline(self, final: Measurement, head: Version) -> None:
        """The end as a point of the timeline: the same facts as at the others, out of the final evaluation."""
        if self._config.evaluation.every is None:
            return
        wanted = {request.id for request in self._sample()}
        records = tuple(r for r in final.evaluation.records if r.request_id in wanted)
        if records:
            point = replace(final, evaluation=replace(final.evaluation, records=records), query_seconds={})
            self._record(point, head, _TIMELINE, len(records))

    def _record(self, result: Measurement, version: Version, kind: str, facts: int) -> None:
        metrics = {
            "arms": result.arms(),
            "choice": result.choices(),
            "perplexity": result.perplexity,
            "facts": facts,
            "norms": {str(k): v for k, v in version.norms.items()},
            "delta_norms": {str(k): v for k, v in version.delta_norms.items()},
            "seconds": self._clock.elapsed(),
            "evaluation_seconds": result.seconds,
        }
        self._journal.record_evaluation(result.version, result.edits, kind, metrics)
        reach("after_evaluation")
        flat = {
            f"{arm}.{name}": value
            for arm, values in result.arms().items()
            for name, value in values.items()
            if value is not None
        }
        if result.perplexity is not None:
            flat["edited.perplexity"] = result.perplexity
        prefix = "" if kind == _TIMELINE else f"{kind}."
        self._tracker.log_metrics({prefix + name: value for name, value in flat.items()}, step=result.edits)
        self._display.update("timeline" if kind == _TIMELINE else "final evaluation", 1, 1, f"at {result.edits} edits")

    def _finish(self) -> None:
        if self._pending_refresh is not None:
            # triggered, but the stream ended before its turn: the estimate is of no use any more
            self._refresher.close()
            self._pending_refresh = None
        for future in self._timeline:
            future.result()
        head = self._journal.head()
        rows = self._journal.requests("applied")
        requests = [row.request for row in rows]
        final: Measurement | None = None
        if requests:
            self._display.say(f"final evaluation of {len(requests)} facts on {len(self._config.evaluation.arms)} arms")
            final = self._measurer.submit(
                requests, self._editor.weights(), edits=head.edits, version=head.digest, latency=True
            ).result()
            self._record(final, head, _FINAL, len(requests))
            self._close_timeline(final, head)
        write_outputs(
            self._config,
            self._journal,
            self._output,
            model_digest=self._model_digest,
            final=final,
            rows=rows,
            base_perplexity=self._base_perplexity.result(),
            started_at=self._clock.started_at,
            wall_seconds=self._clock.elapsed(),
            covariance_seconds=self._clock.covariance,
            evaluation_seconds=self._measurer.seconds,
        )
        for name in ("summary.json", "report.html", "resolved.yaml", "facts.jsonl"):
            self._tracker.log_artifact(self._output / name)
