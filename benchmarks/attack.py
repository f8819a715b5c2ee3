"""What clients wait for while the service is attacked, and what editing loses by it.

    python -m benchmarks.attack [--seconds 60] [--idle 1000] [--readers 20] [--output FILE]

Starts ``errata serve`` on a tiny random model in a directory of its own and hands in edits for so many seconds, first
undisturbed and then beside ``idle`` connections that say nothing (and are made again as they are cut off), ``readers``
(tokens with the role read) that each send a body of a megabyte once a second, and an edit every ten seconds that costs
the editor as much as many. Prints how
long an acceptance and ``/healthz`` take, asked by a client of its own, and the edits written per second of the
editor's CPU time. Whoever attacks is niced, since it is another machine's work: here it shares the service's
processors. The machine's load is printed beside the figures, which go to ``benchmarks/results/attack.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

_PLACES = ("Angola", "Rome", "Paris", "Canada", "Italy")
_POISON_SECONDS = 10.0
_READ, _WRITE = "reader-of-the-attack-000", "writer-of-the-attack-000"


def _headers(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def tiny_checkpoint(directory: Path) -> Path:
    """A random model of four layers, as the tests have it."""
    from tests.helpers.tiny import save_tiny

    return save_tiny(directory / "tiny", layers=4)


def configuration(model: Path, directory: Path) -> Path:
    """Small steps: a tiny model takes thousands of edits."""
    data = {
        "name": "attack",
        "schedule": "asap",
        "model": {"name": str(model)},
        "editor": {"type": "memit", "layers": [1, 2], "cov_weight": 50.0, "values": {"steps": 10, "lr": 0.05}},
        "contexts": {"count": 1, "length": 3},
        "batching": {"size": 16, "max_age_seconds": 0.2},
        "covariance": {"tokens": 200, "max_new_tokens": 8, "sequences_per_unit": 4, "slots": 4},
        "refresh": {"every": None},
        "evaluation": {"every": None, "sample": 2, "held_out": None, "max_new_tokens": 2},
        "memory": {"embedder": {"type": "hash", "dim": 64}},
        "snapshots": {"every": 500},
        "ray": {"generation_workers": 1, "evaluation_workers": 0},
        "service": {"max_waiting": 4000, "head_seconds": 10.0, "max_connections": 1500},
    }
    path = directory / "attack.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def fact(dice: random.Random, name: str) -> dict[str, Any]:
    """An edit about somebody new."""
    subject = f"Alice Munro {name}"
    return {"id": name, "subject": subject, "prompt": "{} works in", "target_new": dice.choice(_PLACES)}


class Attack:
    """Processes that do harm, niced: idle connections, readers of large bodies, poison."""

    def __init__(self, url: str, idle: int, readers: int) -> None:
        self._command = [sys.executable, "-m", "benchmarks.attack", "--attack", url, str(idle), str(readers)]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Attack:
        self._process = subprocess.Popen(["nice", "-n", "19", *self._command], stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self._process.stdout.readline()  # all connections are there
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait()


def attack(url: str, idle: int, readers: int) -> None:
    """The other side; runs until it is ended."""
    host, port = url.removeprefix("http://").split(":")
    chosen = selectors.DefaultSelector()

    def connect() -> None:
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex((host, int(port)))
        chosen.register(one, selectors.EVENT_READ)

    for _ in range(idle):
        connect()
        time.sleep(0.002)
    body = json.dumps({"question": "y" * 1_048_000}).encode()
    threading.Thread(target=_poison, args=(url,), daemon=True).start()
    for number in range(readers):
        threading.Thread(target=_read, args=(url, body, number / max(1, readers)), daemon=True).start()
    print("there", flush=True)
    while True:
        for key, _ in chosen.select(1.0):  # cut off: there is another one at once
            one = key.fileobj
            assert isinstance(one, socket.socket)
            chosen.unregister(one)
            one.close()
            connect()


def _read(url: str, body: bytes, later: float) -> None:
    time.sleep(later)
    with httpx.Client(base_url=url, timeout=60) as client:
        while True:
            started = time.monotonic()
            with contextlib.suppress(httpx.TransportError):
                client.post("/v1/query", content=body, headers=_headers(_READ) | {"Content-Type": "application/json"})
            time.sleep(max(0.0, 1.0 - (time.monotonic() - started)))


def _poison(url: str) -> None:
    """Edits whose targets are as long as those of a whole batch."""
    dice, number = random.Random(2), 0
    with httpx.Client(base_url=url, timeout=60, headers=_headers(_WRITE)) as client:
        while True:
            number += 1
            poison = fact(dice, f"poison-{os.getpid()}-{number}") | {
                "target_new": " ".join(dice.choices(_PLACES, k=60))
            }
            with contextlib.suppress(httpx.TransportError):
                client.post("/v1/edits", json=poison)
            time.sleep(_POISON_SECONDS)


class Producer(threading.Thread):
    """Keeps some hundred edits waiting."""

    def __init__(self, url: str, name: str) -> None:
        super().__init__(daemon=True)
        self._url, self._name, self.stopping = url, name, threading.Event()

    def run(self) -> None:
        dice, number = random.Random(0), 0
        with httpx.Client(base_url=self._url, timeout=60, headers=_headers(_WRITE)) as client:
            while not self.stopping.is_set():
                if client.get("/v1/status").json()["edits"]["waiting"] > 300:
                    self.stopping.wait(0.2)
                    continue
                number += 1
                client.post("/v1/edits", json=[fact(dice, f"{self._name}-{number}-{n}") for n in range(100)])


def editor_cpu(service: subprocess.Popen[bytes]) -> float:
    """CPU seconds of the editor's process."""
    for process in psutil.Process(service.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error, IndexError):
            if process.cmdline()[0].startswith("ray::EditorActor"):
                times = process.cpu_times()
                return times.user + times.system
    raise SystemExit("the editor's process was not found")


def phase(name: str, url: str, service: subprocess.Popen[bytes], seconds: float) -> dict[str, Any]:
    """Acceptances and ``/healthz`` by a client that does nothing else, and what was written meanwhile."""
    from benchmarks.service_latency import figures, timed  # it imports torch, which the attackers do without

    producer = Producer(url, name)
    producer.start()
    dice = random.Random(1)
    accepts: list[float] = []
    health: list[float] = []
    load = os.getloadavg()[0]
    with httpx.Client(base_url=url, timeout=60, headers=_headers(_WRITE)) as client:
        time.sleep(3)

        def written() -> int:
            return int(client.get("/v1/status").json()["edits"]["applied"])

        before, cpu, began = written(), editor_cpu(service), time.monotonic()
        while time.monotonic() - began < seconds:
            asked = fact(dice, f"asked-{name}-{len(accepts)}")
            accepts.append(timed(lambda asked=asked: client.post("/v1/edits", json=asked), 202))  # type: ignore[misc]
            health.append(timed(lambda: client.get("/healthz"), 200))
            time.sleep(0.05)
        after, cpu_after, ended = written(), editor_cpu(service), time.monotonic()
    producer.stopping.set()
    producer.join(60)
    edits, spent = after - before, cpu_after - cpu
    found = {
        "accept": figures(f"{name}: accept", accepts),
        "healthz": figures(f"{name}: /healthz", health),
        "edits": edits,
        "seconds": round(ended - began, 1),
        "editor_cpu_seconds": round(spent, 2),
        "edits_per_cpu_second": round(edits / spent, 2),
        "load": [round(load, 2), round(os.getloadavg()[0], 2)],
    }
    print(f"{name}: {edits} edits, {found['edits_per_cpu_second']} per CPU second of the editor, load {found['load']}")
    return found


@contextlib.contextmanager
def service(directory: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A service that is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = configuration(tiny_checkpoint(directory), directory)
    command = [sys.executable, "-m", "errata.orchestrator.cli", "serve", str(config)]
    with (directory / "log.txt").open("wb") as out:
        process = subprocess.Popen(
            [*command, "--output", str(directory / "run"), "--port", str(port)],
            stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "ERRATA_TOKENS": f"read:{_READ},write:{_WRITE}"},
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 900
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                    break
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit((directory / "log.txt").read_text()[-3000:])
            time.sleep(0.2)
        yield url, process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def main() -> None:
    """Measure both, compare, keep."""
    if sys.argv[1:2] == ["--attack"]:
        attack(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
        return
    from benchmarks.measuring import context, store

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each of the two phases")
    parser.add_argument("--idle", type=int, default=1000)
    parser.add_argument("--readers", type=int, default=20)
    parser.add_argument("--output", type=Path, help="by default benchmarks/results/attack.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="errata-attack-") as place, service(Path(place)) as (url, process):
        calm = phase("undisturbed", url, process, given.seconds)
        with Attack(url, given.idle, given.readers):
            attacked = phase("attacked", url, process, given.seconds)
    kept = attacked["edits_per_cpu_second"] / calm["edits_per_cpu_second"]
    print(
        f"under attack: accepts p99 {attacked['accept']['p99_ms']} ms (100 wanted), /healthz p99 "
        f"{attacked['healthz']['p99_ms']} ms (200 wanted), {100 * kept:.0f} % of the undisturbed rate (80 wanted)"
    )
    attackers = {"idle": given.idle, "readers": given.readers, "poison_seconds": _POISON_SECONDS}
    result = {"context": context(), "attackers": attackers, "undisturbed": calm, "attacked": attacked}
    print(store("attack", result, given.output))


if __name__ == "__main__":
    main()
