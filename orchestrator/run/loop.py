"""A run over a stream that is there from the beginning: batch after batch, then the measurements and the files.

The run and the service share one course, `errata.orchestrator.run.pipeline.Pipeline`; this is what a run adds to it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from errata.editing.wording import counted as counted_of
from errata.evaluation.strata import by_age
from errata.orchestrator.config.evaluation import EvaluationConfig
from errata.orchestrator.journal.rows import RequestRow
from errata.orchestrator.measuring.measurer import Measurement
from errata.orchestrator.measuring.timeline import FINAL
from errata.orchestrator.progress import Display
from errata.orchestrator.run.attached import Attached
from errata.orchestrator.run.pipeline import Pipeline
from errata.orchestrator.sources import Pump, Source
from errata.orchestrator.sources.base import TakesRequests

_IDLE_SECONDS = 0.5
"""How long an idle stream is waited for before the clock is looked at again: a batch may be due by its age."""


@dataclass(frozen=True)
class Ending:
    """What is known of a run once nothing waits any more."""

    final: Measurement | None
    """Every applied edit on every arm; None where nothing was applied."""
    rows: Sequence[RequestRow]
    """The applied requests."""
    base_perplexity: float | None
    base_perplexities: Mapping[str, float]
    wall_seconds: float
    covariance_seconds: float
    evaluation_seconds: float


class RunLoop:
    """One run from the state of its journal to its end, or to an interruption that loses nothing.

    Args:
        source: the stream, where it goes on.
        intake: takes what comes of it into the journal.
        write: called at the end with what there is to be written.
        evaluation: which facts and arms the final evaluation asks.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        attached: Attached,
        source: Source | None,
        intake: TakesRequests,
        write: Callable[[Ending], None],
        *,
        evaluation: EvaluationConfig,
        display: Display,
    ) -> None:
        self.pipeline, self.attached = pipeline, attached
        self._journal, self._write = pipeline.journal, write
        self._source, self._intake = source, intake
        self._evaluation, self._display = evaluation, display

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
        """Stop what runs in the background; nothing journaled is lost."""
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
                with self._display.working(False):
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
            wanted = self._evaluation.final
            by_time = sorted(rows, key=lambda row: (row.applied_in or 0, row.seq))
            chosen = by_age([row.id for row in by_time], None if wanted == "all" else wanted)
            counted = {by_time[at].id for at in chosen}
            # the timeline's last point is read off this evaluation, so its facts are asked too
            also = {request.id for request in timeline.sample()} if self._evaluation.every else set()
            requests = [row.request for row in rows if row.id in counted | also]
            facts = counted_of(len(rows), "fact")
            facts = facts if len(counted) == len(rows) else f"{len(counted)} of {facts}"
            self._display.say(f"final evaluation: {facts}, {counted_of(len(self._evaluation.arms), 'arm')}")
            everything = timeline.measure(requests, head, FINAL, latency=True, counted=counted).result()
            timeline.close_with(everything, head)
            final = everything.only(counted)
        self._write(
            Ending(
                final,
                rows,
                base_perplexity=self.pipeline.base_perplexity.result(),
                base_perplexities=self.pipeline.measurer.base_perplexities().result(),
                wall_seconds=timeline.elapsed(),
                covariance_seconds=self.pipeline.refreshing.seconds,
                evaluation_seconds=self.pipeline.measurer.seconds,
            )
        )
