"""What a soak is made of: a service that is started again whenever it was killed, producers that never lose count of
what they were told, and somebody who kills."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.integration.service.conftest import Served, Services, free_port

PLACES = ("French", "Canada", "Italy", "Angola", "Rome", "Paris", "Africa", "football")
PEOPLE = ("Danielle Darrieux", "Alice Munro", "Thierry Henry")
SUBJECTS = 3000
"""So few that many edits are about a fact that was edited before."""
STREAM = "errata:edits"
ACTORS = ("EditorActor", "RetrievalActor", "UnitActor", "EvaluationActor")


def fact(dice: random.Random, name: str) -> dict[str, Any]:
    """An edit under a name of its own, about one of some thousand subjects."""
    number = dice.randrange(SUBJECTS)
    return {
        "id": name,
        "subject": f"{PEOPLE[number % 3]} {number}",
        "prompt": "{} works in",
        "target_new": dice.choice(PLACES),
        "relation": "place of work",
    }


def start_redis(directory: Path) -> tuple[str, subprocess.Popen[bytes]]:
    """A Redis server of the test's own, which survives everything; skips where none is installed."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed")
    port = free_port()
    command = [program, "--port", str(port), "--dir", str(directory), "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    for _ in range(250):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return f"redis://127.0.0.1:{port}/0", process
        time.sleep(0.02)
    process.kill()
    raise AssertionError("redis-server did not come up")


# ---------------------------------------------------------------- the service and its death


@dataclass
class Host:
    """Whoever supervises the service: it is started again on the same directory, at the same address."""

    services: Services
    port: int = field(default_factory=free_port)
    served: Served | None = None
    kills: Counter[str] = field(default_factory=Counter)
    ready_seconds: list[float] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, patience: float = 1200) -> None:
        """Start the service and wait until it edits."""
        began = time.monotonic()
        self.served = self.services.start("--port", str(self.port))
        self.served.url = self.url
        self.served.until_ready(patience)
        self.ready_seconds.append(time.monotonic() - began)

    def check(self) -> None:
        """Raise if the service has ended by itself."""
        assert self.served is not None
        code = self.served.process.poll()
        assert code is None, f"the service ended by itself with {code}: {self.served.log.read_text()[-3000:]}"

    def tree(self) -> list[psutil.Process]:
        """Every process that the service has started."""
        assert self.served is not None
        try:
            return psutil.Process(self.served.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def kill_actor(self, dice: random.Random) -> None:
        """SIGKILL one actor of some kind, whatever it is doing."""
        kind = dice.choice(ACTORS)
        found = []
        for process in self.tree():
            with contextlib.suppress(psutil.Error, IndexError):
                if process.cmdline()[0].startswith(f"ray::{kind}"):
                    found.append(process)
        if found:
            with contextlib.suppress(psutil.Error):
                dice.choice(found).kill()
                self.kills[kind] += 1

    def kill_service(self, *, tree: bool) -> None:
        """SIGKILL the process that owns the journal, or everything down to the last worker; then start again."""
        assert self.served is not None
        children = self.tree()
        self.served.process.kill()
        self.served.process.wait(60)
        if not tree:
            psutil.wait_procs(children, timeout=8)  # Ray's processes end with the one that started them, mostly
        for child in children:
            with contextlib.suppress(psutil.Error):
                child.kill()
        psutil.wait_procs(children, timeout=30)
        self.kills["process tree" if tree else "service process"] += 1
        self.start()

    def end_service(self) -> None:
        """SIGTERM in the middle of everything; it ends by itself, and is started again."""
        assert self.served is not None
        code = self.served.end(signal.SIGTERM, 200)
        assert code == 0, f"it ended with {code}: {self.served.log.read_text()[-3000:]}"
        self.kills["service told to end"] += 1
        self.start()


class Killer(threading.Thread):
    """Kills an actor every few seconds, and now and then the service; what goes wrong is in `error`."""

    def __init__(self, host: Host, *, seconds: float, every_service: float, seed: int = 0) -> None:
        super().__init__(name="killer", daemon=True)
        self._host, self._until, self._every = host, time.monotonic() + seconds, every_service
        self._dice = random.Random(seed)
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            following, turn = time.monotonic() + self._every, 0
            while time.monotonic() < self._until:
                time.sleep(self._dice.uniform(2.0, 7.0))
                self._host.check()
                if time.monotonic() >= following:
                    if turn % 3 == 2:
                        self._host.end_service()
                    else:
                        self._host.kill_service(tree=turn % 3 == 1)
                    turn += 1
                    following = time.monotonic() + self._every * self._dice.uniform(0.6, 1.4)
                else:
                    self._host.kill_actor(self._dice)
        except BaseException as error:
            self.error = error


class Attacker(threading.Thread):
    """Does what hostile clients and clumsy neighbors do, one thing after the other; what it got is in `counts`."""

    def __init__(self, host: Host, journal: Path, clock: Path, *, seconds: float, seed: int = 7) -> None:
        """``clock``: the file that says by how much the service's clock is off."""
        super().__init__(name="attacker", daemon=True)
        self._host, self._journal, self._clock = host, journal, clock
        self._until = time.monotonic() + seconds
        self._dice = random.Random(seed)
        self._client = httpx.Client(base_url=host.url, timeout=20)
        self.counts: Counter[str] = Counter()
        self.error: BaseException | None = None
        self._round: list[Callable[[], None]] = []

    def run(self) -> None:
        doings = [
            self._idle, self._half, self._leave, self._large, self._lock, self._evaluate, self._random, self._jump,
            self._poison,
        ]  # fmt: skip
        try:
            while time.monotonic() < self._until:
                # in rounds, so that a short soak has some of each
                if not self._round:
                    self._round = self._dice.sample(doings, len(doings))
                doing = self._round.pop()
                with contextlib.suppress(httpx.TransportError, OSError):  # the service may be dead at the moment
                    doing()
                    self.counts[doing.__name__.strip("_")] += 1
                time.sleep(self._dice.uniform(0.2, 2.0))
        except BaseException as error:
            self.error = error

    def _heard(self, answer: httpx.Response) -> httpx.Response:
        assert answer.status_code < 500 or answer.status_code in (503, 504), (answer.status_code, answer.text[:300])
        self.counts[f"told {answer.status_code}"] += 1
        return answer

    def _connections(self, count: int, said: bytes) -> None:
        held = []
        for _ in range(count):
            one = socket.create_connection(("127.0.0.1", self._host.port), timeout=5)
            if said:
                one.sendall(said)
            held.append(one)
        time.sleep(self._dice.uniform(0.5, 3.0))
        for one in held:
            one.close()

    def _idle(self) -> None:
        self._connections(self._dice.randint(50, 300), b"")

    def _half(self) -> None:
        self._connections(30, b"POST /v1/edits HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Le")

    def _leave(self) -> None:
        """Questions whose clients do not wait for the answer."""
        for _ in range(6):
            with contextlib.suppress(httpx.ReadTimeout):
                self._client.post("/v1/query", json={"question": "The capital of France is"}, timeout=0.2)

    def _large(self) -> None:
        body = json.dumps([{"x": "y" * 1_000_000}]).encode()
        self._heard(self._client.post("/v1/edits", content=body, headers={"Content-Type": "application/json"}))

    def _lock(self) -> None:
        """Another process holds the journal for some seconds, as a backup that was not meant to might."""
        other = sqlite3.connect(self._journal, isolation_level=None, timeout=2)
        try:
            other.execute("BEGIN IMMEDIATE")
            time.sleep(self._dice.uniform(1.0, 6.0))
            other.execute("ROLLBACK")
        except sqlite3.OperationalError:
            self.counts["lock not had"] += 1
        finally:
            other.close()

    def _jump(self) -> None:
        """The wall clock is set, by an hour or a day, back or forward, or right again."""
        self._clock.write_text(str(self._dice.choice((-86400, -3600, 0, 3600, 86400))))

    def _poison(self) -> None:
        """Edits that the model has no room for, or that are none; beside them one that would do is not handed in."""
        far = {"subject": "Rome", "prompt": "{} lies in", "target_new": "Rome " * 5000}
        wrong = {"subject": "Rome", "prompt": "no slot", "target_new": "Rome"}
        for poison in (far, wrong, far | {"target_new": "\0"}, [far, wrong] * 20):
            answer = self._heard(self._client.post("/v1/edits", json=poison))
            assert answer.status_code != 202 or answer.json()["accepted"] == 0, answer.text[:300]

    def _evaluate(self) -> None:
        asked = self._heard(self._client.post("/v1/evaluations", json={"sample": 4}))
        if asked.status_code == 202 and self._dice.random() < 0.7:
            self._heard(self._client.delete(f"/v1/evaluations/{asked.json()['name']}"))

    def _random(self) -> None:
        noise = self._dice.randbytes(self._dice.randint(0, 300))
        path = self._dice.choice(("/v1/edits", "/v1/query", "/v1/pauses", "/v1/chat/completions"))
        self._heard(self._client.post(path, content=noise, headers={"Content-Type": "application/json"}))


# ---------------------------------------------------------------- who hands in, and what they were told


class Producer(threading.Thread):
    """Hands in edits until it is stopped, and brings what it has begun to an end; what goes wrong is in `error`."""

    def __init__(self, name: str, seed: int) -> None:
        super().__init__(name=name, daemon=True)
        self.dice = random.Random(seed)
        self.told: dict[str, dict[str, Any]] = {}
        """By id what was handed in, once it was answered for."""
        self.counts: Counter[str] = Counter()
        self.stopping = threading.Event()
        self.error: BaseException | None = None
        self._number = 0

    def run(self) -> None:
        try:
            while not self.stopping.is_set():
                self.turn()
        except BaseException as error:
            self.error = error

    def turn(self) -> None:
        raise NotImplementedError

    def new(self) -> dict[str, Any]:
        self._number += 1
        return fact(self.dice, f"{self.name}-{self._number}")

    def again(self) -> dict[str, Any] | None:
        """Something handed in before, word for word."""
        return self.told[self.dice.choice(list(self.told))] if self.told else None


class HttpClient(Producer):
    """Hands in by HTTP, tries again until it has an answer, takes edits back, and looks at what became of them."""

    def __init__(self, name: str, seed: int, url: str) -> None:
        super().__init__(name, seed)
        self._client = httpx.Client(base_url=url, timeout=30)
        self.seen: dict[str, tuple[int | None, str]] = {}
        """By id the commit that wrote it, as the service said, and the state at that moment."""
        self.taken_back: dict[str, int] = {}
        """By id the status with which the service promised that it is out, or will be."""
        self._next_revert = time.monotonic() + 5

    def turn(self) -> None:
        body = [self.new() for _ in range(self.dice.randint(1, 12))]
        if self.dice.random() < 0.05:
            # it costs the editor as much as a whole batch does
            body[-1]["target_new"] = " ".join(self.dice.choices(PLACES, k=40))
            self.counts["edits with forty words"] += 1
        repeated = self.again() if self.dice.random() < 0.2 else None
        answer = self.insist("POST", "/v1/edits", json=body + ([repeated] if repeated else []))
        assert answer.status_code == 202, answer.text
        results = answer.json()["results"]
        for edit, result in zip(body, results, strict=False):
            # a duplicate: the first answer was lost with the service, the edit was not
            assert result["id"] == edit["id"] and result["status"] in ("accepted", "duplicate"), result
            self.told[edit["id"]] = edit
            self.counts[result["status"]] += 1
        if repeated is not None:
            assert results[-1]["status"] == "duplicate", results[-1]
            self.counts["known edits handed in again"] += 1
        if self.dice.random() < 0.3:
            self._look()
        if time.monotonic() >= self._next_revert:
            self._take_back()

    def _look(self) -> None:
        name = self.dice.choice(list(self.told))
        found = self.insist("GET", f"/v1/edits/{name}").json()
        self.seen[name] = (found["applied_in"], found["state"])
        self.counts["looked at"] += 1

    def _take_back(self) -> None:
        name = self.dice.choice(list(self.told)[-200:])
        answer = self.insist("DELETE", f"/v1/edits/{name}", params={"wait": 0, "reason": "soak"})
        assert answer.status_code in (200, 202, 409), answer.text
        self.counts[f"taken back, {answer.status_code}"] += 1
        if answer.status_code != 409:
            self.taken_back[name] = answer.status_code
        self._next_revert = time.monotonic() + self.dice.uniform(8, 16)

    def insist(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Ask until there is an answer that is none of being busy, starting or ending."""
        deadline = time.monotonic() + 700
        while True:
            assert time.monotonic() < deadline, f"{method} {path}: no answer for ever so long"
            try:
                answer = self._client.request(method, path, **options)
            except httpx.TransportError:
                self.counts["no answer"] += 1
                time.sleep(0.2)
                continue
            if answer.status_code in (429, 503):
                self.counts[f"told {answer.status_code}"] += 1
                time.sleep(min(2.0, float(answer.headers["retry-after"])) * self.dice.uniform(0.3, 1.0))
                continue
            return answer


class RedisProducer(Producer):
    """Adds entries to the stream as fast as the service takes them; some twice, some that are no request."""

    def __init__(self, name: str, seed: int, url: str, *, most_ahead: int = 400) -> None:
        import redis

        super().__init__(name, seed)
        self.client = redis.Redis.from_url(url)
        self._most_ahead = most_ahead
        self.malformed = 0

    def turn(self) -> None:
        if self.ahead() > self._most_ahead:
            time.sleep(0.05)
            return
        for _ in range(20):
            edit = self.new()
            self.client.xadd(STREAM, {"edit": json.dumps(edit)})
            self.told[edit["id"]] = edit
            if self.dice.random() < 0.05 and (repeated := self.again()):
                self.client.xadd(STREAM, {"edit": json.dumps(repeated)})
                self.counts["known edits handed in again"] += 1
            if self.dice.random() < 0.01:
                self.client.xadd(STREAM, {"edit": '{"subject": "nobody"'})
                self.malformed += 1

    def ahead(self) -> int:
        """Entries that were not acknowledged yet."""
        for group in self.client.xinfo_groups(STREAM):
            return int(group["lag"] or 0) + int(group["pending"])
        return 0


def wait_until(true: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def ended(host: Host) -> int:
    """SIGTERM; the exit code."""
    assert host.served is not None
    return host.served.end(signal.SIGTERM)
