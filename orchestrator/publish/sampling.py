"""The live version on the server that samples for a refresh: loaded as an adapter before, unloaded after.

A covariance that is estimated anew from the live model needs what the *edited* model says. Where a vLLM server does the
sampling, it holds the base; so every refresh puts its version there first, under a name that no client uses. All of it
happens in the thread of the estimate: editing does not wait.
"""

from __future__ import annotations

import logging
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any, Final, Protocol

from errata.actors.workers.covariance import Estimate, EstimateJob, EstimateProgress
from errata.editing.estimation.sampling_server import SamplingServerConfig
from errata.orchestrator.config.publish import PublishConfig
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.artifacts import ArtifactStore
from errata.orchestrator.journal.rows import Version
from errata.orchestrator.publish.adapter import folder_of, make_adapter
from errata.orchestrator.publish.vllm import ServerError, VllmServer

logger = logging.getLogger(__name__)

EVENT: Final = "sampling"
"""Kind of the journal's events: a version was loaded into the sampling server, or unloaded."""
_FOLDER: Final = "sampling"


class Estimating(Protocol):
    """What is needed of `errata.actors.covariance.CovarianceEstimator`."""

    def estimate(
        self,
        job: EstimateJob,
        weights: Any,
        progress: Callable[[EstimateProgress], None] | None = None,
        stop: threading.Event | None = None,
    ) -> Estimate: ...


class LiveSampling:
    """An estimator that gives the sampling server the version it is to sample from; without such a server, a
    plain one.

    Args:
        config: where adapters lie, and which rank the server takes: as for publication.
        journal: open for writing, of the run whose versions are sampled from; its directory is that of ``store``.
    """

    def __init__(self, estimator: Estimating, config: PublishConfig, journal: Journal, store: ArtifactStore) -> None:
        self._estimator, self._journal, self._store = estimator, journal, store
        folder = folder_of(config, store.root) / _FOLDER  # apart from what publication sweeps
        on_server = config.adapters_on_server and str(PurePosixPath(config.adapters_on_server) / _FOLDER)
        self._config = config.model_copy(update={"adapters": str(folder), "adapters_on_server": on_server})

    def estimate(
        self,
        job: EstimateJob,
        weights: Any,
        progress: Callable[[EstimateProgress], None] | None = None,
        stop: threading.Event | None = None,
    ) -> Estimate:
        """As the estimator's own.

        Raises:
            UserError: the version does not fit into the rank that the server takes.
            ServerError: the server does not take the adapter.
        """
        server = job.generation.server
        version = self._version(job.version)
        if server is None or job.corpus is not None or version is None:
            return self._estimator.estimate(job, weights, progress, stop)
        with self._served(server, version) as name:
            named = job.generation.model_copy(update={"server": server.model_copy(update={"model": name})})
            return self._estimator.estimate(job.model_copy(update={"generation": named}), weights, progress, stop)

    def _version(self, digest: str) -> Version | None:
        """The commit of that digest; None where it says what the base says, which the server holds."""
        sequences = self._journal.sequences_of(digest)
        if not sequences or sequences[0] == 0 or not self._journal.held_count(sequences[-1]):
            return None
        return self._journal.version(sequences[-1])

    def _name(self, version: Version) -> str:
        return f"{self._config.served_name}-sampling-v{version.sequence}-{version.digest[:8]}"

    @contextmanager
    def _served(self, config: SamplingServerConfig, version: Version) -> Iterator[str]:
        adapter = make_adapter(self._journal, self._store, version, self._config, self._store.root)
        name = self._name(version)
        url = config.url.rstrip("/")
        place = {"server": url, "sequence": version.sequence, "version": version.digest, "adapter": name}
        try:
            with VllmServer(url, timeout=self._config.timeout_seconds) as server:
                self._sweep(server)
                self._journal.record_event(EVENT, {"what": "loading", "rank": adapter.rank, **place})
                server.load(name, adapter.on_server)
                try:
                    yield name
                finally:
                    self._drop(server, name, place)
        finally:
            shutil.rmtree(adapter.path, ignore_errors=True)

    def _sweep(self, server: VllmServer) -> None:
        """Unload what an earlier estimate of this run has left, because it was killed."""
        for name in sorted(server.served().adapters):
            number = re.fullmatch(rf"{re.escape(self._config.served_name)}-sampling-v(\d+)-[0-9a-f]{{8}}", name)
            sequence = int(number[1]) if number else 0
            if 0 < sequence <= self._journal.head().sequence and name == self._name(self._journal.version(sequence)):
                server.unload(name)

    def _drop(self, server: VllmServer, name: str, place: dict[str, Any]) -> None:
        try:
            server.unload(name)
            self._journal.record_event(EVENT, {"what": "unloaded", **place})
        except ServerError as error:
            logger.warning("%s still holds %s, until the next refresh: %s", server.url, name, error)
