"""A plain model of what requests come to, and any sequence of what clients and accidents do to a pipeline."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from errata.editing.errors import UserError
from errata.editing.request import EditRequest
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.fail_points import InjectedCrash, raise_once
from errata.orchestrator.run.pipeline import Pipeline

SIZE = 3
"""Requests per batch."""
POINTS = (
    "accept_in_transaction",
    "after_accept",
    "after_batch_planned",
    "after_batch_applied",
    "artifact_written",
    "artifact_renamed",
    "after_keys_stored",
    "after_delta_stored",
    "commit_in_transaction",
    "after_commit",
    "after_memory_add",
    "after_revert_planned",
    "after_revert_applied",
    "after_memory_remove",
    "after_snapshot_stored",
    "after_refresh_started",
    "after_covariance_stored",
    "swap_in_transaction",
    "after_swap",
)


def request(number: int, subject: int, target: str) -> EditRequest:
    return EditRequest(id=f"r{number}", subject=f"s{subject}", prompt="{} is", target_new=target)


@dataclass
class Model:
    """What must come out, without files, versions or covariances."""

    requests: dict[str, EditRequest] = field(default_factory=dict)
    pending: list[str] = field(default_factory=list)
    state: dict[str, str] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)
    """What is in the weights: also values that were overwritten since."""

    def submit(self, asked: EditRequest) -> None:
        if asked.id not in self.requests:
            self.requests[asked.id] = asked
            self.pending.append(asked.id)
            self.state[asked.id] = "accepted"

    def write_all(self) -> None:
        while self.pending:
            window = self.pending[:SIZE]
            newest = {self.requests[name].fact_key: name for name in window}
            ok = {name for name in newest.values() if self.requests[name].target_new != "bad"}
            for name in window:
                fact = self.requests[name].fact_key
                if newest[fact] == name:
                    self.state[name] = "applied" if name in ok else "rejected"
                elif newest[fact] in ok:
                    self.state[name] = "superseded"
                else:
                    continue  # the newer one failed: this one has its turn with the next batch
                self.pending.remove(name)
            for name in (name for name in window if name in ok):
                for other in self.written:
                    if self.requests[other].fact_key == self.requests[name].fact_key:
                        self.state[other] = "superseded" if self.state[other] == "applied" else self.state[other]
            self.written += [name for name in window if name in ok]

    def revert(self, name: str) -> None:
        fact = self.requests[name].fact_key
        self.written = [other for other in self.written if self.requests[other].fact_key != fact]
        self.state[name] = "reverted"

    def applied(self) -> list[str]:
        return [name for name, state in self.state.items() if state == "applied"]


class Client(ABC):
    """Opens a pipeline again whenever it has crashed, and tries again."""

    journal: Journal
    pipeline: Pipeline

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.crash: tuple[str, int] | None = None
        self.open()

    @abstractmethod
    def open(self) -> None:
        """Begin, or go on from the journal."""

    @abstractmethod
    def kill(self) -> None:
        """The editor dies, and another one takes its place."""

    def close(self) -> None:
        self.pipeline.close()
        self.journal.close()

    def do(self, action: Callable[[], object]) -> None:
        """Carry out, with the crash that is armed; after a crash, recover and carry out again."""
        if self.crash is None:
            action()
            return
        (point, visit), self.crash = self.crash, None
        try:
            with raise_once(point, visit=visit):
                action()
        except InjectedCrash:
            self.close()
            self.open()
            action()

    def write_all(self) -> None:
        while self.pipeline.write_next(ended=True) is not None:
            pass

    def revert(self, name: str) -> None:
        row = self.journal.request(name)
        assert row is not None
        if row.state != "reverted":  # it may have been the answer only that a crash took
            self.pipeline.revert([name])


OPERATIONS = st.one_of(
    st.tuples(st.just("submit"), st.integers(0, 3), st.sampled_from(["x", "y", "bad"])),
    st.tuples(st.just("submit"), st.integers(0, 3), st.sampled_from(["x", "y"])),
    st.tuples(st.just("again"), st.integers(0, 20)),
    st.tuples(st.just("write")),
    st.tuples(st.just("revert"), st.integers(0, 20)),
    st.tuples(st.just("refresh")),
    st.tuples(st.just("crash"), st.sampled_from(POINTS), st.integers(1, 3)),
    st.tuples(st.just("kill")),
    st.tuples(st.just("restart")),
)


def play(
    service: Client, operations: Sequence[tuple[Any, ...]], check: Callable[[Model], None] = lambda _: None
) -> Model:
    """Carry operations out, write what waits at the end; ``check`` is called after each."""
    model = Model()
    for name, *values in operations:
        if name == "submit":
            asked = request(len(model.requests), *values)
            service.do(lambda asked=asked: service.journal.accept([asked]))
            model.submit(asked)
        elif name == "again" and model.requests:
            known = list(model.requests.values())[values[0] % len(model.requests)]
            other = known.model_copy(update={"target_new": "other"})
            answers = service.journal.accept([known, other])
            assert answers[0].duplicate and answers[1].refused
        elif name == "write":
            service.do(service.write_all)
            model.write_all()
        elif name == "revert":
            applied = model.applied()
            if applied:
                chosen = applied[values[0] % len(applied)]
                service.do(lambda chosen=chosen: service.revert(chosen))
                model.revert(chosen)
            else:
                refuse(service, "r0")
        elif name == "refresh":
            service.do(lambda: service.pipeline.request_refresh())
        elif name == "crash":
            service.crash = (values[0], values[1])
        elif name == "kill":
            service.kill()
        elif name == "restart":
            service.close()
            service.open()
        check(model)
    service.do(service.write_all)
    model.write_all()
    check(model)
    return model


def refuse(service: Client, name: str) -> None:
    before = service.pipeline.head()
    try:
        service.pipeline.revert([name])
    except UserError:
        assert service.pipeline.head() == before
        return
    raise AssertionError(f"{name} is not applied and was reverted")
