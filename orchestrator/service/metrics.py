"""What Prometheus reads: counters kept as things happen, and the journal's figures as they are when it asks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.rows import STATES, shown_state
from errata.orchestrator.run.repairing import REPAIR
from errata.orchestrator.service.core import ServiceCore

_ACCEPT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_BATCH_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_QUERY_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """One registry per service, so that two in one process do not mix.

    Args:
        journal: for reading.
        spooled: how many points wait to be delivered to tracking.
        guard: status of the guard, with the fields of `errata.orchestrator.guard.GuardStatus`; None without one.
    """

    def __init__(
        self,
        core: ServiceCore,
        journal: Journal,
        *,
        spooled: Callable[[], int] = lambda: 0,
        guard: Callable[[], Any] | None = None,
    ) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_State(core, journal, spooled, guard))
        make: dict[str, Any] = {"registry": self.registry}
        self.accept = Histogram(
            "errata_accept_seconds", "From a whole body to the journal's answer.", buckets=_ACCEPT_BUCKETS, **make
        )
        self.batch = Histogram("errata_batch_seconds", "One batch, to its commit.", buckets=_BATCH_BUCKETS, **make)
        self.query = Histogram("errata_query_seconds", "One call of questions.", buckets=_QUERY_BUCKETS, **make)
        self.edits = Counter("errata_edits_written", "Edits written since the start of this process.", **make)
        self.calls = Counter("errata_http_requests", "Calls.", ["method", "route", "status"], **make)
        self.decisions = Counter(
            "errata_decisions", "Questions by arm and by whether a statement was chosen.", ["arm", "decision"], **make
        )
        self.landed = Counter(
            "errata_edits_landed", "Edits that the model said when they were written, since the start.", **make
        )
        self.weak = Counter(
            "errata_edits_weak", "Edits that were written and that the model did not say, since the start.", **make
        )
        self.repaired = Counter(
            "errata_edits_repaired", "Edits that were written again, as the model did not say them any more.", **make
        )
        core.batch_seconds.append(self._batch)
        core.repaired.append(self.repaired.inc)
        core.verified.append(self._verified)

    def answered(self, method: str, route: str, status: int) -> None:
        """Count a call."""
        self.calls.labels(method, route, str(status)).inc()

    def decided(self, arm: str, chosen: bool) -> None:
        """Count what the memory or the router decided about a question."""
        self.decisions.labels(arm, "in" if chosen else "out").inc()

    def _batch(self, seconds: float, edits: int) -> None:
        self.batch.observe(seconds)
        self.edits.inc(edits)

    def _verified(self, landed: int, weak: int) -> None:
        self.landed.inc(landed)
        self.weak.inc(weak)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)


class _State(Collector):
    def __init__(
        self, core: ServiceCore, journal: Journal, spooled: Callable[[], int], guard: Callable[[], Any] | None
    ) -> None:
        self._core, self._journal, self._spooled, self._guard = core, journal, spooled, guard
        self._seen: tuple[int, float] | None = None
        """The edit that has waited longest, and since when by the monotonic clock."""

    def _oldest(self) -> float:
        """Seconds, by the clock of acceptance or since it was first seen waiting here, whichever is more: the former
        knows of other processes before this one, the latter of a clock that was set back."""
        oldest = self._journal.oldest_waiting()
        if oldest is None:
            self._seen = None
            return 0.0
        number, accepted_at = oldest
        if self._seen is None or self._seen[0] != number:
            self._seen = number, time.monotonic()
        return max((datetime.now(UTC) - accepted_at).total_seconds(), time.monotonic() - self._seen[1])

    def describe(self) -> Iterator[Metric]:
        """Nothing is collected at registration."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        core, counts, head = self._core, self._journal.counts(), self._journal.head()
        edits = GaugeMetricFamily("errata_edits", "Edits of the journal by state.", labels=["state"])
        for state in STATES:
            edits.add_metric([shown_state(state)], getattr(counts, state))
        yield edits
        yield _gauge("errata_queue_edits", "Edits that wait to be written.", counts.accepted)
        yield _gauge(
            "errata_queue_bytes", "Bytes of edits that wait to be written, at most.", core.acceptor.waiting_bytes
        )
        yield _gauge("errata_queue_oldest_seconds", "How long the oldest edit has waited.", self._oldest())
        yield _gauge("errata_evaluations_open", "Evaluations asked for that wait or run.", core.open_evaluations)
        yield _gauge("errata_queue_submissions", "Submissions that wait for the journal.", core.acceptor.depth)
        yield _gauge("errata_queue_commands", "Commands that wait for the writer.", core.queued)
        yield _gauge("errata_version_sequence", "Number of the newest version.", head.sequence)
        yield _gauge("errata_version_edits", "Edits applied up to the newest version.", head.edits)
        yield _gauge("errata_refreshes", "Covariance refreshes begun.", counts.refreshes)
        yield _gauge("errata_covariance_swaps", "Covariances that took over.", counts.swaps)
        yield _gauge("errata_evaluations", "Evaluations in the journal.", counts.evaluations)
        yield _gauge("errata_accept_transactions", "Transactions that took submissions in.", core.acceptor.transactions)
        yield _gauge("errata_ready", "1 when the pipeline has started and works.", core.ready)
        yield _gauge("errata_paused", "1 while nothing is written.", core.paused is not None)
        yield _gauge("errata_tracking_spool", "Points that wait to be delivered to tracking.", self._spooled())
        yield from self._repaired()
        yield from self._measured()
        if self._guard is not None:
            status = self._guard()
            yield _gauge("errata_guard_checks", "Versions the guard has checked.", status.checks)
            yield _gauge("errata_guard_breaches", "Breaches the guard has found.", status.breaches)
            yield _gauge("errata_guard_good_sequence", "Newest version found good.", status.good_sequence)

    def _repaired(self) -> Iterator[Metric]:
        """The newest round of repair."""
        for event in self._journal.event_page(1, kind=REPAIR):
            asked, lost = len(event.data["asked"]), len(event.data["lost"])
            if asked:
                share = 1 - lost / asked
                yield _gauge(
                    "errata_repair_said_ratio", "Share of the newest sample of old facts that was said.", share
                )
            yield _gauge("errata_repair_edits", "Edits at which old facts were asked last.", event.data["at"])

    def _measured(self) -> Iterator[Metric]:
        newest = {row.kind: row for row in self._journal.newest_evaluations()}
        arms = GaugeMetricFamily(
            "errata_evaluation", "Newest evaluation, by arm and metric.", labels=["kind", "arm", "metric"]
        )
        perplexity = GaugeMetricFamily("errata_perplexity", "On held-out text, newest.", labels=["kind"])
        at = GaugeMetricFamily("errata_evaluation_edits", "Edits at the newest evaluation.", labels=["kind"])
        for kind, row in sorted(newest.items()):
            for arm, values in row.metrics.get("arms", {}).items():
                for name, value in values.items():
                    if value is not None:
                        arms.add_metric([kind, arm, name], value)
            if row.metrics.get("perplexity") is not None:
                perplexity.add_metric([kind], row.metrics["perplexity"])
            at.add_metric([kind], row.edits)
        yield from (arms, perplexity, at)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=float(value))
