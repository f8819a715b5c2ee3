"""A service as a process of its own, on the tiny model and a real local Ray."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.helpers.browser import chromium, find_chromium
from tests.integration.harness import settings


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Served:
    """One process of ``errata serve``."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)

    def until_ready(self, seconds: float = 600) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"not ready: {self.log.read_text()[-3000:]}")

    def end(self, number: int = signal.SIGTERM, seconds: float = 90) -> int:
        """Send a signal; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(seconds)


class Services:
    """Starts services on one run directory, one after the other, and ends what it started."""

    def __init__(self, directory: Path, model: Path) -> None:
        self.output = directory / "run"
        self._directory = directory
        self.config = directory / "service.yaml"
        data = settings(model, directory / "none.jsonl")
        data |= {"stream": {"path": ""}, "batching": {"size": 3, "max_age_seconds": 0.3}, "schedule": "asap"}
        data["refresh"] = {"every": None}
        data["evaluation"] |= {"every": 4}
        # batches take seconds, so that questions surely meet one under way, on a quick machine too
        values = {**data["editor"].get("values", {}), "steps": 150, "lr": 0.002}
        data["editor"] = {**data["editor"], "values": values}
        self.config.write_text(yaml.safe_dump(data))
        self.started: list[Served] = []
        self.program: tuple[str, ...] = ("errata.orchestrator.cli",)
        """Module that is run, and what it is given before the command."""

    def start(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Served:
        port = free_port()
        log = self._directory / f"log-{len(self.started)}.txt"
        command = [
            sys.executable,
            "-m",
            *self.program,
            "serve",
            str(self.config),
            "--output",
            str(self.output),
        ]
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*command, "--port", str(port), *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        served = Served(process, f"http://127.0.0.1:{port}", log)
        self.started.append(served)
        return served

    def kill_all(self) -> None:
        """What is left of the process groups this object started."""
        for served in self.started:
            try:
                os.killpg(served.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            served.process.wait(30)


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[Services]:
    made = Services(tmp_path_factory.mktemp("service"), tiny_checkpoint)
    yield made
    made.kill_all()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless browser; skips where there is none."""
    if find_chromium() is None:
        pytest.skip("no Chromium on this machine")
    with chromium() as made:
        yield made
