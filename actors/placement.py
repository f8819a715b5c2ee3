"""Where actors go: labels of nodes, spreading, and groups of places reserved before a run begins."""

from __future__ import annotations

import logging
import uuid
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, get_placement_group, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from errata.actors.settings import RayConfig, RoleConfig
from errata.editing.errors import UserError

logger = logging.getLogger(__name__)


class PlacedRole(RoleConfig):
    """A role whose actors go into the places reserved for them."""

    group: str
    """Name of the placement group."""


def actor_options(role: RoleConfig) -> dict[str, Any]:
    """What Ray is told about an actor of a role."""
    options: dict[str, Any] = {
        "num_cpus": role.num_cpus,
        "num_gpus": role.num_gpus,
        "resources": dict(role.resources),
        "max_restarts": 0,
    }
    if isinstance(role, PlacedRole):
        # the labels are those of the group's places; an actor that names them again may not be put there
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(get_placement_group(role.group))
    else:
        if role.labels:
            options["label_selector"] = dict(role.labels)
        if role.placement == "spread":
            options["scheduling_strategy"] = "SPREAD"
    return options


def unreserved(role: RoleConfig) -> RoleConfig:
    """The role of an actor beyond those that a place was reserved for."""
    return RoleConfig(**role.model_dump(include=set(RoleConfig.model_fields)))


def bundle_of(role: RoleConfig) -> dict[str, float]:
    """The place of one actor."""
    wanted = {"CPU": role.num_cpus, "GPU": role.num_gpus, **role.resources}
    return {name: amount for name, amount in wanted.items() if amount > 0}


class Reservation:
    """One placement group per role, made all or nothing before the first actor.

    Without it an actor that finds no place waits for one while the others already work; with it a run that does not
    fit says so at once, and an autoscaler sees everything that is wanted in one demand. A group outlives the loss of a
    node: its places come back on another, and so do the actors that whoever made them makes again.
    """

    def __init__(self, config: RayConfig, *, sharded: bool = False) -> None:
        """``config.reserve`` decides whether anything is reserved; `config` names the places that are.

        Nothing is where models are ``sharded``: each group of ranks reserves its own places.
        """
        self._wait = config.reserve_timeout_seconds
        self._wanted = {role: (getattr(config, role), count) for role, count in config.counts().items() if count}
        self._groups: list[PlacementGroup] = []
        self.config = config
        if config.reserve and not sharded:
            run = uuid.uuid4().hex[:12]
            names = {role: f"errata-{role}-{run}" for role in self._wanted}
            placed = {
                role: PlacedRole(**asked.model_dump(), group=names[role])
                for role, (asked, _) in self._wanted.items()
                if bundle_of(asked)  # what asks for nothing needs no place
            }
            self.config = config.model_copy(update=placed)

    def take(self) -> None:
        """Make the groups and wait for them.

        Raises:
            UserError: the cluster has no room for them within the time allowed.
        """
        for role, (_, count) in self._wanted.items():
            placed = getattr(self.config, role)
            if not isinstance(placed, PlacedRole):
                continue
            strategy = "SPREAD" if placed.placement == "spread" else "PACK"
            selector = [dict(placed.labels)] * count if placed.labels else None
            self._groups.append(
                placement_group([bundle_of(placed)] * count, strategy, placed.group, bundle_label_selector=selector)
            )
        _, missing = (
            ray.wait(
                [group.ready() for group in self._groups],
                num_returns=max(len(self._groups), 1),
                timeout=self._wait,
            )
            if self._groups
            else ([], [])
        )
        if missing:
            wanted = "; ".join(
                f"{count} x {role} {bundle_of(asked)} on {asked.labels or 'any node'}"
                for role, (asked, count) in self._wanted.items()
            )
            self.give_back()
            raise UserError(f"ray.reserve: no room on the cluster within {self._wait:g} s for {wanted}")

    def give_back(self) -> None:
        """Remove the groups; the actors in them end."""
        for group in self._groups:
            try:
                remove_placement_group(group)
            except Exception:  # the cluster may be gone already, and the groups with it
                logger.debug("a placement group was gone before it was given back")
        self._groups = []
