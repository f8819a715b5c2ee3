"""How long clients of the service wait, and how much it gets done.

    python -m benchmarks.service_latency [--config service] [--edits 30] [--set KEY=VALUE]... [--output FILE]

Starts ``errata serve`` in a directory of its own and prints: acceptance of single edits one after the other, by eight
clients at once, and while batches are being edited; edits a minute; questions while idle and while batches are edited,
and an evaluation meanwhile. An accepted edit is in the journal, synchronized to the disk, before its client has the
answer. The settings are those of the configuration, but for a covariance of fewer tokens, which an edit's time does not
depend on; figures go to ``benchmarks/results/service_latency.json``.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from benchmarks.measuring import context, store

_SETTINGS = ("evaluation.every=null", "evaluation.sample=4", "refresh.every=null", "covariance.tokens=2000")
_PLACES = ("Paris", "Rome", "Madrid", "Berlin", "Vienna", "Lisbon", "Oslo", "Athens")


def edit(name: str) -> dict[str, Any]:
    """A fact about nobody."""
    number = sum(map(ord, name))
    subject = f"Hubert Lindqvist {name}"
    return {"id": name, "subject": subject, "prompt": "{} lives in the city of", "target_new": _PLACES[number % 8]}


def timed(call: Callable[[], httpx.Response], expected: int) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    answer = call()
    seconds = time.perf_counter() - started
    if answer.status_code != expected:
        raise SystemExit(f"got {answer.status_code}: {answer.text[:300]}")
    return seconds


def figures(name: str, seconds: list[float]) -> dict[str, Any]:
    """p50, p99 and the worst, in milliseconds; printed as well."""
    ordered = sorted(1000 * value for value in seconds)
    numbers = {
        "calls": len(ordered),
        "p50_ms": round(statistics.median(ordered), 2),
        "p99_ms": round(ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], 2),
        "worst_ms": round(ordered[-1], 2),
    }
    print(f"{name:<44} {numbers['calls']:>5} calls  p50 {numbers['p50_ms']:>9.2f} ms  p99 {numbers['p99_ms']:>9.2f} ms")
    return numbers


def accept(client: httpx.Client, name: str) -> float:
    """Hand one edit in."""
    return timed(lambda: client.post("/v1/edits", json=edit(name)), 202)


def ask(client: httpx.Client, arms: list[str]) -> float:
    """One question to some arms."""
    body = {"question": "Hubert Lindqvist s0 lives in the city of", "arms": arms, "max_new_tokens": 6}
    return timed(lambda: client.post("/v1/query", json=body), 200)


def waiting(client: httpx.Client) -> int:
    """Edits that wait to be written."""
    return int(client.get("/v1/status").json()["edits"]["waiting"])


def fsync_seconds(place: Path) -> float:
    """What the disk takes for a page, in the median: the least an acceptance can take."""
    seconds = []
    with (place / "probe").open("wb") as file:
        for _ in range(20):
            file.write(b"x" * 4096)
            file.flush()
            started = time.perf_counter()
            os.fsync(file.fileno())
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def evaluate(client: httpx.Client) -> float | None:
    """Seconds from asking for an evaluation of four facts to its figures; None where no edit is applied yet."""
    started = time.perf_counter()
    answer = client.post("/v1/evaluations", json={"sample": 4})
    if answer.status_code != 202:
        return None
    while True:
        states = {asked["name"]: asked["state"] for asked in client.get("/v1/evaluations").json()["asked"]}
        if states[answer.json()["name"]] == "done":
            return time.perf_counter() - started
        if states[answer.json()["name"]] == "failed":
            raise SystemExit("the evaluation failed")
        time.sleep(0.1)


def measure(url: str, edits: int, calls: int, place: Path) -> dict[str, Any]:
    """All figures."""
    results: dict[str, Any] = {}
    with httpx.Client(base_url=url, timeout=300) as client:
        client.post("/v1/pause")
        names = [f"a{n}" for n in range(calls)]
        results["accept_one_client"] = figures("accept, one client", [accept(client, name) for name in names])

        def many(worker: int) -> list[float]:
            with httpx.Client(base_url=url, timeout=300) as own:
                return [accept(own, f"b{worker}-{n}") for n in range(calls // 4)]

        started = time.perf_counter()
        with ThreadPoolExecutor(8) as pool:
            times = [value for part in pool.map(many, range(8)) for value in part]
        results["accept_eight_clients"] = figures("accept, eight clients", times)
        results["accepts_per_second"] = round(len(times) / (time.perf_counter() - started), 1)
        print(f"{'':<44} {results['accepts_per_second']:>5} accepts/s by eight clients")
        results["fsync_ms"] = round(1000 * fsync_seconds(place), 2)
        print(f"{'an fsync of this disk by itself':<44} {'':>11} p50 {results['fsync_ms']:>9.2f} ms")
        withdrawn = [*names, *(f"b{worker}-{n}" for worker in range(8) for n in range(calls // 4))]
        gone = [timed(lambda name=name: client.delete(f"/v1/edits/{name}"), 200) for name in withdrawn]  # type: ignore[misc]
        results["withdraw"] = figures("take back an edit that waits", gone)
        every = ["base", "edited", "memory", "edited_memory"]
        ask(client, every)
        results["ask_edited_idle"] = figures("question to 'edited', idle", [ask(client, ["edited"]) for _ in range(10)])
        results["ask_all_idle"] = figures("question to four arms, idle", [ask(client, every) for _ in range(10)])
        timed(lambda: client.post("/v1/edits", json=[edit(f"s{n}") for n in range(edits)]), 202)
        accepted: list[float] = []
        done = threading.Event()

        def trickle() -> None:
            with httpx.Client(base_url=url, timeout=300) as own:
                while len(accepted) < edits // 2 and not done.wait(0.3):
                    accepted.append(accept(own, f"t{len(accepted)}"))

        thread = threading.Thread(target=trickle)
        started = time.perf_counter()
        client.post("/v1/resume")
        while waiting(client) > edits // 2:
            time.sleep(0.2)
        half = time.perf_counter() - started
        rate = 60 * (edits - waiting(client)) / half
        results["edits_per_minute"] = round(rate, 1)
        print(f"{'edits a minute, nothing else asked':<44} {rate:>11.1f}")
        thread.start()
        evaluated: list[tuple[float | None, int]] = []

        def evaluate_meanwhile() -> None:
            with httpx.Client(base_url=url, timeout=300) as own:
                evaluated.append((evaluate(own), waiting(own)))

        evaluating = threading.Thread(target=evaluate_meanwhile)
        evaluating.start()
        one: list[float] = []
        four: list[float] = []
        while waiting(client) > 0:
            one.append(ask(client, ["edited"]))
            four.append(ask(client, every))
        done.set()
        thread.join()
        evaluating.join()
        ((seconds, left),) = evaluated
        results["evaluation_of_4_facts_s"], results["edits_waiting_when_it_ended"] = seconds, left
        print(f"{'evaluation of 4 facts, batches under way':<44} {seconds or 0:>11.1f} s, {left} edits still waiting")
        results["ask_edited_during"] = figures("question to 'edited', batches under way", one)
        results["ask_all_during"] = figures("question to four arms, batches under way", four)
        results["accept_during"] = figures("accept, batches under way", accepted)
    return results


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="service")
    parser.add_argument("--edits", type=int, default=30)
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "errata.orchestrator.cli", "serve", given.config, "--port", str(port)]
        command += ["--output", str(Path(place) / "run")]
        for override in [*_SETTINGS, *given.set]:
            command += ["--set", override]
        log = Path(place) / "log"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ERRATA_TOKENS")}
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        url = f"http://127.0.0.1:{port}"
        try:
            started = time.perf_counter()
            while True:
                if process.poll() is not None:
                    raise SystemExit(log.read_text()[-3000:])
                try:
                    if httpx.get(f"{url}/readyz", timeout=60).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.2)
            ready = time.perf_counter() - started
            print(f"{'ready after':<44} {ready:>11.1f} s", flush=True)
            before = context()
            results = measure(url, given.edits, given.calls, Path(place))
            result = {"context": before, "settings": [*_SETTINGS, *given.set], "ready_s": ready, **results}
            print(store("service_latency", result, given.output))
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(120)


if __name__ == "__main__":
    main()
