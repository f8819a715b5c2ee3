"""Who is given work while workers come and go, without Ray: references are answers that are given later."""

from __future__ import annotations

from typing import Any

import pytest
import ray.exceptions

from errata.actors import crew as module
from errata.actors.covariance import _Run
from errata.actors.crew import Crew, Member
from errata.actors.placement import PlacedRole, actor_options, unreserved
from errata.actors.runtime import WorkerGroup
from errata.actors.settings import RayConfig, RoleConfig
from errata.actors.workers.covariance import BlockInfo, EstimateJob
from errata.editing.errors import ErrataError, UserError
from errata.editing.estimation.selfgen import SelfGenerationConfig

GONE = ray.exceptions.RayActorError("id", "its node is gone")


class Worker:
    """An actor whose ``ready`` is answered when the test says so."""

    def __init__(self) -> None:
        self.ended = False
        self.asked: list[Answer] = []
        self.ready = self

    def remote(self) -> Answer:
        self.asked.append(Answer())
        return self.asked[-1]


class Answer:
    """A reference."""

    def __init__(self) -> None:
        self.value: str | BaseException = "node-1"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Worker]:
    """Every worker in the order of their making."""

    def get(reference: Answer) -> str:
        if isinstance(reference.value, BaseException):
            raise reference.value
        return reference.value

    monkeypatch.setattr(module.ray, "get", get)
    return []


def crew_of(made: list[Worker], count: int, extra: int, losses: int = 2, revivals: int = 2) -> Crew:
    def make() -> Worker:
        made.append(Worker())
        return made[-1]

    def end(worker: Any) -> None:
        worker.ended = True

    group = WorkerGroup(make, count, most_revivals=revivals, what="workers", end=end)
    group.start()
    return Crew(group, make, extra, losses, end)


def come(crew: Crew, worker: Worker, node: str = "node-1") -> Member:
    """The worker's node is there, and its model loaded."""
    worker.asked[-1].value = node
    crew.arrived(worker.asked[-1])
    return crew.members[-1]


def fail(crew: Crew, worker: Worker, error: BaseException) -> None:
    worker.asked[-1].value = error
    crew.arrived(worker.asked[-1])


def test_only_who_has_come_is_given_work(made):
    crew = crew_of(made, 2, 0)
    assert crew.idle([]) == [] and len(crew.coming) == 2
    second = come(crew, made[1], "node-2")
    assert crew.idle([]) == [second] and second.node == "node-2" and len(crew.coming) == 1
    assert crew.idle([second]) == []
    first = come(crew, made[0])
    assert crew.idle([second]) == [first] and crew.coming == []


def test_more_are_asked_for_as_long_as_they_find_work(made):
    crew = crew_of(made, 2, 3)
    crew.ask_for(2)  # the two of the group take them
    assert len(made) == 2
    crew.ask_for(4)
    assert len(made) == 4
    crew.ask_for(100)
    crew.ask_for(100)
    assert len(made) == 5 and len(crew.coming) == 5
    late = come(crew, made[4], "node-9")
    crew.finished(late)
    crew.ask_for(0)  # nothing is left to hand out: who has not come need not; who has come stays to the end
    assert [worker.ended for worker in made] == [False, False, True, True, False]
    assert crew.idle([]) == [late] and crew.blocks_by_node == {"node-9": 1}
    crew.close()
    assert [worker.ended for worker in made] == [False, False, True, True, True]
    assert crew.members == () and crew.coming == []


def test_those_beyond_are_asked_for_again_a_few_times_and_then_no_more(made, caplog):
    crew = crew_of(made, 1, 1, losses=2, revivals=0)
    crew.ask_for(9)
    crew.lost(come(crew, made[1]), GONE)  # with a block in its hands
    assert made[1].ended
    crew.ask_for(9)
    fail(crew, made[2], ray.exceptions.RayActorError("id", "x\nUserError: no such model", True))  # before it had come
    crew.ask_for(9)
    assert len(made) == 3 and "0 more may leave" in caplog.text
    # the estimate goes on with who belongs to the group
    assert crew.idle([]) == [] and len(crew.coming) == 1
    assert crew.idle([]) == [] and come(crew, made[0]) in crew.idle([])


def test_one_of_the_group_is_replaced_and_waited_for(made):
    crew = crew_of(made, 2, 0)
    first, second = come(crew, made[0]), come(crew, made[1])
    crew.lost(first, GONE)
    assert len(made) == 3 and made[0].ended and crew.idle([]) == [second] and len(crew.coming) == 1
    fail(crew, made[2], GONE)
    assert len(made) == 4
    with pytest.raises(ErrataError, match="workers died 3 times"):
        fail(crew, made[3], GONE)


def test_one_of_the_group_that_cannot_be_made_ends_the_estimate(made):
    crew = crew_of(made, 1, 0)
    with pytest.raises(UserError, match="no such model"):
        fail(crew, made[0], ray.exceptions.RayActorError("id", "x\nediting.errors.UserError: no such model", True))


def test_whom_another_user_of_the_group_found_dead_is_not_counted_on(made):
    crew = crew_of(made, 1, 0, revivals=1)
    member = come(crew, made[0])
    crew._group.replace(0, made[0], GONE)
    assert crew.idle([]) == [] and len(crew.coming) == 1
    crew.lost(member, GONE)  # its last block comes back afterwards: nobody is replaced for it again
    assert len(made) == 2 and come(crew, made[1]) in crew.idle([])


# ---------------------------------------------------------------- how many find work


def run_of(**budget: Any) -> _Run:
    generation = SelfGenerationConfig(max_new_tokens=9, sequences_per_unit=2)
    return _Run(EstimateJob(generation=generation, layers=(1,), version="base", **budget), None)


def test_what_nobody_is_at_is_counted_in_blocks():
    run = run_of(sequences=20)
    assert run.unclaimed() == 10
    run.next_block, run.redo = 4, [2]
    assert run.unclaimed() == 6 + 1
    run.next_block, run.redo = 10, []
    assert run.unclaimed() == 0


def test_of_a_budget_in_tokens_it_is_what_is_likely():
    run = run_of(tokens=100)
    assert run.unclaimed() == 5  # two sequences of one and nine tokens at most
    run.next_block = 2
    assert run.unclaimed() == 3
    run.finished[0] = BlockInfo(0, 10, (), 0.1), None
    run.released, run.tokens = 1, 10
    assert run.unclaimed() == 8  # 90 tokens, ten a block, and one is under way
    run.tokens = 100
    assert run.unclaimed() == 0


# ---------------------------------------------------------------- settings


def test_the_largest_number_of_workers_is_bounded_below_and_given_room_on_a_local_ray():
    assert RayConfig().most_generation_workers == 2
    config = RayConfig(generation_workers=1, generation_workers_max=4, evaluation_workers=0)
    assert config.most_generation_workers == 4 and config.counts()["generation"] == 1
    assert config.local_cpus() == 4 + 1 + 0.5 + 1
    with pytest.raises(ValueError, match="generation_workers_max: 1 is less than generation_workers: 2"):
        RayConfig(generation_workers=2, generation_workers_max=1)


def test_those_beyond_ask_for_what_the_others_do_without_their_reserved_place():
    role = RoleConfig(num_gpus=1, labels={"errata.io/group": "gpu"}, placement="spread")
    further = unreserved(PlacedRole(**role.model_dump(), group="errata-generation"))
    assert type(further) is RoleConfig and actor_options(further) == actor_options(role)
