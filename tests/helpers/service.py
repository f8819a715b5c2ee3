"""A service around a pipeline without models: a real journal, real threads, versions made of nothing but names."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fastapi.testclient import TestClient

from errata.actors.workers.retrieval import RetrievalWorker
from errata.editing.errors import AbandonedError, ErrataError, UserError
from errata.editing.model.streaming import Sampling
from errata.editing.request import EditRequest
from errata.evaluation.answering import ArmAnswer, Question
from errata.evaluation.outcomes import ARMS, Arm, Retrieved
from errata.evaluation.patience import ENDLESS, Patience
from errata.evaluation.streaming import Opened, TextPiece
from errata.orchestrator.config.publish import PublishConfig
from errata.orchestrator.config.service import ServiceConfig
from errata.orchestrator.history.past import Past
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.intake import Admission
from errata.orchestrator.journal.rows import CommitData, JournalMeta, RequestOutcome, Version
from errata.orchestrator.publish.questions import Marks
from errata.orchestrator.publish.registry import Registered
from errata.orchestrator.publish.rollout import ServerResult, State
from errata.orchestrator.run.batches import plan_batch
from errata.orchestrator.service.access import Tokens, load_tokens
from errata.orchestrator.service.app import make_app
from errata.orchestrator.service.asking import Asking, Bounds
from errata.orchestrator.service.bodies import PublicationIn
from errata.orchestrator.service.calls import Service
from errata.orchestrator.service.core import ServiceCore
from errata.orchestrator.service.metrics import Metrics
from errata.orchestrator.service.publishing import Publishing
from errata.retrieval.embedder import HashEmbedderConfig
from errata.retrieval.index import IndexConfig
from errata.retrieval.memory import MemoryEntry
from errata.retrieval.router import Findings, FittedRouter
from errata.retrieval.router_fit import shipped

SERVERS = ("vllm=http://127.0.0.1:1", "vllm=http://127.0.0.1:2")
READ, WRITE, ADMIN = "reader-token-0123456789", "writer-token-0123456789", "admin-token-01234567890"
TOKENS = f"read:{READ},write:{WRITE},admin:{ADMIN}"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@dataclass(frozen=True)
class FakeHit:
    id: int
    score: float
    statement: str
    request_id: str


class FakeEditor:
    def weights(self) -> dict[int, Any]:
        return {}


class FakePipeline:
    """Commits whatever waits, `size` at a time, once `gate` is open."""

    def __init__(self, journal: Journal, *, size: int = 10) -> None:
        self.journal, self.size = journal, size
        self.after_commit: list[Callable[[Version], None]] = []
        self.editor = FakeEditor()
        self.gate, self.start_gate, self.writing = threading.Event(), threading.Event(), threading.Event()
        self.measure_gate = threading.Event()
        self.given_up = False
        self.gate.set()
        self.start_gate.set()
        self.measure_gate.set()
        self.refreshes = 0
        self.broken: Exception | None = None
        self.closed = False

    def start(self) -> None:
        assert self.start_gate.wait(20)
        if self.given_up:
            raise ErrataError("it was given up")

    def head(self) -> Version:
        return self.journal.head()

    def write_next(self, *, ended: bool) -> Version | None:
        if self.broken is not None:
            raise self.broken
        plan = plan_batch([row.request for row in self.journal.pending(self.size)], self.size)
        if plan is None:
            return None
        self.writing.set()
        assert self.gate.wait(20)
        self.writing.clear()
        outcomes = tuple(_outcome(request) for request in plan.requests)
        return self._commit(CommitData(self._next(), outcomes, self._delta(), superseded=plan.superseded))

    def revert(self, request_ids: Sequence[str], *, reason: str = "", by: str | None = None) -> Version:
        for name in request_ids:
            row = self.journal.request(name)
            if row is None or row.state != "applied":
                raise UserError(f"edit {name!r} is not applied")
        return self._commit(
            CommitData(
                self._next(), (), self._delta(), kind="revert", reverts=tuple(request_ids), reason=reason or None
            )
        )

    def request_refresh(self) -> bool:
        self.refreshes += 1
        return self.refreshes == 1

    def inspect(self) -> Any:
        return SimpleNamespace(version=self.head(), weights="w" * 64, memory="m" * 64, statements=3)

    def give_up(self) -> None:
        self.given_up = True
        self.gate.set()
        self.start_gate.set()

    def measure(
        self,
        requests: Sequence[EditRequest],
        *,
        kind: str = "asked",
        wanted: Callable[[], bool] | None = None,
    ) -> Future[Any]:
        if not self.measure_gate.is_set():
            return self._held_back(wanted or (lambda: True))
        head = self.head()
        arms = {arm: {"efficacy": 0.5} for arm in ARMS}
        self.journal.record_evaluation(head.digest, head.edits, kind, {"arms": arms, "facts": len(requests)})
        future: Future[Any] = Future()
        future.set_result(None)
        return future

    def _held_back(self, wanted: Callable[[], bool]) -> Future[Any]:
        """An evaluation under way until it is not wanted any more, or the gate opens."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()

        def work() -> None:
            while wanted() and not self.measure_gate.wait(0.01):
                pass
            if wanted():
                future.set_result(None)
            else:
                future.set_exception(AbandonedError("taken back"))

        threading.Thread(target=work, daemon=True).start()
        return future

    def close(self) -> None:
        self.closed = True

    def _next(self) -> int:
        return self.journal.next_sequence()

    def _delta(self) -> str:
        return hashlib.sha256(f"delta {self._next()}".encode()).hexdigest()

    def _commit(self, data: CommitData) -> Version:
        version = self.journal.commit(data)
        for hook in self.after_commit:
            hook(version)
        return version


def _outcome(request: EditRequest) -> RequestOutcome:
    """What its target says is to become of an edit: ``weak``, ``landed``, ``refused``; else nothing was looked at."""
    if request.target_new.startswith("refused"):
        return RequestOutcome(request.id, False, "the subject is not in the prompt")
    if request.target_new.startswith("weak"):
        return RequestOutcome(request.id, True, outcome="weak", figures={"p_target": 0.12, "reached": 0.31})
    if request.target_new.startswith("landed"):
        return RequestOutcome(request.id, True, outcome="landed", figures={"p_target": 0.97, "reached": 0.98})
    return RequestOutcome(request.id, True)


class FakeMemory:
    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def search(self, questions: Sequence[str], k: int) -> list[list[FakeHit]]:
        rows = self._journal.requests("applied")
        return [[FakeHit(row.seq, 0.9, row.request.statement, row.id) for row in rows[:k]] for _ in questions]

    def route(self, questions: Sequence[str], k: int) -> Any:
        rows = [[SimpleNamespace(hit=hit) for hit in row] for row in self.search(questions, k)]
        return SimpleNamespace(
            fitted=SimpleNamespace(digest="r" * 64), candidates=dict(zip(questions, rows, strict=True))
        )

    def among(self, questions: Sequence[str], entries: Sequence[MemoryEntry], k: int) -> Findings:
        worker = RetrievalWorker(HashEmbedderConfig(), IndexConfig())
        return worker.among(questions, entries, k)

    def resolved(self, turns: Sequence[str]) -> str:
        return turns[-1]

    def router(self) -> FittedRouter:
        return shipped()[0]


class FakeEvaluators:
    """Every arm repeats the question; `gate` holds the answers back."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.closed: list[str] = []
        self.given_up: list[str] = []
        self.patient = False

    def answer(
        self,
        questions: Sequence[Question],
        weights: Any,
        hits: Mapping[str, Sequence[Any]],
        arms: Sequence[Arm],
        max_new_tokens: int | None = None,
        *,
        patience: Patience = ENDLESS,
    ) -> list[dict[Arm, ArmAnswer]]:
        self._wait(patience)
        return [{arm: self._one(arm, question, hits[question.text]) for arm in arms} for question in questions]

    def _wait(self, patience: Patience) -> None:
        """Until the gate opens, or whoever asked has had enough, which is counted."""
        try:
            until = time.monotonic() + (600 if self.patient else 20)
            while time.monotonic() < until:
                if self.gate.wait(0.01):
                    return
                patience.check()
        except ErrataError as error:
            self.given_up.append(type(error).__name__)
            raise
        raise AssertionError("the gate stayed shut")

    def stream(
        self,
        question: Question,
        weights: Any,
        hits: Any,
        arm: Arm,
        sampling: Sampling,
        plain: bool = False,
        *,
        patience: Patience = ENDLESS,
    ) -> Any:
        self._wait(patience)
        reply = self._one(arm, question, hits[question.text])
        words = reply.text.split(" ")
        parts = [words[0], *(f" {word}" for word in words[1:])][: sampling.max_new_tokens]
        ended = "length" if len(words) > len(parts) else "stop"

        def more(tokens: int) -> TextPiece:
            self._wait(patience)
            taken = [parts.pop(0) for _ in range(min(tokens, len(parts)))]
            return TextPiece("".join(taken), len(taken), None if parts else ended)

        opened = Opened(arm, arm.startswith("edited"), 3, reply.chosen, reply.reason)
        return SimpleNamespace(opened=opened, next=more, close=lambda: self.closed.append(arm))

    @staticmethod
    def _one(arm: Arm, question: Question, hits: Sequence[FakeHit]) -> ArmAnswer:
        if "memory" not in arm and arm != "routed":
            return ArmAnswer(f"{arm} says {question.text}", 3, 4)
        found = tuple(Retrieved(hit.id, hit.score, hit.statement) for hit in hits)
        return ArmAnswer(f"{arm} says {question.text}", 3, 4, found[0] if found else None, "because", found)


class FakeServers:
    """Every server takes every version once `gate` is open; `rolled` and `registered` are what came."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.rolled: list[tuple[int, tuple[str, ...]]] = []
        self.registered: list[tuple[int, str | None]] = []
        self.broken: Exception | None = None
        self.states: dict[str, State] = {}

    def roll(self, version: Version, config: PublishConfig) -> list[ServerResult]:
        assert self.gate.wait(20)
        if self.broken is not None:
            raise self.broken
        self.rolled.append((version.sequence, config.to))
        urls = [item.removeprefix("vllm=") for item in config.to]
        return [ServerResult(url, self.states.get(url, "switched"), marks=Marks(1.0, None)) for url in urls]

    def register(self, version: Version, wanted: PublicationIn) -> Registered:
        self.registered.append((version.sequence, wanted.alias))
        return Registered(wanted.name or "errata-fake", "1", wanted.alias or "", True)


@dataclass
class Running:
    """A service and what it is made of."""

    service: Service
    pipeline: FakePipeline
    evaluators: FakeEvaluators
    client: TestClient
    servers: FakeServers

    @property
    def core(self) -> ServiceCore:
        return self.service.core

    @property
    def journal(self) -> Journal:
        return self.pipeline.journal


def meta() -> JournalMeta:
    return JournalMeta("run", "b" * 64, "e" * 64, {"name": "fake"})


@contextmanager
def running(
    directory: Path,
    *,
    tokens: str = "",
    start: bool = True,
    size: int = 10,
    prepare: Callable[[FakePipeline], None] = lambda pipeline: None,
    admission: Admission | None = None,
    **settings: Any,
) -> Iterator[Running]:
    """A service over the journal in a directory, made if it is not there, with a client in this process.

    ``admission``: what edits and questions are held to; without one every length will do.
    """
    path = directory / "journal.sqlite"
    journal = Journal.open(path) if path.exists() else Journal.create(path, meta())
    config = ServiceConfig(**{"poll_seconds": 0.02, "revert_wait_seconds": 5.0, **settings})
    found: Tokens = load_tokens(environment={"ERRATA_TOKENS": tokens})
    with journal, Journal.open(path, read_only=True) as reader:
        pipeline, evaluators = FakePipeline(journal, size=size), FakeEvaluators()
        prepare(pipeline)
        core = ServiceCore(pipeline, config, admit=admission or EditRequest.cleaned, reader=reader)
        bounds = admission and Bounds(admission.text, admission.capacity, config.max_question_tokens)
        memory, most = FakeMemory(reader), config.max_queries
        past = Past(reader, memory, 3, None)
        asking = Asking(lambda: core.live, memory, evaluators, k=3, arms=ARMS, limit=most, bounds=bounds, past=past)
        servers = FakeServers()
        publishing = Publishing(PublishConfig(to=SERVERS), servers.roll, servers.register)
        service = Service(
            core,
            asking,
            found,
            reader,
            Metrics(core, reader),
            model="fake",
            version="0.0",
            publishing=publishing,
        )
        client = TestClient(make_app(service), base_url="http://127.0.0.1", raise_server_exceptions=False)
        try:
            if start:
                core.start()
            yield Running(service, pipeline, evaluators, client, servers)
        finally:
            for gate in (pipeline.gate, pipeline.start_gate, pipeline.measure_gate, evaluators.gate, servers.gate):
                gate.set()
            core.stop()
            publishing.close()
            asking.close()


def edit(number: int = 0, **changes: Any) -> dict[str, Any]:
    """A body for ``POST /v1/edits``."""
    return {
        "id": f"edit-{number}",
        "subject": f"Place {number}",
        "prompt": "{} lies in",
        "target_new": "Rome",
        **changes,
    }
