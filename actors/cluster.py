"""Everything the orchestrator needs of Ray, behind one object."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from errata.actors.clients import EditorClient, MemoryClient
from errata.actors.connection import connect, disconnect
from errata.actors.covariance import CovarianceEstimator
from errata.actors.evaluation import EvaluationPool
from errata.actors.placement import Reservation
from errata.actors.settings import ModelSpec, RayConfig
from errata.actors.sharded.places import RankReservation
from errata.actors.shared import evaluators_on, shared_workers
from errata.actors.workers.editor import ContextSpec
from errata.actors.workers.evaluation import EvaluationSettings
from errata.editing.reverting import HistoryItem
from errata.retrieval.index import IndexConfig
from errata.retrieval.memory import MemoryEntry
from errata.retrieval.router import RouterConfig

_T = TypeVar("_T")


class Cluster:
    """A connection to Ray and the actors made through it; a context manager that ends what it started."""

    def __init__(self, config: RayConfig, spec: ModelSpec) -> None:
        self._reservation = RankReservation(config, spec.ranks) if spec.parallel else Reservation(config)
        self.config, self.spec = self._reservation.config, spec
        self._owns_ray = False
        self._parts: list[Any] = []
        self._shared = shared_workers(self.config, spec) if config.evaluation_workers == 0 else None

    def __enter__(self) -> Self:
        self._owns_ray = connect(self.config, self.spec.ranks)
        try:
            self._reservation.take()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for part in reversed(self._parts):
            part.close()
        self._parts = []
        self._reservation.give_back()
        if self._owns_ray:
            disconnect()

    def estimator(self) -> CovarianceEstimator:
        """Workers that estimate covariances."""
        return self._keep(CovarianceEstimator(self.config, self.spec, self._shared))

    def editor(
        self, editor_config: Any, contexts: ContextSpec, history: Callable[[], Iterable[HistoryItem]]
    ) -> EditorClient:
        """The stateful editor."""
        return self._keep(EditorClient(self.config, self.spec, editor_config, contexts, history))

    def memory(
        self,
        embedder_config: Any,
        index_config: IndexConfig,
        entries: Callable[[], Sequence[MemoryEntry]],
        kept_in: Path | None = None,
        router: RouterConfig | None = None,
    ) -> MemoryClient:
        """The external memory; vectors of its statements are kept in a directory where one is given."""
        return self._keep(MemoryClient(self.config, embedder_config, index_config, entries, kept_in, router))

    def evaluators(self, settings: EvaluationSettings) -> EvaluationPool:
        """Workers that evaluate frozen versions."""
        if self._shared is not None:
            return self._keep(evaluators_on(self._shared, self.config, self.spec, settings))
        return self._keep(EvaluationPool(self.config, self.spec, settings))

    def _keep(self, part: _T) -> _T:
        self._parts.append(part)
        return part
