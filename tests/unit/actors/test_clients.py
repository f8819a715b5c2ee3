"""A client that makes its actor anew: on actors that are plain objects, and die when they are told to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import ray.exceptions

from errata.actors import clients
from errata.actors.clients import RevivingClient
from errata.actors.settings import RayConfig
from errata.editing.errors import ErrataError, UserError


class Died(ray.exceptions.RayActorError):
    pass


class Actor:
    """Adds numbers, until its lives are spent."""

    def __init__(self, lives: int) -> None:
        self.lives, self.seen = lives, list[int]()

    def add(self, number: int) -> Callable[[], int]:
        def run() -> int:
            if self.lives == 0:
                raise Died
            self.lives -= 1
            self.seen.append(number)
            return sum(self.seen)

        return run


class Client(RevivingClient):
    """References are functions; a new actor is given what the one before it had taken."""

    def __init__(self, lives: list[int], most: int = 5) -> None:
        self.lives, self.ended, self.taken = list(lives), list[Actor](), list[int]()
        super().__init__(RayConfig(max_revivals=most), "the adder", self._new)

    def _new(self) -> Actor:
        return Actor(self.lives.pop(0))

    def _get(self, reference: Callable[[], Any]) -> Any:
        return reference()

    def _catch_up(self) -> None:
        for number in self.taken:
            self._get(self._actor.add(number))

    def add(self, number: int, died: Callable[[Exception], None] | None = None) -> int:
        total = int(self._call(lambda actor: actor.add(number), died))
        self.taken.append(number)
        return total


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "kill", lambda actor: None)


def test_who_dies_is_made_again_brought_back_and_asked_anew() -> None:
    client = Client([2, 9])
    assert [client.add(n) for n in (1, 2, 3, 4)] == [1, 3, 6, 10]
    assert client.revivals == 1 == len(client.rebuild_seconds)
    assert client.actor.seen == [1, 2, 3, 4]


def test_a_death_while_it_is_brought_back_counts_as_well() -> None:
    client = Client([2, 1, 0, 9])
    assert [client.add(n) for n in (1, 2, 3)] == [1, 3, 6] and client.revivals == 3


@pytest.mark.parametrize(("most", "said"), [(0, "the adder died 1 time; "), (2, "the adder died 3 times; ")])
def test_more_deaths_than_are_allowed_end_the_call(most: int, said: str) -> None:
    with pytest.raises(ErrataError, match=said + f"allowed: ray.max_revivals {most}"):
        Client([0] * 5, most).add(1)


def test_deaths_that_somebody_hears_of_do_not_count() -> None:
    heard: list[Exception] = []
    client = Client([0, 0, 0, 1], most=0)
    assert client.add(7, heard.append) == 7 and len(heard) == 3 == client.revivals

    def enough(error: Exception) -> None:
        raise UserError("enough")

    with pytest.raises(UserError, match="enough"):
        Client([0, 9], most=0).add(7, enough)


def test_of_two_threads_that_meet_a_death_one_makes_the_new_actor() -> None:
    client = Client([0, 99])
    both = threading.Barrier(2)
    first = client.actor

    def get(reference: Callable[[], Any]) -> Any:
        if client.actor is first:
            both.wait(timeout=10)
        return reference()

    client._get = get  # type: ignore[method-assign]
    threads = [threading.Thread(target=client.add, args=(n,)) for n in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert client.revivals == 1 and sorted(client.actor.seen) == [1, 2]


def test_what_is_queued_comes_before_what_others_ask() -> None:
    class Filled(Client):
        def _catch_up(self) -> None: ...

        def _fill(self, actor: Actor) -> None:
            assert self._actor is not actor, "nobody can call it yet"
            for number in self.taken:
                actor.add(number)()

    client = Filled([1, 9])
    assert [client.add(n) for n in (1, 2)] == [1, 3]
