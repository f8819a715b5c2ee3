"""One version to several live servers, one after the other, so that clients never get a version that fails.

On each server the adapter is loaded under a name of its own and asked; only then is the name that clients use switched
to it. Every step is an event in the journal *before* it is taken, and what a server serves is told by the server, so a
publication that was cut short anywhere is finished or undone by the next one.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from errata.orchestrator.config.publish import PublishConfig
from errata.orchestrator.journal.reading import JournalReader
from errata.orchestrator.journal.rows import Version
from errata.orchestrator.publish.adapter import Adapter
from errata.orchestrator.publish.questions import Marks, Questions, mark
from errata.orchestrator.publish.vllm import Served, ServerError, VllmServer

logger = logging.getLogger(__name__)

EVENT: Final = "publication"
"""Kind of the journal's events; the step is in their ``what``."""

State = Literal["switched", "already", "refused", "failed", "not attempted"]


@dataclass(frozen=True, slots=True)
class ServerResult:
    """What became of one server."""

    url: str
    state: State
    reason: str = ""
    marks: Marks | None = None

    @property
    def ok(self) -> bool:
        """The server's clients have the version."""
        return self.state in ("switched", "already")


class _Refused(Exception):
    """The answers do not hold."""

    def __init__(self, marks: Marks) -> None:
        super().__init__(f"the answers do not hold: {marks}")
        self.marks = marks


@dataclass(frozen=True, slots=True)
class Rollout:
    """A version on its way to servers."""

    version: Version
    adapter: Adapter
    questions: Questions
    config: PublishConfig
    last: Callable[[str], str | None]
    """By address, the path that a server's clients had last, as far as the journal knows."""
    note: Callable[[dict[str, Any]], object]
    """Keeps an event durably."""

    @property
    def candidate(self) -> str:
        """Name under which the version proves itself."""
        return f"{self.config.served_name}-v{self.version.sequence}-{self.version.digest[:8]}"

    def run(self, servers: Sequence[VllmServer]) -> list[ServerResult]:
        """Roll the servers in their order.

        A server that does not answer keeps what it has, and the next one is tried. Where the answers do not hold, it
        is the version that is at fault: the servers after that are left alone.
        """
        results: list[ServerResult] = []
        refused = False
        for server in servers:
            if refused:
                results.append(ServerResult(server.url, "not attempted", "another server refused the version"))
                continue
            result = _OneServer(self, server).roll()
            refused = result.state == "refused"
            results.append(result)
        return results


class _OneServer:
    """The steps on one server."""

    def __init__(self, rollout: Rollout, server: VllmServer) -> None:
        self._r, self._server = rollout, server
        self._name, self._config = rollout.config.served_name, rollout.config
        self._id = uuid.uuid4().hex[:12]

    def roll(self) -> ServerResult:
        url, path = self._server.url, self._r.adapter.on_server
        try:
            served = self._recover(self._server.served())
            if served.adapters.get(self._name) == path:
                self._note("already", to=path)
                return ServerResult(url, "already")
            marks = self._prove(served)
            self._switch(served.adapters.get(self._name))
        except _Refused as refused:
            self._note("refused", reason=str(refused))
            self._drop_candidate()
            return ServerResult(url, "refused", str(refused), refused.marks)
        except ServerError as error:
            self._note("failed", reason=str(error))
            self._drop_candidate()
            return ServerResult(url, "failed", str(error))
        self._drop_candidate()
        return ServerResult(url, "switched", marks=marks)

    # --- what an earlier publication, or a restart of the server, has left ---

    def _recover(self, served: Served) -> Served:
        before = self._r.last(self._server.url)
        if self._name not in served.adapters and before is not None and before != self._r.adapter.on_server:
            # cut short in the middle of a switch, or the server was restarted: clients have waited long enough
            self._note("restoring", to=before)
            try:
                self._server.load(self._name, before)
            except ServerError as error:
                logger.warning("%s cannot be given back %s: %s", self._server.url, before, error)
                self._note("lost", reason=str(error))
        pattern = re.compile(re.escape(self._name) + r"-v\d+-[0-9a-f]{8}")
        for name in served.adapters:
            if pattern.fullmatch(name):
                self._note("sweeping", adapter=name)
                self._server.unload(name)
        return self._server.served()

    # --- the version proves itself ---

    def _prove(self, served: Served) -> Marks:
        questions, length = self._r.questions, self._config.max_new_tokens
        self._note("loading", adapter=self._r.candidate, path=self._r.adapter.on_server, rank=self._r.adapter.rank)
        self._server.load(self._r.candidate, self._r.adapter.on_server)
        untouched = [prompt for prompt, _ in questions.untouched]
        asked = [prompt for prompt, _ in questions.edited] + untouched
        answers = self._server.complete(self._r.candidate, asked, length)
        plain = self._server.complete(served.base, untouched, length)
        count = len(questions.edited)
        marks = mark(questions, answers[:count], answers[count:], plain)
        self._note("asked", edited=marks.edited, untouched=marks.untouched, questions=len(asked))
        if not marks.pass_(self._config.min_edited, self._config.min_untouched):
            raise _Refused(marks)
        return marks

    # --- the name that clients use ---

    def _switch(self, before: str | None) -> None:
        path = self._r.adapter.on_server
        self._note("switching", **{"from": before, "to": path})
        try:
            self._replace(before, path)
            served = self._server.served().adapters.get(self._name)
            if served != path:
                raise ServerError(f"{self._server.url}: {self._name!r} is {served!r} after it was switched to {path!r}")
        except ServerError:
            if not self._settle(before, path):
                raise
        self._note("switched", **{"from": before, "to": path})

    def _replace(self, before: str | None, path: str) -> None:
        if before is not None and self._config.inplace:
            self._server.load(self._name, path, inplace=True)
            return
        if before is not None:
            self._server.unload(self._name)
        self._server.load(self._name, path)

    def _settle(self, before: str | None, path: str) -> bool:
        """A call of the switch has failed: whether it was done all the same. If it was not, the old version back."""
        try:
            served = self._server.served().adapters.get(self._name)
            if served is None and before is not None:
                self._server.load(self._name, before)
                self._note("undone", to=before)
        except ServerError as error:
            # a dead server, mostly; when it is back, the next publication begins with this
            self._note("lost", to=before, reason=str(error))
            return False
        return served == path

    def _drop_candidate(self) -> None:
        """After the end, whatever it was; what cannot be dropped now is swept by the next publication."""
        try:
            if self._r.candidate in self._server.served().adapters:
                self._server.unload(self._r.candidate)
        except ServerError as error:
            logger.debug("%s still holds %s: %s", self._server.url, self._r.candidate, error)

    def _note(self, what: str, **data: Any) -> None:
        place = {"server": self._server.url, "sequence": self._r.version.sequence, "version": self._r.version.digest}
        self._r.note({"what": what, "id": self._id, "name": self._name, **place, **data})


def last_served(journal: JournalReader, served_name: str) -> dict[str, str | None]:
    """By server, what its clients had last under a name: the newest switch that was finished, or begun from there."""
    known: dict[str, str | None] = {}
    for event in journal.events(EVENT):
        data = event.data
        if data.get("name") != served_name or "server" not in data:
            continue
        if data["what"] in ("switched", "already", "undone", "restoring"):
            known[data["server"]] = data["to"]
        elif data["what"] == "switching":
            known[data["server"]] = data["from"] or known.get(data["server"])
    return known
