"""The demo model; a real vLLM server, and a run that has used it for all it is good for: what several tests look at."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from errata.editing.checkpoint.load import load_model
from errata.editing.model.adapter import EditableModel
from tests.helpers.vllm_server import RANK, Server, vllm_environment


@pytest.fixture(scope="module")
def model(smollm2: Path) -> EditableModel:
    """SmolLM2, a fresh one for every file."""
    return load_model(str(smollm2))


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    """A Python with vLLM; skips where there is none and none can be made."""
    return vllm_environment()


@pytest.fixture(scope="session")
def vllm_session(vllm_python: Path, smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(vllm_python, smollm2, tmp_path_factory.mktemp("vllm") / "log")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def vllm(vllm_session: Server) -> Server:
    """A server of SmolLM2 that runs, whatever the test before did to it."""
    vllm_session.start()
    return vllm_session


@pytest.fixture(scope="session")
def streamed(vllm_session: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 20 edits, during which the server sampled from base and live version, and was published to."""
    vllm_session.start()
    run = tmp_path_factory.mktemp("streamed") / "run"
    settings = [
        "stream.limit=20", "batching.size=5", "evaluation.every=null", "evaluation.arms=[base]",
        "evaluation.latency_questions=0", "ray.generation_workers=1",
        "covariance.tokens=1500", "covariance.sequences_per_unit=32", f"covariance.server.url={vllm_session.url}",
        f"covariance.server.model={vllm_session.model}", "refresh.every=10", "refresh.lag=5",
        f"publish.to=[vllm={vllm_session.url}]", "publish.every=1", f"publish.max_rank={RANK}",
        "publish.min_untouched=0.5", "publish.timeout_seconds=300",
    ]  # fmt: skip
    command = [sys.executable, "-m", "errata.orchestrator.cli", "run", "quickstart", "--output", str(run)]
    command += [part for item in settings for part in ("--set", item)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return run
