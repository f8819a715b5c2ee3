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

from actors.covariance import CovarianceEstimator, Estimate, EstimateJob, EstimateProgress
from editing.covariance import KeyCovariance

logger = logging.getLogger(__name__)


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
    future: Future[Estimate]

    def due(self, edits: int) -> bool:
        """Whether the swap belongs at this batch boundary."""
        return edits >= self.swap_at


class Refresher:
    """Runs estimates in the background, one at a time."""

    def __init__(self, estimator: CovarianceEstimator) -> None:
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
    ) -> PendingRefresh:
        """Begin an estimate on a frozen version."""
        future = self._pool.submit(self._estimator.estimate, job, weights, progress, self._stop)
        return PendingRefresh(triggered_at, triggered_at + lag, job.version, future)

    def close(self) -> None:
        """Give up whatever runs."""
        self._stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)


def blend(old: KeyCovariance, new: KeyCovariance, weight: float) -> KeyCovariance:
    """Exponential moving average of two means: (1 - weight) C_old + weight C_new, counted as the new one's tokens."""
    source: Mapping[str, Any] = {"kind": "ema", "weight": weight, "old": old.digest, "new": new.digest}
    sums = {layer: ((1.0 - weight) * old.mean(layer) + weight * new.mean(layer)) * new.tokens for layer in new.layers}
    return KeyCovariance(sums, new.tokens, source)
