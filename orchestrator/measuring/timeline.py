"""Measuring frozen versions and keeping the figures: points of the timeline, and evaluations that somebody asks for."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Final

from errata.editing.request import EditRequest
from errata.editing.wording import counted as counted_of
from errata.orchestrator.config.evaluation import EvaluationConfig
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.fail_points import reach
from errata.orchestrator.journal.rows import RequestRow, Version
from errata.orchestrator.measuring.measurer import Measurement, Measurer
from errata.orchestrator.progress import Display
from errata.orchestrator.tracking import names
from errata.orchestrator.tracking.tracker import NullTracker, Tracker

TIMELINE: Final = names.TIMELINE
FINAL: Final = "final"
_ASKED: Final = ("accepted", "applied", "superseded")


_STAGES: Final = {TIMELINE: "timeline", FINAL: "final evaluation", "asked": "requested evaluation"}
"""What people read of each kind of evaluation."""
_LAST_FIGURES: Final = "last figures"


class Timeline:
    """What is measured as a run goes on; every figure is journaled, and handed to the tracker.

    Args:
        weights: gives a reference to the weights as they are now.
        whole: every request there will be is in the journal before the first point, as with a file that is read once.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        journal: Journal,
        measurer: Measurer,
        weights: Callable[[], Any],
        *,
        tracker: Tracker | NullTracker,
        display: Display,
        whole: bool = True,
    ) -> None:
        self._config, self._journal, self._measurer, self._weights = config, journal, measurer, weights
        self._tracker, self._display, self._whole = tracker, display, whole
        self._started = time.perf_counter()
        self._points: list[Future[Measurement]] = []
        self._has_begun = False

    def elapsed(self) -> float:
        """Wall seconds since the pipeline was made."""
        return time.perf_counter() - self._started

    def sample(self) -> list[EditRequest]:
        """The fixed facts of the timeline: from the edits up to its first point, so that every point has them all.

        One that was reverted is not asked any more; the others stay the same.
        """
        early = self._early()
        count = min(self._config.sample, len(early))
        chosen = [early[i * len(early) // count] for i in range(count)] if count else []
        return [row.request for row in chosen if row.state in _ASKED]

    def _early(self) -> list[RequestRow]:
        return self._journal.first_tried(self._config.every)

    def missing(self, version: Version) -> bool:
        """Whether a point is wanted at this version and not in the journal yet."""
        if self._config.every is None:
            return False
        return version.edits not in self.measured()

    def measured(self) -> set[int]:
        """Numbers of edits at which a point is in the journal."""
        return {row.edits for row in self._journal.evaluations(TIMELINE)}

    def begin(self, norms: Mapping[int, float] | None = None) -> None:
        """Measure the timeline's facts on the unedited model, in the background, unless that was done.

        ``norms`` are those of its matrices, where an editor that holds them is at hand.

        A service starts with no facts to ask about; the first point that has them brings this one along. Neither the
        editor nor the memory is needed for it, so a restart never goes back to the base for its sake.
        """
        base = self._journal.base()
        if self._has_begun or not self.missing(base):
            return
        if not self._whole and len(self._early()) < (self._config.every or 0):
            return  # the points after it would ask about more facts
        sample = self.sample()
        if sample:
            self._has_begun = True
            base = replace(base, norms=norms or {})
            self._points.append(self._submit(sample, {}, base, TIMELINE, remembered=False))

    def point(self, version: Version) -> None:
        """Measure the timeline's facts on the version as it stands, in the background, unless that was done."""
        if not self.missing(version):
            return
        self.begin()
        sample = self.sample()
        if sample:
            self._points = [point for point in self._points if not point.done() or point.exception()]
            self._points.append(self.measure(sample, version, TIMELINE))

    def measure(
        self,
        requests: Sequence[EditRequest],
        version: Version,
        kind: str,
        *,
        latency: bool = False,
        counted: Collection[str] | None = None,
        wanted: Callable[[], bool] | None = None,
    ) -> Future[Measurement]:
        """Measure facts on the version as it stands, in the background; the figures are kept under ``kind``.

        ``counted`` are the facts whose figures these are, where others are asked beside them.
        """
        return self._submit(requests, self._weights(), version, kind, latency=latency, counted=counted, wanted=wanted)

    def _submit(
        self,
        requests: Sequence[EditRequest],
        weights: Any,
        version: Version,
        kind: str,
        *,
        latency: bool = False,
        remembered: bool = True,
        counted: Collection[str] | None = None,
        wanted: Callable[[], bool] | None = None,
    ) -> Future[Measurement]:
        return self._measurer.submit(
            requests,
            weights,
            edits=version.edits,
            version=version.digest,
            latency=latency,
            remembered=remembered,
            free_texts=kind == FINAL,
            wanted=wanted,
            progress=lambda done: self._show(kind, done, len(requests), version.edits),
            done=lambda result: self._keep(
                result if counted is None else result.only(counted), version, kind, len(counted or requests)
            ),
        )

    def close_with(self, final: Measurement, head: Version) -> None:
        """The end as a point of the timeline: the same facts as at the others, out of the final evaluation."""
        if self._config.every is None:
            return
        wanted = {request.id for request in self.sample()}
        records = tuple(r for r in final.evaluation.records if r.request_id in wanted)
        if records:
            point = replace(final, evaluation=replace(final.evaluation, records=records), query_seconds={}, free={})
            self._keep(point, head, TIMELINE, len(records))

    def wait(self) -> None:
        """Return when every point that was begun is in the journal; raises what kept one from it."""
        for future in self._points:
            future.result()

    def _keep(self, result: Measurement, version: Version, kind: str, facts: int) -> None:
        metrics = {
            "arms": result.arms(),
            "choice": result.choices(),
            "perplexity": result.perplexity,
            "perplexities": dict(result.perplexities),
            "facts": facts,
            "skipped_probes": result.evaluation.skipped,
            "norms": {str(k): v for k, v in version.norms.items()},
            "delta_norms": {str(k): v for k, v in version.delta_norms.items()},
            "seconds": self.elapsed(),
            "evaluation_seconds": result.seconds,
        }
        self._journal.record_evaluation(result.version, result.edits, kind, metrics)
        reach("after_evaluation")
        flat = names.perplexities(kind, result.perplexity, result.perplexities)
        for arm, values in result.arms().items():
            flat |= names.arm_figures(kind, arm, values)
        self._tracker.log_metrics(flat, step=result.edits)
        if kind == FINAL:
            self._display.update(_LAST_FIGURES, 1, 1)

    def _show(self, kind: str, done: int, facts: int, edits: int) -> None:
        note = f"facts, after {counted_of(edits, 'edit')}"
        self._display.update(_STAGES.get(kind, kind), done, facts, note, alive=True)
        if kind == FINAL and done == facts:
            self._display.update(_LAST_FIGURES, 0, 1, "perplexity, times and texts", alive=True)
