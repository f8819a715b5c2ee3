"""Machines come and go in the middle of an estimate; prints what came of it.

It begins with one machine that has room for one worker of the two, and one more is asked for. The second machine comes
late, with room for two; then the first one goes, with its worker and the sums of its blocks. In a process of its own:
the tests beside it share a Ray of another shape.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import ray
from ray._private import state
from ray.cluster_utils import Cluster

from errata.actors.covariance import CovarianceEstimator
from errata.actors.settings import ModelSpec, RayConfig, RoleConfig
from errata.actors.workers.covariance import EstimateJob, EstimateProgress
from errata.editing.estimation.selfgen import SelfGenerationConfig

SEQUENCES = 40
LONGEST = 90.0
"""Seconds for anything to happen."""


def job() -> EstimateJob:
    """Twenty blocks of two sequences, each sum large enough to lie in the object store of the machine that made it."""
    generation = SelfGenerationConfig(max_new_tokens=6, sequences_per_unit=2, slots=2)
    return EstimateJob(generation=generation, layers=(0, 1, 2, 3), sequences=SEQUENCES, version="base")


def workers() -> list[tuple[str, str]]:
    """(state, node) of the workers that are not dead."""
    return [
        (actor["State"], actor["Address"]["NodeID"])
        for actor in state.actors().values()
        if actor["ActorClassName"] == "UnitActor" and actor["State"] != "DEAD"
    ]


def wait_until(what: str, there: Any) -> None:
    """Poll."""
    until = time.monotonic() + LONGEST
    while not there():
        if time.monotonic() > until:
            raise TimeoutError(f"{what}; workers: {workers()}")
        time.sleep(0.2)


def main(checkpoint: str) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    first = cluster.add_node(num_cpus=2, resources={"generation": 1})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    role = RoleConfig(resources={"generation": 1})
    config = RayConfig(generation=role, generation_workers=2, generation_workers_max=3)
    estimator = CovarianceEstimator(config, ModelSpec(name=checkpoint))
    nodes: dict[str, Any] = {"first": first.node_id}
    told: dict[str, Any] = {}

    def happen(progress: EstimateProgress) -> None:
        if progress.share >= 0.2 and "late" not in nodes:
            told["before"] = sorted(worker for worker, _ in workers())
            late = cluster.add_node(num_cpus=2, resources={"generation": 2})
            nodes["late"] = late.node_id
            # the first machine's worker cannot end the estimate meanwhile: it is given no block while this waits
            wait_until("the late workers", lambda: workers().count(("ALIVE", late.node_id)) == 2)
            told["came_at"] = progress.share
        if progress.share >= 0.7 and "gone_at" not in told:
            told["gone_at"] = progress.share
            cluster.remove_node(first, allow_graceful=False)

    found = estimator.estimate(job(), {}, happen)
    # the two that stay, one of which takes the place of the one that ended with the estimate
    wait_until("those that stay", lambda: [place for _, place in workers()] == [nodes["late"]] * 2)
    estimator.close()
    by_node = {name: found.blocks_by_node.get(node, 0) for name, node in nodes.items()}
    told |= {
        "blocks": by_node,
        "digest": found.covariance.digest,
        "tokens": found.covariance.tokens,
        "documents": found.documents,
        "repeated": found.repeated_blocks,
    }
    print(json.dumps(told))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
