"""Publication of a small run's versions: from the journal to a server, by hand, by command and by policy."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from errata.editing.errors import UserError
from errata.orchestrator.cli import app
from errata.orchestrator.config.publish import PublishConfig, server_url
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.rows import Version
from errata.orchestrator.publish.policy import PublishPolicy
from errata.orchestrator.publish.publisher import publish_to_servers
from errata.orchestrator.publish.questions import choose_questions, spread
from errata.orchestrator.publish.rollout import EVENT, ServerResult
from tests.helpers.small_run import REQUESTS, SmallRun, make_run
from tests.helpers.vllm_like import VllmLike


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return make_run(tmp_path_factory.mktemp("small"))


@pytest.fixture
def run(made: SmallRun, tmp_path: Path) -> SmallRun:
    shutil.copytree(made.directory, tmp_path / "run")
    return SmallRun(tmp_path / "run", made.model, made.weights, made.versions)


def answer(path: str | None, prompt: str) -> str:
    """An adapter knows the facts of the run; it does not matter which version it is."""
    targets = {request.text: request.target_new for request in REQUESTS.values() if request.id != "paris"}
    return f" {targets[prompt]}" if path and prompt in targets else " something"


@pytest.fixture
def server() -> Iterator[VllmLike]:
    server = VllmLike(answer)
    yield server
    server.close()


def publish(run: SmallRun, name: str, **settings: Any) -> list[ServerResult]:
    with Journal.open(run.directory / "journal.sqlite") as journal:
        version = journal.find_version(name)
        return publish_to_servers(journal, run.store(), version, PublishConfig(**settings), run.directory)


def test_questions_are_the_facts_that_the_version_holds(run: SmallRun) -> None:
    with run.journal() as journal:
        first = choose_questions(journal, journal.find_version("v1"), 20)
        third = choose_questions(journal, journal.find_version("v3"), 20)
        assert choose_questions(journal, journal.find_version("head"), 1).edited == (
            ("Alice Munro works as a", "subject"),
        )
    assert first.edited == (("The capital of France is", "Lyon"), ("Rome lies in", "Canada"))
    assert first.untouched == (), "its only neighbor is itself an edited fact"
    assert ("The capital of France is", "Paris") in third.edited and len(third.edited) == 3
    assert spread(list(range(10)), 4) == [0, 3, 6, 9] and spread([1, 2], 5) == [1, 2]


def test_versions_are_exported_loaded_switched_and_swept(run: SmallRun, server: VllmLike) -> None:
    to = (f"vllm={server.url}/v1/",)
    for name in ("v1", "v2", "v6"):
        [result] = publish(run, name, to=to)
        assert result.state == "switched", result
    assert Path(server.adapters["errata"]).name.startswith("v6-")
    kept = [path.name for path in (run.directory / "adapters").iterdir()]
    assert kept == [Path(server.adapters["errata"]).name], "no server needs the older ones"
    assert (run.directory / "adapters" / kept[0] / "adapter_model.safetensors").is_file()
    # publishing an older version is how one goes back
    assert publish(run, "v2", to=to)[0].ok and "/v2-" in server.adapters["errata"]


def test_where_servers_see_the_adapters_elsewhere(run: SmallRun, server: VllmLike, tmp_path: Path) -> None:
    (tmp_path / "mnt").symlink_to(tmp_path / "shared")
    settings = {"adapters": str(tmp_path / "shared"), "adapters_on_server": str(tmp_path / "mnt")}
    assert publish(run, "v2", to=(f"vllm={server.url}",), **settings)[0].ok
    assert server.adapters["errata"].startswith(str(tmp_path / "mnt")) and not (run.directory / "adapters").exists()


def test_a_rank_that_cuts_off_too_much_is_refused_with_the_ways_out(run: SmallRun, server: VllmLike) -> None:
    to = (f"vllm={server.url}",)
    with pytest.raises(UserError) as refused:
        publish(run, "v2", to=to, max_rank=1)
    message = str(refused.value)
    for word in (
        "v2 does not fit into rank 1",
        "allowed: 0.05",
        "--max-lora-rank",
        "--max-error",
        "errata checkout v2",
    ):
        assert word in message
    assert not server.calls and not list((run.directory / "adapters").iterdir())
    assert publish(run, "v2", to=to, max_rank=1, max_error=1.0)[0].ok
    assert json.loads((Path(server.adapters["errata"]) / "adapter_config.json").read_text())["r"] == 1
    with pytest.raises(UserError, match="v0 changes nothing"):
        publish(run, "v0", to=to)


def errata(*arguments: object) -> Any:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_command(run: SmallRun, server: VllmLike) -> None:
    given = ("--run", run.directory, "--to", f"vllm={server.url}")
    done = errata("publish", "v2", *given)
    assert done.exit_code == 0
    assert done.stdout == f"{server.url}: switched (edited 100%, untouched not asked)\n"
    assert errata("publish", "v2", *given).stdout == f"{server.url}: already\n"
    server.answer = lambda path, prompt: "nonsense"
    failed = errata("publish", "v3", *given)
    assert failed.exit_code == 1 and "refused: the answers do not hold: edited 0%" in failed.stdout
    with run.journal() as journal:
        assert [event.data["what"] for event in journal.events(EVENT)][-1] == "refused"
    with pytest.raises(UserError, match="publish to what"):
        errata("publish", "v2", "--run", run.directory)
    with pytest.raises(UserError, match=r"--to: .*want vllm=http"):
        errata("publish", "v2", "--run", run.directory, "--to", "http://host")
    with (
        Journal.open(run.directory / "journal.sqlite"),
        pytest.raises(UserError, match=r"another process|being written"),
    ):
        errata("publish", "v2", *given)


def test_addresses_are_checked_and_carry_no_password() -> None:
    assert server_url("vllm=http://host:8000/v1/") == "http://host:8000"
    for bad in ("http://host", "vllm=host", "vllm=ftp://host", "tgi=http://host"):
        with pytest.raises(ValueError, match="want vllm=http"):
            server_url(bad)
    with pytest.raises(ValueError, match="ERRATA_VLLM_TOKEN"):
        server_url("vllm=http://me:secret@host")
    with pytest.raises(ValidationError, match=r"publish\.every needs a server"):
        PublishConfig(every=3)
    with pytest.raises(ValidationError, match="named twice"):
        PublishConfig(to=("vllm=http://a", "vllm=http://a"))


# ---------------------------------------------------------------- policy


def version(sequence: int) -> Version:
    return Version(sequence, f"{sequence:x}" * 64, None, sequence)


def test_the_policy_publishes_every_n_commits_while_the_guard_holds(run: SmallRun) -> None:
    sent: list[int] = []
    holds = True
    with Journal.open(run.directory / "journal.sqlite") as journal:

        def send(wanted: Version) -> list[ServerResult]:
            sent.append(wanted.sequence)
            if wanted.sequence == 6:
                raise UserError("does not fit")
            return []

        config = PublishConfig(every=2, to=("vllm=http://a",))
        policy = PublishPolicy(config, journal, send, holds=lambda: holds)
        for sequence in range(1, 9):
            holds = sequence not in (2, 3)
            policy.after_commit(version(sequence))
            policy.wait()
        policy.close()
        assert sent == [4, 6, 8], "what the guard held back is made up for once it holds"
        [failed] = [event.data for event in journal.events(EVENT)]
        assert failed["what"] == "failed" and failed["sequence"] == 6 and failed["reason"] == "does not fit"
        # a restarted run goes on counting from the newest that was tried
        again = PublishPolicy(config, journal, send)
        again.after_commit(version(7))
        again.close()
        assert sent == [4, 6, 8]


def test_commits_do_not_wait_for_a_publication(run: SmallRun) -> None:
    gate = threading.Event()
    sent: list[int] = []

    def send(wanted: Version) -> list[ServerResult]:
        sent.append(wanted.sequence)
        gate.wait(20)
        return []

    with Journal.open(run.directory / "journal.sqlite") as journal:
        policy = PublishPolicy(PublishConfig(every=1, to=("vllm=http://a",)), journal, send)
        for sequence in range(1, 4):
            policy.after_commit(version(sequence))
        assert sent == [1]
        gate.set()
        policy.wait()
        policy.after_commit(version(4))
        policy.close()
    assert sent == [1, 4]
