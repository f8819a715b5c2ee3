"""A run over a stream that is there from the beginning: batch after batch, then the measurements and the files.

The run and the service share one course, `errata.orchestrator.run.pipeline.Pipeline`; this is what a run adds to it.
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path

from errata.actors.parts import Parts
from errata.evaluation.strata import by_age
from errata.orchestrator.config.run import RunConfig
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.artifacts import ArtifactStore
from errata.orchestrator.journal.intake import Intake
from errata.orchestrator.measuring.measurer import Measurement
from errata.orchestrator.measuring.timeline import FINAL
from errata.orchestrator.progress import Display
from errata.orchestrator.run.attached import attach
from errata.orchestrator.run.outputs import write_outputs
from errata.orchestrator.run.pipeline import Pipeline
from errata.orchestrator.sources import Pump, Source
from errata.orchestrator.sources.base import TakesRequests
from errata.orchestrator.tracking.tracker import NullTracker, Tracker

_IDLE_SECONDS = 0.5
"""How long an idle stream is waited for before the clock is looked at again: a batch may be due by its age."""


class RunLoop:
    """One run from the state of its journal to its end, or to an interruption that loses nothing."""

    def __init__(
        self,
        config: RunConfig,
        journal: Journal,
        store: ArtifactStore,
        cluster: Parts,
        *,
        output: Path,
        model_digest: str,
        tracker: Tracker | NullTracker,
        display: Display,
        source: Source | None = None,
        intake: TakesRequests | None = None,
    ) -> None:
        self._config, self._journal = config, journal
        self._output, self._model_digest = output, model_digest
        self._tracker, self._display = tracker, display
        self._started_at = datetime.now(UTC)
        self._source, self._intake = source, intake or Intake(journal)
        self.pipeline = Pipeline(config, journal, store, cluster, tracker=tracker, display=display, final_follows=True)
        self.attached = attach(self.pipeline, config, output, metrics=tracker.log_metrics, say=display.say)

    def run(self) -> None:
        """Go on from the journal until nothing waits, then measure and write what comes out."""
        self.pipeline.start()
        self.attached.start(resumed_by="--resume")
        self._write_all()
        self.attached.finish()
        self.pipeline.refreshing.drop()
        self.pipeline.wait_background()
        self._finish()

    def close(self) -> None:
        """Stop what runs in the background; nothing journalled is lost."""
        self.attached.close()
        self.pipeline.close()

    def _write_all(self) -> None:
        """Batch after batch until the stream has ended; one that goes on is ended by an interruption only."""
        woken = threading.Event()
        pump = (
            None
            if self._source is None
            else Pump(self._source, self._intake, wake=lambda _: woken.set(), say=self._display.warn)
        )
        try:
            while True:
                ended = pump is None or pump.ended
                if not ended or self._journal.pending(1):
                    self.attached.check()
                # the last call finds nothing to write, but a refresh whose turn comes exactly with the last edit
                # takes over
                if self.pipeline.write_next(ended=ended) is not None:
                    continue
                if ended:
                    break
                woken.wait(_IDLE_SECONDS)
                woken.clear()
        finally:
            if pump is not None:
                pump.close()
        if pump is not None and pump.error is not None:
            raise pump.error

    def _finish(self) -> None:
        head = self.pipeline.head()
        rows = self._journal.requests("applied")
        final: Measurement | None = None
        timeline = self.pipeline.timeline
        if rows:
            wanted = self._config.evaluation.final
            by_time = sorted(rows, key=lambda row: (row.applied_in or 0, row.seq))
            chosen = by_age([row.id for row in by_time], None if wanted == "all" else wanted)
            counted = {by_time[at].id for at in chosen}
            # the timeline's last point is read off this evaluation, so its facts are asked too
            also = {request.id for request in timeline.sample()} if self._config.evaluation.every else set()
            requests = [row.request for row in rows if row.id in counted | also]
            of = "" if len(counted) == len(rows) else f" of {len(rows)}"
            self._display.say(
                f"final evaluation of {len(counted)}{of} facts on {len(self._config.evaluation.arms)} arms"
            )
            everything = timeline.measure(requests, head, FINAL, latency=True, counted=counted).result()
            timeline.close_with(everything, head)
            final = everything.only(counted)
        write_outputs(
            self._config,
            self._journal,
            self._output,
            model_digest=self._model_digest,
            final=final,
            rows=rows,
            base_perplexity=self.pipeline.base_perplexity.result(),
            base_perplexities=self.pipeline.measurer.base_perplexities().result(),
            started_at=self._started_at,
            wall_seconds=timeline.elapsed(),
            covariance_seconds=self.pipeline.refreshing.seconds,
            evaluation_seconds=self.pipeline.measurer.seconds,
        )
        for name in ("summary.json", "report.html", "resolved.yaml", "facts.jsonl"):
            self._tracker.log_artifact(self._output / name)
