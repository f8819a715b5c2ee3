"""A machine with finished block sums on it is taken away in the middle of an estimate; prints what came of it.

In a process of its own: the tests beside it share a Ray of another shape.
"""

from __future__ import annotations

import json
import sys

import ray
from ray.cluster_utils import Cluster

from errata.actors.covariance import CovarianceEstimator
from errata.actors.settings import ModelSpec, RayConfig, RoleConfig
from errata.actors.workers.covariance import EstimateJob, EstimateProgress
from errata.editing.estimation.selfgen import SelfGenerationConfig

SEQUENCES = 24


def job() -> EstimateJob:
    """Twelve blocks of two sequences, each sum large enough to lie in the object store of the machine that made it."""
    generation = SelfGenerationConfig(max_new_tokens=6, sequences_per_unit=2, slots=2)
    return EstimateJob(generation=generation, layers=(0, 1, 2, 3), sequences=SEQUENCES, version="base")


def main(checkpoint: str) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    first = cluster.add_node(num_cpus=2, resources={"generation": 2})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    role = RoleConfig(resources={"generation": 1})
    estimator = CovarianceEstimator(RayConfig(generation=role, generation_workers=2), ModelSpec(name=checkpoint))
    removed: list[float] = []

    def take_away(progress: EstimateProgress) -> None:
        if progress.share >= 0.5 and not removed:
            removed.append(progress.share)
            cluster.add_node(num_cpus=2, resources={"generation": 2})
            cluster.remove_node(first, allow_graceful=False)

    found = estimator.estimate(job(), {}, take_away)
    estimator.close()
    print(
        json.dumps(
            {
                "removed_at": removed,
                "digest": found.covariance.digest,
                "tokens": found.covariance.tokens,
                "documents": found.documents,
                "repeated": found.repeated_blocks,
            }
        )
    )
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
