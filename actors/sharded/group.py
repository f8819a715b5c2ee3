"""A group of rank actors that answers like one actor.

Each call goes to every rank, in the same order everywhere; rank 0's answer is the group's. A group lives and dies as
one: a rank that is lost takes the others with it, and whoever made the group makes a new one, as with any other actor.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.exceptions
import torch
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from errata.actors.settings import ModelSpec, ParallelConfig, RoleConfig
from errata.actors.sharded.places import RankPlaces, plain
from errata.actors.sharded.stored import stored

logger = logging.getLogger(__name__)

_GRACE_SECONDS = 20.0
"""How much later than another rank's error rank 0's own may come."""
_CHECK_SECONDS = 0.5


@ray.remote
class RankActor:
    """One rank: the object that would be the actor of an unsharded model, on this rank's part of it."""

    def __init__(self, rank: int, role: RoleConfig) -> None:
        self._rank, self._role = rank, role
        self._store: Any = None
        self._object: Any = None
        self._failure: BaseException | None = None
        self._next = 0

    def address(self) -> tuple[str, int]:
        """Host and port of the group's address book; asked of rank 0."""
        from errata.actors.sharded.rank import address_book

        host = ray.util.get_node_ip_address()
        self._store, port = address_book(host)
        return host, port

    def pid(self) -> tuple[str, int]:
        """Host and process of this rank, for fault tests."""
        return socket.gethostname(), os.getpid()

    def begin(self, address: tuple[str, int], parallel: ParallelConfig, shell: Any, args: Sequence[Any]) -> None:
        """Join the group, then make the object; an error is kept as well, for every call to raise."""
        try:
            self._begin(address, parallel, shell, args)
        except Exception as error:
            self._end_if_lost(error)
            self._failure = error
            raise  # the watching thread must see when only some ranks fail: the others wait for them

    def _begin(self, address: tuple[str, int], parallel: ParallelConfig, shell: Any, args: Sequence[Any]) -> None:
        from errata.actors.sharded.layout import require_deepspeed
        from errata.actors.sharded.loading import PartSpec
        from errata.actors.sharded.rank import Place, join

        require_deepspeed()
        torch.set_num_threads(self._role.threads)
        group = join(Place(self._rank, *address, parallel), torch.device(self._role.device), self._store)
        mine = [
            PartSpec(**argument.model_dump(), group=group) if isinstance(argument, ModelSpec) else argument
            for argument in args
        ]
        self._object = shell(*mine)

    def call(self, number: int, method: str, outputs: int, *args: Any) -> Any:
        """Call a method of the object; ranks other than 0 keep the answer to themselves."""
        if number != self._next:
            logger.error("rank %d is out of step: given call %d, wanted %d", self._rank, number, self._next)
            os._exit(1)
        self._next += 1
        if self._failure is not None:
            raise self._failure
        try:
            answer = getattr(self._object, method)(*args)  # a group stands for any kind of actor
        except Exception as error:
            self._end_if_lost(error)
            raise
        if self._rank == 0:
            return answer
        return None if outputs == 1 else (None,) * outputs

    def _end_if_lost(self, error: BaseException) -> None:
        from errata.actors.sharded.rank import peer_lost

        if peer_lost(error):
            # to the caller this must look like a lost actor and not like a call that failed
            logger.warning("rank %d lost its group: %s", self._rank, error)
            os._exit(1)


@dataclass
class _Call:
    """A call under way: rank 0's reference, and one of each other rank."""

    answer: Any
    others: list[Any]
    failed_at: float | None = None
    reason: str = ""


@dataclass
class _Ranks:
    """The actors of a group and what is asked of them, as the watching thread sees it."""

    actors: list[Any]
    calls: list[_Call] = field(default_factory=list)
    ended: bool = False


class RankGroup:
    """A handle like that of an actor: ``group.method.remote(...)``.

    A thread watches the calls that are under way: where a rank is gone, or only some ranks have failed, the group is
    ended, and every caller sees a lost actor. So nobody waits for ranks that wait for a dead one.
    """

    def __init__(self, shell: Any, role: RoleConfig, *args: Any) -> None:
        """``shell`` is the actor class that an unsharded model would have; ``args`` contain its `ModelSpec`."""
        spec = next(argument for argument in args if isinstance(argument, ModelSpec))
        assert spec.parallel is not None
        self._class = shell.__ray_metadata__.modified_class
        self._lock = threading.Lock()
        self._number = 0
        self._places = RankPlaces(role, spec.parallel.size)
        role, args = plain(role), tuple(plain(argument) for argument in args)
        actors = []
        for rank in range(spec.parallel.size):
            strategy = PlacementGroupSchedulingStrategy(self._places.group, placement_group_bundle_index=rank)
            options: dict[str, Any] = {
                "num_cpus": role.num_cpus,
                "num_gpus": role.num_gpus,
                "resources": dict(role.resources),
                "max_restarts": 0,
                "scheduling_strategy": strategy,
            }
            actors.append(RankActor.options(**options).remote(rank, role))  # type: ignore[attr-defined]
        address = actors[0].address.remote()
        given = [ray.put(one) for one in (spec.parallel, self._class, args)]
        begun = [actor.begin.remote(address, *given) for actor in actors]
        self._ranks = _Ranks(actors, [_Call(begun[0], begun[1:])])
        self._watch = threading.Thread(target=_watch, args=(self._ranks, self._lock), name="rank-group", daemon=True)
        self._watch.start()

    def __getattr__(self, name: str) -> _Method:
        if name.startswith("_") or not hasattr(self._class, name):
            raise AttributeError(name)
        return _Method(self, name, int(getattr(getattr(self._class, name), "__ray_num_returns__", 1)))

    @property
    def rank_actors(self) -> tuple[Any, ...]:
        """Handles of the ranks, for fault tests."""
        return tuple(self._ranks.actors)

    def submit(self, method: str, outputs: int, args: Sequence[Any]) -> Any:
        """Give a call to every rank; returns what a call of one actor would."""
        # each argument is stored once, not once per rank
        shared = [a if isinstance(a, ray.ObjectRef) else ray.put(stored(a)) for a in args]
        with self._lock:
            number, self._number = self._number, self._number + 1
            made = [
                actor.call.options(num_returns=outputs).remote(number, method, outputs, *shared)
                for actor in self._ranks.actors
            ]
            first = [one if outputs == 1 else one[0] for one in made]
            self._ranks.calls.append(_Call(first[0], first[1:]))
        return made[0]

    def end_ranks(self) -> None:
        """End every rank and give back their places."""
        with self._lock:
            self._ranks.ended = True
        _kill_all(self._ranks.actors)
        self._places.give_back()


@dataclass(frozen=True)
class _Method:
    """What ``handle.method`` is of an actor's handle."""

    group: RankGroup
    name: str
    outputs: int

    def remote(self, *args: Any) -> Any:
        """Call it on every rank."""
        return self.group.submit(self.name, self.outputs, args)


def _kill_all(actors: Sequence[Any]) -> None:
    for actor in actors:
        try:
            ray.kill(actor)
        except Exception:  # a handle to a dead actor raises one of several types
            logger.debug("rank was gone before it was ended")


def _watch(ranks: _Ranks, lock: threading.Lock) -> None:
    """End the group when a rank is lost while others may wait for it."""
    while True:
        with lock:
            if ranks.ended:
                return
            calls = list(ranks.calls)
        if not calls or not ray.is_initialized():
            time.sleep(_CHECK_SECONDS)
            continue
        try:
            broken = any(_broken(call) for call in calls)
        except Exception:
            if ray.is_initialized():
                raise
            return  # Ray has ended while a call was under way
        if broken:
            logger.warning("a rank of a sharded model is lost; its group is ended")
            _kill_all(ranks.actors)
            with lock:
                ranks.ended = True
            return
        with lock:
            ranks.calls = [call for call in ranks.calls if not _settled(call)]


def _settled(call: _Call) -> bool:
    references = [call.answer, *call.others]
    ready, _ = ray.wait(references, num_returns=len(references), timeout=0, fetch_local=False)
    return len(ready) == len(references)


def _broken(call: _Call) -> bool:
    """Whether a rank was lost during a call, or failed in it alone."""
    ready, _ = ray.wait(call.others, num_returns=len(call.others), timeout=_CHECK_SECONDS)
    for reference in ready:
        try:
            ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            call.failed_at = call.failed_at or time.monotonic()
            call.reason = str(error).strip().splitlines()[-1]
        except ray.exceptions.RayError:
            return True
    if call.failed_at is None or time.monotonic() - call.failed_at < _GRACE_SECONDS:
        return False
    answered, _ = ray.wait([call.answer], timeout=0, fetch_local=False)
    if not answered:
        logger.warning("a rank failed where others did not: %s", call.reason)
    return not answered
