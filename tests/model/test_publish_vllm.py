"""Publication to a real vLLM server on the CPU: 20 edits streamed, published and answered, a revert published, the
server killed in the middle, two servers of which one cannot take the version. Takes minutes, and an environment of
3.5 GB, which is made on first use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from errata.evaluation.matching import contains
from errata.orchestrator.config.publish import PublishConfig
from errata.orchestrator.history.receipts import open_store
from errata.orchestrator.journal import Journal
from errata.orchestrator.publish.publisher import publish_to_servers
from errata.orchestrator.publish.questions import choose_questions
from errata.orchestrator.publish.rollout import EVENT
from errata.orchestrator.publish.vllm import ServerError, VllmServer
from tests.helpers.vllm_server import RANK, Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def publish(run: Path, *servers: Server, name: str = "head") -> list[Any]:
    to = tuple(f"vllm={server.url}" for server in servers)
    config = PublishConfig(to=to, max_rank=RANK, min_untouched=0.5, timeout_seconds=300)
    with Journal.open(run / "journal.sqlite") as journal:
        return publish_to_servers(journal, open_store(run), journal.find_version(name), config, run)


def states(results: list[Any]) -> list[str]:
    return [result.state for result in results]


def share(run: Path, server: Server, *, base: bool = False, version: str = "head") -> float:
    """Of the facts that a version holds, how many clients are told."""
    with Journal.open(run / "journal.sqlite", read_only=True) as journal, VllmServer(server.url, timeout=300) as client:
        asked = choose_questions(journal, journal.find_version(version), 100).edited
        model = client.served().base if base else "errata"
        answers = client.complete(model, [prompt for prompt, _ in asked], 12)
    return sum(contains(answer, [target]) for answer, (_, target) in zip(answers, asked, strict=True)) / len(asked)


def rank_on(server: Server) -> int:
    """Rank of the adapter that clients have."""
    with VllmServer(server.url, timeout=300) as client:
        path = Path(client.served().adapters["errata"])
    return int(json.loads((path / "adapter_config.json").read_text())["r"])


def steps(run: Path) -> list[str]:
    with Journal.open(run / "journal.sqlite", read_only=True) as journal:
        return [str(event.data["what"]) for event in journal.events(EVENT)]


def test_edits_are_published_answered_reverted_and_survive_a_killed_server(
    streamed: Path, vllm: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    # by the policy, while the stream went on
    assert "switched" in steps(streamed)
    [result] = publish(streamed, vllm)
    assert result.state in ("already", "switched"), result
    told, before = share(streamed, vllm), share(streamed, vllm, base=True)
    print(f"\nstart {vllm.seconds:.0f} s; 20 edits: {told:.0%} answered as edited, {before:.0%} by the base")
    assert told >= 0.8 and before <= 0.2
    assert states(publish(streamed, vllm)) == ["already"]

    # an edit is taken back, and so is what the server says
    with Journal.open(streamed / "journal.sqlite", read_only=True) as journal:
        row = journal.requests("applied")[0]
    command = [sys.executable, "-m", "errata.orchestrator.cli", "revert", row.id, "--run", str(streamed)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert states(publish(streamed, vllm)) == ["switched"]
    with VllmServer(vllm.url, timeout=300) as client:
        [answer] = client.complete("errata", [row.request.text], 12)
    assert not contains(answer, [row.request.target_new])
    assert share(streamed, vllm) >= 0.8

    # killed when the name has just been given up: the next publication gives it back and goes on
    unload = VllmServer.unload

    def unload_and_kill(self: VllmServer, name: str) -> None:
        unload(self, name)
        if name == "errata":
            vllm.kill()

    with monkeypatch.context() as patch:
        patch.setattr(VllmServer, "unload", unload_and_kill)
        assert states(publish(streamed, vllm, name="v1")) == ["failed"]
    with VllmServer(vllm.url, timeout=5) as client, pytest.raises(ServerError):
        client.served()
    vllm.start()
    assert states(publish(streamed, vllm)) == ["switched"] and share(streamed, vllm) >= 0.8
    assert "lost" in steps(streamed)


def test_servers_are_rolled_one_by_one_and_one_that_fails_keeps_its_version(
    streamed: Path, vllm: Server, vllm_python: Path, tmp_path: Path
) -> None:
    other = Server(vllm_python, vllm.model, tmp_path / "log", rank=8)
    try:
        other.start()
        assert set(states(publish(streamed, other, vllm, name="v1"))) <= {"switched", "already"}
        assert rank_on(other) == rank_on(vllm) == 5
        # too wide for one of them, whose clients keep what they have; the one after it is rolled
        first, second = publish(streamed, other, vllm)
        assert first.state == "failed" and "max_lora_rank" in first.reason, first
        assert second.state == "switched" and share(streamed, vllm) >= 0.8
        assert rank_on(other) == 5 and share(streamed, other, version="v1") >= 0.8
        # and where it is dead
        other.kill()
        assert states(publish(streamed, other, vllm, name="v2")) == ["failed", "switched"]
        # restarted, it has no adapters any more, and gets its last one back before anything else
        other.start()
        assert states(publish(streamed, other)) == ["failed"] and rank_on(other) == 5
        assert "restoring" in steps(streamed)
    finally:
        other.kill()
