"""Re-estimating the covariance while edits go on.

Under the deterministic schedule a refresh triggered after e edits takes effect at the first batch boundary at or
after e + lag edits, waiting for the estimate if it is late; so a run over the same stream swaps at the same places.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from errata.actors.workers.covariance import Estimate, EstimateJob, EstimateProgress
from errata.editing.covariance import KeyCovariance
from errata.editing.estimation.diagnostics import Documents, sanity
from errata.orchestrator.covariance.drift import Look, Looked
from errata.orchestrator.publish.sampling import Estimating

logger = logging.getLogger(__name__)

REFUSED = "refresh_refused"
"""Kind of the journal's event for a refresh that was not let in."""


def crossed(before: int, after: int, every: int | None) -> int | None:
    """The multiple of ``every`` that was passed going from ``before`` to ``after`` edits, the last one if several."""
    if every is None or after // every == before // every:
        return None
    return after // every * every


@dataclass(frozen=True)
class PendingRefresh:
    """A refresh under way."""

    triggered_at: int
    swap_at: int
    version: str
    future: Future[Estimate | Looked]

    def due(self, edits: int) -> bool:
        """Whether the swap belongs at this batch boundary."""
        return edits >= self.swap_at


class Refresher:
    """Runs estimates in the background, one at a time."""

    def __init__(self, estimator: Estimating) -> None:
        self._estimator = estimator
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="refresh")

    def start(
        self,
        job: EstimateJob,
        weights: Any,
        *,
        triggered_at: int,
        lag: int,
        progress: Callable[[EstimateProgress], None] | None = None,
        look: Look | None = None,
    ) -> PendingRefresh:
        """Begin an estimate on a frozen version; with ``look`` it is made only if the probe before it finds drift."""
        future = self._pool.submit(self._run, look, job, weights, progress)
        return PendingRefresh(triggered_at, triggered_at + lag, job.version, future)

    def _run(
        self, look: Look | None, job: EstimateJob, weights: Any, progress: Callable[[EstimateProgress], None] | None
    ) -> Estimate | Looked:
        if look is None:
            return self._estimator.estimate(job, weights, progress, self._stop)
        probe = self._estimator.estimate(look.job, weights, None, self._stop)
        verdict = look.judge(probe)
        if not verdict.reasons:
            return Looked(verdict, None, probe.seconds)
        estimate = self._estimator.estimate(job, weights, progress, self._stop)
        return Looked(verdict, estimate, probe.seconds + estimate.seconds)

    def estimate(
        self, job: EstimateJob, weights: Any, progress: Callable[[EstimateProgress], None] | None = None
    ) -> Estimate:
        """One estimate that the caller waits for; it too is given up when all are."""
        return self._estimator.estimate(job, weights, progress, self._stop)

    def give_up(self) -> None:
        """Have what is under way end with an error, from any thread; nothing is begun any more."""
        self._stop.set()

    def close(self) -> None:
        """Give up whatever runs; returns when it has ended, within a second."""
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)


def blend(old: KeyCovariance, new: KeyCovariance, weight: float, kind: str = "ema") -> KeyCovariance:
    """Weighted average of two means: (1 - weight) C_old + weight C_new, counted as the new one's tokens.

    With the covariance in force as the old one it is an exponential moving average over the refreshes (``ema``), with
    the run's first one a mixture that never forgets the unedited model (``mixture``).
    """
    source: Mapping[str, Any] = {"kind": kind, "weight": weight, "old": old.digest, "new": new.digest}
    sums = {layer: ((1.0 - weight) * old.mean(layer) + weight * new.mean(layer)) * new.tokens for layer in new.layers}
    return KeyCovariance(sums, new.tokens, source, new.record)


def refusal(first: Documents | None, new: Documents, bound: float) -> str | None:
    """Why a refresh would freeze damage in, or None where nothing speaks against it.

    Args:
        first: (NLL, tokens) per document of the first estimate; None where they were not kept.
        new: the same of the refresh.
        bound: largest divergence that is let in, nats.
    """
    if first is None:
        return None
    sane, divergence = sanity(first, new, bound)
    if sane:
        return None
    return f"the model's own text has moved away: JSD of per-document NLL {divergence:.3f}, allowed {bound:g}"
