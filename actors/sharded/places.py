"""Places for groups of ranks: how the ranks of a group lie, and groups reserved before a run begins."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Sequence
from typing import Any

from pydantic import ConfigDict
from ray.util.placement_group import PlacementGroup, get_placement_group, placement_group, remove_placement_group

from errata.actors.placement import PlacedRole, Reservation, bundle_of, unreserved
from errata.actors.settings import RayConfig, RoleConfig
from errata.editing.errors import UserError

logger = logging.getLogger(__name__)

_LEAST_CPU = 0.001
"""A place must ask for something."""


class GroupPool:
    """Names of reserved placement groups, one for each group of ranks of a role; thread-safe."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._free = list(names)
        self._lock = threading.Lock()

    def take(self) -> str | None:
        """One that nobody has; None where all are taken."""
        with self._lock:
            return self._free.pop(0) if self._free else None

    def give_back(self, name: str) -> None:
        """Let the next one have it."""
        with self._lock:
            self._free.append(name)


class RanksRole(RoleConfig):
    """A role whose groups of ranks go into the placement groups reserved for them."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    pool: GroupPool


def plain(argument: Any) -> Any:
    """A role without its reserved groups, which are the driver's affair; anything else as it is."""
    return unreserved(argument) if isinstance(argument, RanksRole) else argument


class RankPlaces:
    """The placement group of one group of ranks: a reserved one, or one of its own."""

    def __init__(self, role: RoleConfig, size: int) -> None:
        self._pool = role.pool if isinstance(role, RanksRole) else None
        self._name = self._pool.take() if self._pool is not None else None
        self.group: PlacementGroup = make_places(role, size) if self._name is None else get_placement_group(self._name)

    def give_back(self) -> None:
        """After the ranks have ended; again is harmless."""
        if self._pool is not None and self._name is not None:
            self._pool.give_back(self._name)
            self._pool = None
        elif self._name is None:
            remove(self.group)


def make_places(role: RoleConfig, size: int, name: str = "") -> PlacementGroup:
    """Places for all ranks of a group, or none: two groups that each held half of a node would wait for each other."""
    return placement_group(
        [bundle_of(role) or {"CPU": _LEAST_CPU}] * size,
        # ranks wait for each other in every layer: on one node, where nothing else is asked for
        "SPREAD" if role.placement == "spread" else "PACK",
        name,
        bundle_label_selector=[dict(role.labels)] * size if role.labels else None,
    )


def remove(group: PlacementGroup) -> None:
    """Give the places of a placement group back to the cluster; the actors in them end."""
    try:
        remove_placement_group(group)
    except Exception:  # Ray may be gone already, and the places with it
        logger.debug("a placement group was gone before it was removed")


class RankReservation(Reservation):
    """One placement group per group of ranks, besides those of the roles that have no model.

    A group that is made again after the loss of a rank takes the places of the one before it.
    """

    def __init__(self, config: RayConfig, size: int) -> None:
        """``size`` is the number of ranks that a model is spread over."""
        super().__init__(config, sharded=True)
        self._size = size
        if not config.reserve:
            return
        run = uuid.uuid4().hex[:12]
        retrieval = f"errata-retrieval-{run}"
        placed: dict[str, Any] = {}
        for role, (asked, count) in self._wanted.items():
            if role == "retrieval":
                if bundle_of(asked):
                    placed[role] = PlacedRole(**asked.model_dump(), group=retrieval)
            else:
                names = [f"errata-{role}-{number}-{run}" for number in range(count)]
                placed[role] = RanksRole(**asked.model_dump(), pool=GroupPool(names))
        self.config = config.model_copy(update=placed)

    def take(self) -> None:
        """As in the base class; all groups of ranks or none."""
        for role, (asked, _) in self._wanted.items():
            placed = getattr(self.config, role)
            if isinstance(placed, RanksRole):
                self._groups += [make_places(asked, self._size, name) for name in placed.pool.names]
        try:
            super().take()
        except UserError as error:
            raise UserError(f"{error}; {self._size} such places for each copy of the model") from error
