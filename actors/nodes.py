"""What the nodes of a cluster offer, and whether every actor finds a place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray

from errata.actors.connection import connect, disconnect
from errata.actors.placement import bundle_of
from errata.actors.settings import RayConfig, processes


@dataclass(frozen=True)
class NodeFacts:
    """A node that is alive."""

    cpus: float
    gpus: float
    resources: dict[str, float]
    labels: dict[str, str]


def node_facts(config: RayConfig) -> list[NodeFacts]:
    """Nodes of a running cluster.

    Raises:
        UserError: its address cannot be reached.
    """
    joined = connect(config)
    try:
        alive = [node for node in ray.nodes() if node["Alive"]]
    finally:
        if joined:
            disconnect()
    return [
        NodeFacts(
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
            resources=dict(node["Resources"]),
            labels=dict(node.get("Labels") or {}),
        )
        for node in alive
    ]


def unplaceable(config: RayConfig, nodes: Sequence[NodeFacts], ranks: int = 1) -> list[str]:
    """Actors that would find no place on empty nodes, roles with plain labels only; the order is that of the roles.

    First fit: with places of several sizes it may say so of what a cleverer order would place. With a model on several
    ``ranks`` each of its actors is so many, and all of them need a place.
    """
    free = [dict(node.resources) for node in nodes]
    missing = []
    for role, count in config.counts().items():
        asked = getattr(config, role)
        bundle = bundle_of(asked)
        labeled = [
            left
            for node, left in zip(nodes, free, strict=True)
            if all(node.labels.get(key) == value for key, value in asked.labels.items())
        ]
        for number in range(count):
            if not all([_take(bundle, labeled) for _ in range(processes(role, ranks))]):
                missing.append(f"{role} {number + 1} of {count}")
    return missing


def _take(bundle: Mapping[str, float], free: Sequence[dict[str, float]]) -> bool:
    """Take the resources from the first node that has them; whether one has."""
    for left in free:
        if all(left.get(name, 0.0) >= amount for name, amount in bundle.items()):
            for name, amount in bundle.items():
                left[name] -= amount
            return True
    return False
