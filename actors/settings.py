"""Settings of the cluster: where Ray is, how many workers of each kind, and what each of them asks for."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from errata.editing.closed import Closed

_LABEL_KEY = re.compile(r"([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_NAME = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_LABEL_VALUE = re.compile(rf"!?({_NAME}|in\({_NAME}(, ?{_NAME})*\))")


class RoleConfig(Closed):
    """What one kind of actor asks Ray for."""

    num_cpus: float = Field(1.0, ge=0)
    """CPUs reserved for one actor."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs reserved for one actor; set ``device`` to use them."""
    resources: dict[str, float] = {}
    """Custom resources that a node must offer."""
    labels: dict[str, str] = {}
    """Labels of the nodes that will do, such as ``errata.io/group: gpu`` or ``ray.io/accelerator-type: H100``."""
    placement: Literal["free", "spread"] = "free"
    """``spread`` puts the role's actors on as many nodes as there are."""
    device: str = "cpu"
    """Torch device the actor's model lives on."""
    threads: int = Field(1, ge=1)
    """Torch threads of the process. Results are promised bit-identical only for an equal number."""
    nice: int = Field(0, ge=0, le=19)
    """Added to the process's niceness: on a machine they share, work in the background gives way to the editor."""


class RayConfig(Closed):
    """The cluster."""

    address: str = "local"
    """``local`` starts Ray on this machine; else the address of a running cluster."""
    namespace: str = "errata"
    """Ray namespace of the actors."""
    generation: RoleConfig = RoleConfig(nice=4)
    generation_workers: int = Field(2, ge=1)
    """Actors that generate text and sum its keys."""
    generation_workers_max: int | None = Field(None, ge=1)
    """Up to so many while an estimate runs. Those beyond ``generation_workers`` are asked for, and an autoscaler sees
    it; they work from when their node is there, and end with the estimate. Null: none beyond."""
    editor: RoleConfig = RoleConfig()
    evaluation: RoleConfig = RoleConfig(nice=4)
    evaluation_workers: int = Field(2, ge=0)
    """Actors that evaluate frozen versions; 0: those that generate do it too, so that a model is loaded less often."""
    retrieval: RoleConfig = RoleConfig(num_cpus=0.5)
    max_revivals: int = Field(5, ge=0)
    """How often an actor that died is started again within ``revival_seconds`` before the run gives up."""
    revival_seconds: float = Field(3600.0, gt=0)
    """Deaths longer ago than this are forgotten, so that a service of months does not end of one death a week."""
    call_timeout_seconds: float = Field(3600.0, gt=0)
    """A call that takes longer is given up as lost."""
    reserve: bool = False
    """Reserve a place for every actor before the first is made, and refuse to begin where they do not all fit."""
    reserve_timeout_seconds: float = Field(600.0, gt=0)
    """How long to wait for that; an autoscaler needs minutes to bring a node."""

    @model_validator(mode="after")
    def _labels_are_labels(self) -> RayConfig:
        for name in self.counts():
            for key, value in getattr(self, name).labels.items():
                if not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
                    raise ValueError(
                        f"{name}.labels: {key!r}: {value!r} is no label; want name or prefix/name of letters, digits, "
                        "'-', '_' and '.', and such a value, perhaps after '!' or as in(a, b)"
                    )
        return self

    @model_validator(mode="after")
    def _most_is_not_less(self) -> RayConfig:
        if self.most_generation_workers < self.generation_workers:
            raise ValueError(
                f"generation_workers_max: {self.generation_workers_max} is less than generation_workers: "
                f"{self.generation_workers}; leave it out for no more than these"
            )
        return self

    @property
    def most_generation_workers(self) -> int:
        """Actors that generate at the same time at most."""
        most = self.generation_workers_max
        return self.generation_workers if most is None else most

    def counts(self) -> dict[str, int]:
        """Actors of each role that a run begins with."""
        return {
            "editor": 1,
            "retrieval": 1,
            "generation": self.generation_workers,
            "evaluation": self.evaluation_workers,
        }

    def local_cpus(self, ranks: int = 1) -> float:
        """CPUs that a local Ray must offer for every actor to be placed at once, each model being on ``ranks``."""
        actors = self.counts() | {"generation": self.most_generation_workers}
        wanted = (getattr(self, role).num_cpus * count * processes(role, ranks) for role, count in actors.items())
        return 1.0 + sum(wanted)


def processes(role: str, ranks: int) -> int:
    """Processes of one actor of a role where each model is on ``ranks``; the memory's embedder is never divided."""
    return 1 if role == "retrieval" else ranks


class ParallelConfig(Closed):
    """One model spread over several processes, for models that do not fit one device."""

    kind: Literal["deepspeed"] = "deepspeed"
    """Who divides the layers."""
    size: int = Field(ge=2)
    """Processes, and devices, that one copy of the model is spread over."""
    timeout_seconds: float = Field(600.0, gt=0)
    """A rank that waits longer for another gives up. Longer than the largest matrix takes to factor."""


class ModelSpec(Closed):
    """A model as every actor loads it by itself: weights never travel through the object store."""

    name: str
    dtype: str = "float32"
    digest: str | None = None
    """Digest of the checkpoint, where it is known already; else each actor reads all files to compute it."""
    parallel: ParallelConfig | None = None
    """Spread over several processes; else every actor holds the whole model."""

    @property
    def ranks(self) -> int:
        """Processes that one copy is spread over."""
        return self.parallel.size if self.parallel is not None else 1
