"""One Ray for several runs at a time, each of them a driver in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import ray

from errata.actors.connection import connect, disconnect, on_loopback
from errata.actors.settings import RayConfig


@dataclass(frozen=True)
class SharedRay:
    """A Ray that is up."""

    address: str
    """What another process on this machine gives as ``ray.address``."""
    cpus: float
    """CPUs the nodes offer together as of now."""


@contextmanager
def shared_ray(config: RayConfig, cpus: float) -> Iterator[SharedRay]:
    """Join the Ray of ``config``, or start a local one with at least ``cpus`` CPUs, which ends with the block.

    Actors of a driver that is gone are ended by Ray, so a run that dies leaves the others their CPUs.

    Raises:
        UserError: the address cannot be reached.
    """
    # `connect` offers what the roles of one run ask for; here they are those of several
    room = config.model_copy(update={"retrieval": config.retrieval.model_copy(update={"num_cpus": cpus})})
    owned = connect(room)
    try:
        # what joins from this machine must take 127.0.0.1 for what it is, too
        with on_loopback() if owned else nullcontext():
            yield SharedRay(ray.get_runtime_context().gcs_address, float(ray.cluster_resources().get("CPU", 0.0)))
    finally:
        if owned:
            disconnect()
