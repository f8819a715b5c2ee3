"""Repair: facts that were written long ago are asked again, and what the model does not say any more is written again.

A look is due after every so many edits. It goes in rounds. A round asks a sample of the facts that hold, drawn evenly
from all of them without those that this look has asked already. Where fewer than ``target`` of it are said, those that
are not are written again, in commits of kind ``repair``: the old key leaves, a fresh value comes in, the request stays
applied. Then comes another round. The last sample of a look is so an estimate of what holds among the facts that were
not asked.

What was asked and found is in the figures of the round's commits, and in one event a round: a process that dies in the
middle goes on where it was.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, Protocol

from errata.editing.request import EditRequest
from errata.editing.verify import Outcome
from errata.editing.wording import counted
from errata.orchestrator.config.repair import RepairConfig
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.fail_points import reach
from errata.orchestrator.journal.rows import RequestRow, Version

logger = logging.getLogger(__name__)

REPAIR: Final = "repair"
"""Kind of the journal's event for a round, and of the commits that it writes."""


class Asks(Protocol):
    """What of `errata.actors.parts.EditorPart` is needed."""

    def ask(self, requests: Sequence[EditRequest]) -> list[Outcome]: ...


_MOST_KNOWN: Final = 100_000
Write = Callable[[Sequence[EditRequest], dict[str, Any]], Version]
"""Writes requests again in one commit of kind ``repair``, with these figures; returns the version."""


@dataclass(frozen=True)
class Round:
    """One sample of a look, as its event and the figures of its commits hold it."""

    at: int
    """Edits at which the look became due."""
    number: int
    """From 0, within the look."""
    asked: tuple[int, ...]
    """Requests, by the order of their acceptance."""
    lost: tuple[int, ...]
    """Those of them that the model did not say."""
    ages: tuple[tuple[int, int, int], ...] = ()
    """(oldest age, asked, said) by doublings of the age in edits, youngest first."""
    seconds: float = 0.0
    """Wall seconds of asking."""

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "at": self.at,
            "round": self.number,
            "asked": list(self.asked),
            "lost": list(self.lost),
            "ages": [list(item) for item in self.ages],
            "ask_seconds": self.seconds,
        }

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Round:
        """The inverse of `plain`."""
        ages = tuple((int(a), int(b), int(c)) for a, b, c in data["ages"])
        asked, lost = tuple(data["asked"]), tuple(data["lost"])
        return cls(data["at"], data["round"], asked, lost, ages, data["ask_seconds"])

    @property
    def said(self) -> float:
        """Share of the sample that the model said."""
        return 1 - len(self.lost) / len(self.asked) if self.asked else 1.0


@dataclass
class _Look:
    """What a look has done so far."""

    at: int
    asked: set[int] = field(default_factory=set)
    tried: int = 0
    """Facts that were to be written again."""
    rounds: int = 0
    ended: bool = False

    def add(self, data: Mapping[str, Any]) -> None:
        """A round that has ended, as its event tells it."""
        self.asked |= set(data["asked"])
        self.tried += data["tried"]
        self.rounds += 1
        self.ended = self.ended or data["ended"]


class Repairs:
    """Looks after the facts of one run; called between batches by the thread that writes.

    Args:
        size: requests of one commit.
        write: see `Write`.
        seed: of the samples.
    """

    def __init__(
        self,
        config: RepairConfig,
        journal: Journal,
        editor: Asks,
        write: Write,
        *,
        size: int,
        seed: int = 0,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._config, self._journal, self._editor, self._write = config, journal, editor, write
        self._size, self._seed, self._say = size, seed, say
        self._edits_at: dict[int, int] = {}
        """Edits up to a commit, as far as they were looked up."""
        self._done = -1
        """The look that is known to have ended."""

    def next(self) -> Version | None:
        """Do what is due until a commit was written; None where nothing more is to be written now."""
        at = self._due()
        if at is None:
            return None
        look = self._so_far(at)
        while not look.ended:
            version = self._go_on(look)
            if version is not None:
                return version
        self._done = at
        return None

    def _due(self) -> int | None:
        """The look whose turn it is: of several that were passed in one batch only the last."""
        every = self._config.every
        if every is None:
            return None
        at = self._journal.head().edits // every * every
        return at if at > 0 and at != self._done else None

    def _so_far(self, at: int) -> _Look:
        look = _Look(at)
        before: int | None = None
        while page := self._journal.event_page(20, before=before, kind=REPAIR):
            mine = [event.data for event in page if event.data["at"] == at]
            for data in mine:
                look.add(data)
            if len(mine) < len(page):
                break
            before = page[-1].number
        return look

    def _go_on(self, look: _Look) -> Version | None:
        """One step: a round is asked, or a part of it written; None where the step wrote nothing."""
        allowed = max(1, int(self._config.most * (self._config.every or 0))) - look.tried
        started, parts = self._under_way(look)
        if started is None:
            started = self._ask(look)
            if not started.asked or started.said >= self._config.target or allowed <= 0:
                self._end(look, started, [], ended=True)
                return None
        wanted = started.lost[:allowed]
        tried = sum(part.figures["part"][1] for part in parts if part.figures is not None)
        while chunk := wanted[tried : tried + self._size]:
            # what was reverted or overwritten since it was asked is not written again: a restart may lie in between
            rows = [row for row in self._journal.requests_by_number(chunk) if row.state == "applied"]
            if rows:
                figures = {"repair": started.plain(), "part": [tried, len(chunk)]}
                version = self._write([row.request for row in rows], figures)
                reach("after_repair")
                return version
            tried += len(chunk)
        self._end(look, started, parts, tried=len(wanted), ended=len(wanted) < len(started.lost))
        return None

    def _under_way(self, look: _Look) -> tuple[Round | None, list[Version]]:
        """The round that commits at the head belong to and no event has ended yet."""
        parts: list[Version] = []
        version = self._journal.head()
        while version.kind == REPAIR and version.figures is not None:
            told = version.figures["repair"]
            if (told["at"], told["round"]) != (look.at, look.rounds):
                break
            parts.append(version)
            version = self._journal.version(version.sequence - 1)
        return (Round.of(parts[0].figures["repair"]) if parts and parts[0].figures else None), parts[::-1]

    def _ask(self, look: _Look) -> Round:
        begun = time.perf_counter()
        random = Random(f"{self._seed} {look.at} {look.rounds}")
        rows = self._journal.applied_sample(self._config.sample, random, without=look.asked)
        outcomes = self._editor.ask([row.request for row in rows]) if rows else []
        lost = tuple(row.seq for row, outcome in zip(rows, outcomes, strict=True) if not outcome.landed)
        ages = self._by_age(rows, set(lost))
        asked = tuple(row.seq for row in rows)
        return Round(look.at, look.rounds, asked, lost, ages, time.perf_counter() - begun)

    def _by_age(self, rows: Sequence[RequestRow], lost: set[int]) -> tuple[tuple[int, int, int], ...]:
        groups = [(self._group(row), row.seq not in lost) for row in rows]
        asked, said = Counter(group for group, _ in groups), Counter(group for group, holds in groups if holds)
        return tuple((oldest, asked[oldest], said[oldest]) for oldest in sorted(asked))

    def _end(self, look: _Look, round_: Round, parts: Sequence[Version], *, tried: int = 0, ended: bool) -> None:
        again = [row for part in parts for row in self._journal.requests_named(part.request_ids)]
        landed = [row for row in again if row.outcome == "landed"]
        said_now = Counter(self._group(row) for row in landed)
        data = {
            "what": "round",
            **round_.plain(),
            "tried": tried,
            "written": len(again),
            "landed": len(landed),
            "ages_after": [[oldest, asked, said + said_now[oldest]] for oldest, asked, said in round_.ages],
            "write_seconds": sum(part.seconds for part in parts),
            "sequence": self._journal.head().sequence,
            "ended": ended,
        }
        self._journal.record_event(REPAIR, data)
        reach("after_repair_round")
        look.add(data)
        if round_.asked:
            said = len(round_.asked) - len(round_.lost)
            self._say(
                f"repair at {counted(round_.at, 'edit')}: {said} of {counted(len(round_.asked), 'fact')} are said"
                + (f", {len(again)} written again, {len(landed)} of these are said now" if again else "")
            )

    def _group(self, row: RequestRow) -> int:
        """The oldest age, in edits, of those that are counted with this one: ages double from group to group."""
        assert row.applied_in is not None
        if row.applied_in not in self._edits_at:
            if len(self._edits_at) > _MOST_KNOWN:
                self._edits_at.clear()
            self._edits_at[row.applied_in] = self._journal.version(row.applied_in).edits
        # repairs count no edits, so an age stays what it is within a look
        return (1 << (self._journal.head().edits - self._edits_at[row.applied_in]).bit_length()) - 1
