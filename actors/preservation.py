"""Workers that put benchmarks to frozen versions, the items shared out among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import ray
from torch import Tensor

from errata.actors.evaluation import EvaluationPool
from errata.actors.runtime import WorkerGroup, make_actor
from errata.actors.settings import ModelSpec, RayConfig, RoleConfig
from errata.actors.workers.evaluation import EvaluationSettings
from errata.actors.workers.model import VersionedModel, load_for, yield_to_others
from errata.editing.request import EditRequest
from errata.evaluation.preservation.battery import Item, Outcomes, Suite, merged
from errata.evaluation.preservation.suites import BatteryConfig, build_suites
from errata.evaluation.sampling import SamplingEngine
from errata.retrieval.embedder import HashEmbedderConfig, SentenceEmbedderConfig, build_embedder
from errata.retrieval.scr import ScrConfig

_SHARES_PER_WORKER = 3
"""More than one, so that a slow share at the end holds little up; each costs a batch that is not full."""


class PreservationWorker:
    """A model, shown in one version or another, and the suites. Plain class; `PreservationActor` is its shell."""

    def __init__(
        self,
        spec: ModelSpec,
        role: RoleConfig,
        battery: BatteryConfig,
        requests: Sequence[EditRequest],
        embedder: SentenceEmbedderConfig | HashEmbedderConfig,
    ) -> None:
        self._battery = battery
        wanted = "uncertainty" in battery.tasks
        self.suites: Mapping[str, Suite]
        # before the model: what a user got wrong should not cost the loading of one
        self.suites, self._held = build_suites(
            battery,
            requests=requests,
            embedding=build_embedder(embedder) if wanted else None,
            embedder=embedder.model_dump(mode="json"),
        )
        self._versioned = VersionedModel(load_for(role, spec))
        self._engine = SamplingEngine(self._versioned.model)

    def ask(self, suite: str, items: Sequence[Item], version: str, weights: Mapping[int, Tensor]) -> Outcomes:
        """Put items of a suite to a version; ``weights`` are its edited maps by layer."""
        self._versioned.show(version, weights)
        return self.suites[suite].run(self._engine, items, seed=self._battery.seed)


@ray.remote
class PreservationActor:
    """Shell of `PreservationWorker`."""

    def __init__(self, spec: ModelSpec, role: RoleConfig, *settings: Any) -> None:
        yield_to_others(role)
        self._worker = PreservationWorker(spec, role, *settings)

    def ask(self, suite: str, items: Sequence[Item], version: str, weights: Mapping[int, Tensor]) -> Outcomes:
        return self._worker.ask(suite, items, version, weights)


def _ask(suite: str, items: Sequence[Item], version: str, weights: Any, actor: Any) -> Any:
    return actor.ask.remote(suite, items, version, weights)


class PreservationPool(EvaluationPool):
    """Shares the items of a suite out; a share whose worker died is done again by a new one."""

    def __init__(self, config: RayConfig, spec: ModelSpec, *settings: Any) -> None:
        """``settings`` are the further arguments of `PreservationWorker`."""
        role = config.evaluation
        workers = WorkerGroup(
            lambda: make_actor(PreservationActor, role, spec, role, *settings),
            max(1, config.evaluation_workers),
            most_revivals=config.max_revivals,
            within=config.revival_seconds,
            what="evaluation workers",
        )
        super().__init__(config, spec, EvaluationSettings(ScrConfig(), ("edited",)), workers)

    def ask(self, suite: str, items: Sequence[Item], version: str, weights: Mapping[int, Tensor]) -> Outcomes:
        """Outcomes in the order of the items, whoever found them."""
        shares = max(1, min(len(items), len(self.actors) * _SHARES_PER_WORKER))
        parts = [list(items[at::shares]) for at in range(shares)]
        reference = ray.put(dict(weights))
        outcomes = self._spread([partial(_ask, suite, part, version, reference) for part in parts])
        together = merged(outcomes)
        place = {item: at for at, item in enumerate(item for part in parts for item in part)}
        return {metric: [values[place[item]] for item in items] for metric, values in together.items()}
