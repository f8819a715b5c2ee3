"""Rolling a version over servers that fail in every way: clients have the old version or the new one, and in the end
the new one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from errata.orchestrator.config.publish import PublishConfig
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.fail_points import InjectedCrash
from errata.orchestrator.journal.rows import JournalMeta, Version
from errata.orchestrator.publish.adapter import Adapter
from errata.orchestrator.publish.questions import Questions
from errata.orchestrator.publish.rollout import EVENT, Rollout, ServerResult, last_served
from errata.orchestrator.publish.vllm import VllmServer
from tests.helpers.vllm_like import Failure, VllmLike

QUESTIONS = Questions(
    edited=(("France's capital is", "Lyon"), ("Rome lies in", "Canada")),
    untouched=(("Water is", "wet"), ("Ice is", "cold")),
)


class World:
    """A journal, adapters on disk, and servers whose adapters know what they were edited to say."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder, self.patience = tmp_path, 10.0
        """Seconds for an answer; a sound server on a busy machine takes its time."""
        self.journal = Journal.create(tmp_path / "journal.sqlite", JournalMeta("r", "b" * 64, "e" * 64, {}))
        self.bad: set[str] = set()
        """Paths of adapters that answer wrongly."""
        self.servers: list[VllmLike] = []
        self.crash_at: int | None = None
        self.config = PublishConfig(timeout_seconds=self.patience, to=())

    def answer(self, path: str | None, prompt: str) -> str:
        plain = {"Water is": " wet", "Ice is": " solid"}
        edited = {"France's capital is": " Lyon, of course", "Rome lies in": " Canada"}
        if path is None or path in self.bad:
            return plain.get(prompt, " unknown")
        return {**plain, **edited}[prompt]

    def server(self) -> VllmLike:
        self.servers.append(VllmLike(self.answer))
        return self.servers[-1]

    def adapter(self, sequence: int, *, rank: int = 4) -> Adapter:
        path = self.folder / f"v{sequence}"
        path.mkdir(exist_ok=True)
        (path / "adapter_config.json").write_text(json.dumps({"r": rank}))
        return Adapter(path, str(path), rank, True, 0.0)

    def path(self, sequence: int) -> str:
        return str(self.folder / f"v{sequence}")

    def roll(self, sequence: int, *, rank: int = 4, **changes: Any) -> list[ServerResult]:
        written = 0

        def note(data: dict[str, Any]) -> None:
            nonlocal written
            self.journal.record_event(EVENT, data)
            written += 1
            if self.crash_at == written:
                raise InjectedCrash(f"after event {written}")

        version = Version(sequence, f"{sequence:x}" * 64, None, sequence)
        config = self.config.model_copy(update=changes)
        last = last_served(self.journal, "errata").get
        rollout = Rollout(version, self.adapter(sequence, rank=rank), QUESTIONS, config, last, note)
        clients = [VllmServer(server.url, timeout=self.patience) for server in self.servers]
        return rollout.run(clients)

    def steps(self) -> list[str]:
        return [str(event.data["what"]) for event in self.journal.events(EVENT)]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    for server in world.servers:
        server.close()
    world.journal.close()


def test_a_version_proves_itself_before_clients_get_it(world: World) -> None:
    server = world.server()
    [result] = world.roll(1)
    assert result.state == "switched" and result.marks is not None and result.marks.edited == 1.0
    assert server.adapters == {"errata": world.path(1)}
    assert world.steps() == ["loading", "asked", "switching", "switched"]
    candidate = "errata-v1-11111111"
    assert [call for call in server.calls if "models" not in call] == [
        f"/v1/load_lora_adapter {candidate}",
        f"/v1/completions {candidate}",
        "/v1/completions base-model",
        "/v1/load_lora_adapter errata",
        f"/v1/unload_lora_adapter {candidate}",
    ]
    world.roll(2)
    assert server.adapters == {"errata": world.path(2)}
    assert [result.state for result in world.roll(2)] == ["already"]
    events = [event.data for event in world.journal.events(EVENT) if event.data["what"] == "switched"]
    assert [(e["from"], e["to"]) for e in events] == [(None, world.path(1)), (world.path(1), world.path(2))]
    assert events[0]["version"] == "1" * 64 and events[0]["server"] == server.url


def test_replacing_in_place_leaves_no_moment_without_the_name(world: World) -> None:
    server = world.server()
    world.roll(1)
    server.seen_name.clear()
    world.roll(2, inplace=True)
    assert set(server.seen_name) == {world.path(1), world.path(2)}
    server.seen_name.clear()
    world.roll(3)
    assert None in server.seen_name, "the other way there is one"


def test_wrong_answers_stop_the_roll_and_change_nothing(world: World) -> None:
    first, second = world.server(), world.server()
    world.roll(1)
    world.bad = {world.path(2)}
    results = world.roll(2)
    assert [result.state for result in results] == ["refused", "not attempted"]
    assert results[0].reason == "the answers do not hold: edited 0%, untouched 100%"
    assert first.adapters == second.adapters == {"errata": world.path(1)}
    # an untouched fact that is answered otherwise counts as much, unless it is answered rightly
    world.answer = lambda path, prompt: (
        {"Ice is": " cold", "Water is": " dry"}.get(prompt, "Lyon Canada") if path else "x"
    )  # type: ignore[method-assign]
    for server in world.servers:
        server.answer = world.answer
    results = world.roll(3)
    assert results[0].marks is not None and results[0].marks.untouched == 0.5 and results[0].state == "refused"
    assert first.adapters == {"errata": world.path(1)}


def test_a_failed_server_keeps_what_it_has_and_the_next_one_is_rolled(world: World) -> None:
    first, second, third = world.server(), world.server(), world.server()
    world.roll(1)
    second.close()
    results = world.roll(2)
    assert [result.state for result in results] == ["switched", "failed", "switched"]
    assert first.adapters == third.adapters == {"errata": world.path(2)} and second.adapters == {
        "errata": world.path(1)
    }


def count_calls(world_of: Callable[[], World]) -> int:
    """How many calls a second publication takes on a sound server."""
    world = world_of()
    server = world.server()
    world.roll(1)
    before = len(server.calls)
    world.roll(2)
    return len(server.calls) - before


@pytest.mark.parametrize("failure", ["500", "dead", "slow", "done, no answer"])
def test_any_call_may_fail(tmp_path: Path, failure: Failure) -> None:
    made = iter(range(1000))

    def new_world() -> World:
        folder = tmp_path / str(next(made))
        folder.mkdir()
        worlds.append(World(folder))
        return worlds[-1]

    worlds: list[World] = []
    total = count_calls(new_world)
    assert total == 10
    for number in range(total):
        world = new_world()
        server = world.server()
        world.roll(1)
        server.fail_at = {len(server.calls) + number: failure}
        world.patience = 1.5 if failure == "slow" else 10.0
        [result] = world.roll(2)
        name = server.adapters.get("errata")
        assert name in (world.path(1), world.path(2)), f"call {number}: {name}, {world.steps()}"
        if failure == "slow":
            server.release()
            world.patience = 10.0
        assert result.ok or result.state == "failed"
        # whatever the last call of a publication leaves behind, the next one clears away
        [again] = world.roll(2)
        assert again.ok and server.adapters == {"errata": world.path(2)}, f"call {number}: {world.steps()}"
    for world in worlds:
        for server in world.servers:
            server.close()
        world.journal.close()


@pytest.mark.parametrize("then", ["the same", "another", "a bad one"])
def test_a_publication_that_crashed_anywhere_is_finished_or_undone_by_the_next(tmp_path: Path, then: str) -> None:
    for number in range(1, 5):
        world = World(tmp_path / str(number)) if (tmp_path / str(number)).mkdir() is None else None
        assert world is not None
        server = world.server()
        world.roll(1)
        world.crash_at = number
        with pytest.raises(InjectedCrash):
            world.roll(2)
        if world.steps()[-1] == "switching":
            server.adapters.pop("errata")  # the crash came after the name was given up
        world.crash_at = None
        world.bad = {world.path(3)} if then == "a bad one" else set()
        [result] = world.roll(2 if then == "the same" else 3)
        switched = number == 4
        want = {"the same": 2, "another": 3, "a bad one": 2 if switched else 1}[then]
        assert server.adapters == {"errata": world.path(want)}, f"event {number}: {world.steps()}"
        assert result.ok == (then != "a bad one")
        server.close()
        world.journal.close()


def test_a_server_that_was_restarted_gets_its_version_back_even_if_the_next_is_bad(world: World) -> None:
    server = world.server()
    world.roll(1)
    server.restart()
    world.bad = {world.path(2)}
    assert world.roll(2)[0].state == "refused"
    assert server.adapters == {"errata": world.path(1)} and "restoring" in world.steps()


def test_a_name_that_cannot_be_loaded_again_is_given_its_old_version_back(world: World) -> None:
    server = world.server()
    world.roll(1)
    load = len(server.calls) + 6
    server.fail_at = {load: "500"}
    assert world.roll(2)[0].state == "failed"
    assert server.calls[load] == "/v1/load_lora_adapter errata" and "undone" in world.steps()
    assert server.adapters == {"errata": world.path(1)}


def test_what_a_server_says_about_ranks_is_passed_on_with_the_way_out(world: World) -> None:
    world.server()
    [result] = world.roll(1, rank=128)
    assert result.state == "failed"
    assert "LoRA rank 128 is greater than max_lora_rank 64. Publish with --max-rank" in result.reason


def test_a_server_without_runtime_adapters_says_what_to_start_it_with(world: World) -> None:
    server = world.server()
    do = server.do
    server.do = lambda path, body: (404, {"detail": "Not Found"}) if "adapter" in path else do(path, body)  # type: ignore[method-assign]
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True" in world.roll(1)[0].reason


def test_two_names_on_one_server_do_not_touch_each_other(world: World) -> None:
    server = world.server()
    world.roll(1)
    other = replace(world.adapter(2), on_server=world.path(2))
    version = Version(2, "2" * 64, None, 2)
    config = world.config.model_copy(update={"served_name": "canary"})
    last = last_served(world.journal, "canary").get
    with VllmServer(server.url) as client:
        note = lambda data: world.journal.record_event(EVENT, data)
        assert Rollout(version, other, QUESTIONS, config, last, note).run([client])[0].ok
    assert server.adapters == {"errata": world.path(1), "canary": world.path(2)}
    assert last_served(world.journal, "errata") == {server.url: world.path(1)}
