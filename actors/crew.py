"""The workers of one estimate as they come and go: blocks are for those that are there.

A worker is *coming* until it has answered once: its node may not exist yet, or it still loads its model. Only who has
answered is given blocks, so that a place that an autoscaler has yet to bring holds nothing back. Beside the group's
workers, which outlive the estimate, more may be asked for; these wait as pending actors, which is the demand that an
autoscaler acts upon, join when their node is there, and end with the estimate.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from errata.actors.connection import LOST, first_line, raise_if_init_failed, unwrap
from errata.actors.runtime import WorkerGroup, kill

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Member:
    """A worker that has answered."""

    actor: Any
    slot: int | None
    """Its slot in the group; None for one that was asked for beyond it."""
    node: str
    """Ray's name of the machine it is on."""


class Crew:
    """Who works at an estimate. Not thread-safe: one thread schedules."""

    def __init__(
        self,
        group: WorkerGroup,
        make_extra: Callable[[], Any],
        most_extra: int,
        most_losses: int,
        end: Callable[[Any], None] = kill,
    ) -> None:
        """
        Args:
            group: workers that stay, started; one that dies is replaced there, by the group's own rule.
            make_extra: asks for one more; it need not be there soon.
            most_extra: how many more there may be at once.
            most_losses: how many of those may be lost before no more are asked for.
            end: ends one of those, one that is gone already too.
        """
        self._group, self._make_extra, self._end = group, make_extra, end
        self._most_extra, self._losses_left = most_extra, most_losses
        self._coming: dict[Any, tuple[Any, int | None]] = {}
        self._members: list[Member] = []
        self._blocks: Counter[str] = Counter()
        for slot in range(len(group.actors)):
            self._ask(group.actors[slot], slot)

    @property
    def coming(self) -> Sequence[Any]:
        """References that are ready when a worker has come, or is lost; give them to ``arrived``."""
        return list(self._coming)

    @property
    def members(self) -> Sequence[Member]:
        """Who is there, in the order of their coming."""
        return tuple(self._members)

    @property
    def blocks_by_node(self) -> Mapping[str, int]:
        """Finished blocks of each machine."""
        return dict(self._blocks)

    def arrived(self, reference: Any) -> None:
        """Take in who has answered.

        Raises:
            UserError, ErrataError: a worker of the group could not be made, or they have died too often.
        """
        actor, slot = self._coming.pop(reference)
        try:
            member = Member(actor, slot, str(ray.get(reference)))
        except LOST as error:
            self._gone(actor, slot, error)
            return
        except ray.exceptions.RayTaskError as error:
            if slot is not None:
                raise unwrap(error) from error
            self._gone(actor, None, error)
            return
        self._members.append(member)
        if slot is None:
            logger.info("a worker has joined, on node %s", member.node[:8])

    def idle(self, busy: Sequence[Member]) -> list[Member]:
        """Who is there and at nothing."""
        for member in self._members[:]:
            # another user of the group may have found it dead, and put a new one in its slot
            if member.slot is not None and self._group.actors[member.slot] is not member.actor:
                self._members.remove(member)
                self._ask(self._group.actors[member.slot], member.slot)
        return [member for member in self._members if member not in busy]

    def finished(self, member: Member) -> None:
        """Count a block."""
        self._blocks[member.node] += 1

    def lost(self, member: Member, error: BaseException) -> None:
        """A worker died with a block in its hands; who belongs to the group is replaced.

        Raises:
            UserError, ErrataError: as ``arrived``.
        """
        if member in self._members:
            self._members.remove(member)
        elif member.slot is not None:
            return  # `idle` has seen it first, and asked the one that took its slot
        self._gone(member.actor, member.slot, error)

    def ask_for(self, blocks: int) -> None:
        """Ask for as many more as find work, ``blocks`` being about how many nobody is at; unneeded demand goes."""
        coming = [reference for reference, (_, slot) in self._coming.items() if slot is None]
        there = sum(member.slot is None for member in self._members)
        # everybody else takes one first
        others = len(self._members) + len(self._coming) - len(coming)
        wanted = max(min(self._most_extra - there, blocks - others), 0)
        for reference in coming[wanted:]:
            self._end(self._coming.pop(reference)[0])
        if self._losses_left > 0:
            for _ in range(wanted - len(coming)):
                self._ask(self._make_extra(), None)

    def close(self) -> None:
        """End who was asked for beyond the group; an autoscaler takes their nodes once they idle."""
        extra = [member.actor for member in self._members if member.slot is None]
        extra += [actor for actor, slot in self._coming.values() if slot is None]
        for actor in extra:
            self._end(actor)
        self._members, self._coming = [], {}

    def _ask(self, actor: Any, slot: int | None) -> None:
        self._coming[actor.ready.remote()] = actor, slot

    def _gone(self, actor: Any, slot: int | None, error: BaseException) -> None:
        if slot is not None:
            raise_if_init_failed(error)
            self._group.replace(slot, actor, error)
            self._ask(self._group.actors[slot], slot)
            return
        # one beyond the group costs its block and no more, whatever took it
        self._losses_left -= 1
        logger.warning("a worker has left (%s); up to %d more may leave", first_line(error), self._losses_left)
        self._end(actor)
