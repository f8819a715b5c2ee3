"""A service of `tests.helpers.hosted` as a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[3]


@dataclass
class Hosted:
    """The process, and where it listens."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    directory: Path

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120)


@contextmanager
def hosted(directory: Path, **wanted: Any) -> Iterator[Hosted]:
    log = directory / "log.txt"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.hosted", str(directory), json.dumps(wanted)],
            stdout=subprocess.PIPE,
            stderr=out,
            cwd=ROOT,
            start_new_session=True,
        )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().decode().strip()
        assert url, log.read_text()
        found = Hosted(process, url, log, directory)
        until(lambda: httpx.get(f"{url}/readyz", timeout=60).status_code == 200)
        yield found
    finally:
        process.kill()
        process.wait()


def until(true: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
