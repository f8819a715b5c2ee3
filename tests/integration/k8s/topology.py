"""The deployment's topology on one machine: a Ray cluster of several nodes with the labels and GPUs of the manifests.

    python -m tests.integration.k8s.topology CHECKPOINT STREAM OUTPUT

Runs the small experiment on it, takes the editor's node and the GPU node away in the middle and brings them back, and
writes where the actors were to OUTPUT/places.json. A process of its own, since Ray can be in one cluster only.
"""

from __future__ import annotations

import faulthandler
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import ray
from ray.cluster_utils import Cluster

from errata.orchestrator.journal import Journal
from errata.orchestrator.progress import Display
from errata.orchestrator.run.launch import run_experiment
from tests.helpers.k8s.objects import K8S, build, find
from tests.helpers.k8s.pod_rules import quantity
from tests.integration.harness import config

LONGEST = 200.0
"""Seconds; what hangs longer says where."""
GROUP = "errata.io/group"
QUICK = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
"""A node that is gone is noticed within seconds."""


def groups() -> dict[str, dict[str, float]]:
    """CPUs and GPUs of one node of each worker group, as the overlay `cluster` has them."""
    cluster = find(build(K8S / "overlays" / "cluster"), "RayCluster", "errata")["spec"]
    found = {}
    for group in cluster["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert group["labels"] == {GROUP: group["groupName"]}
        found[group["groupName"]] = {
            "num_cpus": quantity(limits["cpu"]),
            "num_gpus": quantity(limits.get("nvidia.com/gpu", 0)),
        }
    return found


def roles() -> dict[str, Any]:
    """What the roles ask for in that overlay's configuration, on a machine that has no GPU to compute on."""
    import yaml

    asked = yaml.safe_load((K8S / "overlays" / "cluster" / "run.yaml").read_text())["ray"]
    kept = {}
    for role in ("generation", "evaluation", "retrieval", "editor"):
        kept[role] = {key: value for key, value in asked[role].items() if key != "device"}
    # one GPU node stands for the many that the autoscaler would bring
    kept["evaluation"]["labels"] = {GROUP: "cpu"}
    kept["evaluation"]["num_gpus"] = 0
    kept["evaluation"]["num_cpus"] = 1
    return {**kept, "generation_workers": 1, "evaluation_workers": 1, "reserve": True, "reserve_timeout_seconds": 120.0}


class Watch(threading.Thread):
    """Notes where actors are; takes nodes away once something is committed, and brings them back."""

    def __init__(self, cluster: Cluster, nodes: dict[str, Any], add: Callable[[str], Any], journal: Path) -> None:
        super().__init__(daemon=True)
        self._cluster, self._nodes, self._add, self._journal = cluster, nodes, add, journal
        self.places: dict[str, set[str]] = {}
        self.lost_at: int | None = None
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.3):
            if ray.is_initialized():
                self._look()
            if self.lost_at is None and self._committed() >= 1:
                self.lost_at = self._committed()
                for name in ("editor", "gpu"):
                    self._cluster.remove_node(self._nodes[name], allow_graceful=False)
                time.sleep(1.0)
                # Ray puts a handler for SIGTERM in place with each node, which only the main thread may do
                with mock.patch("ray._private.utils.set_sigterm_handler"):
                    for name in ("gpu", "editor"):
                        self._nodes[name] = self._add(name)

    def _look(self) -> None:
        from ray._private import state

        labels = {node["NodeID"]: node["Labels"].get(GROUP, "head") for node in ray.nodes()}
        for actor in state.actors().values():
            node = actor["Address"]["NodeID"]
            if actor["State"] == "ALIVE" and node in labels:
                self.places.setdefault(actor["ActorClassName"], set()).add(labels[node])

    def _committed(self) -> int:
        if not Journal.exists(self._journal):
            return 0
        with Journal.open(self._journal, read_only=True) as journal:
            return journal.head().sequence


def main(checkpoint: Path, stream: Path, output: Path) -> None:
    """See the module."""
    faulthandler.dump_traceback_later(LONGEST, exit=True)
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK},
    )
    sizes = groups()

    def add(name: str) -> Any:
        return cluster.add_node(**sizes[name], labels={GROUP: name})

    nodes = {name: add(name) for name in sizes}
    cluster.wait_for_nodes()
    settings = config(checkpoint, stream, ray={"address": cluster.address, **roles()})
    watch = Watch(cluster, nodes, add, output / "run" / "journal.sqlite")
    watch.start()
    try:
        run_experiment(settings, output / "run", resume=False, display=Display(quiet=True))
    finally:
        watch.ended.set()
        watch.join(timeout=60)
        cluster.shutdown()
    told = {"places": {actor: sorted(found) for actor, found in watch.places.items()}, "lost_at": watch.lost_at}
    (output / "places.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
