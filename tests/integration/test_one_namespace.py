"""In a worker of Ray, too, everything is imported under `errata`: else there would be two copies of a class."""

from __future__ import annotations

import ray

from errata.actors.settings import ModelSpec, RoleConfig
from tests.conftest import bare_rooms


@ray.remote(num_cpus=0.5)
class Looking:
    """What an actor with the plain classes has imported."""

    def __init__(self, spec: ModelSpec, role: RoleConfig) -> None:
        from errata.actors.workers.covariance import UnitWorker

        self._worker = UnitWorker(spec, role)

    def bare(self) -> list[str]:
        return bare_rooms()


def test_a_worker_holds_no_bare_room(tiny_checkpoint, local_ray) -> None:
    actor = Looking.remote(ModelSpec(name=str(tiny_checkpoint)), RoleConfig())
    assert ray.get(actor.bare.remote(), timeout=120) == []
    ray.kill(actor)
