"""Taking edits back: the intent is journaled before it is answered, and carried out exactly once, crash or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from errata.editing.errors import DamagedFileError, NumericalError, UserError
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.rows import Version, shown_state

REQUESTED: Final = "revert_wished"
DONE: Final = "revert_settled"
AGAIN: Final = "revert_again"
MOST_STARTS: Final = 3
"""So many starts of the service may end in the middle of one intent; then it is not tried again."""


class Reverter(Protocol):
    """The part of a pipeline that reverts."""

    journal: Journal

    def head(self) -> Version: ...
    def revert(self, request_ids: Sequence[str], *, reason: str = "", by: str | None = None) -> Version: ...


@dataclass(frozen=True)
class Intent:
    """A journaled intent to take edits back."""

    number: int
    ids: tuple[str, ...]
    reason: str
    by: str | None


@dataclass(frozen=True)
class RevertOutcome:
    """What became of it."""

    reverted: tuple[str, ...]
    """Taken out of weights and memory, now or before."""
    withdrawn: tuple[str, ...]
    """Had been waiting, and were never written."""
    version: Version


class Reverting:
    """All but ``intend`` is for the thread that owns the pipeline."""

    def __init__(self, pipeline: Reverter) -> None:
        self._pipeline, self._journal = pipeline, pipeline.journal

    def intend(self, ids: Sequence[str], *, reason: str, by: str | None) -> int:
        """Keep an intent; returns its number. From any thread."""
        return self._journal.record_event(REQUESTED, {"ids": list(ids), "reason": reason, "by": by})

    def open_intents(self) -> list[Intent]:
        """Intents that an interruption has left, oldest first."""
        settled = {event.data["wish"] for event in self._journal.events(DONE)}
        return [
            Intent(event.number, tuple(event.data["ids"]), event.data["reason"], event.data["by"])
            for event in self._journal.events(REQUESTED)
            if event.number not in settled
        ]

    def carry_out(self, number: int, ids: Sequence[str], *, reason: str, by: str | None) -> RevertOutcome:
        """Carry an intent out. Doing it again changes nothing.

        Raises:
            UserError, NumericalError, DamagedFileError: it is impossible, and settled as such; nothing has changed.
        """
        try:
            outcome = self._carry_out(ids, reason, by)
        except (UserError, NumericalError, DamagedFileError) as error:
            self._settle(number, problem=str(error))
            raise
        self._settle(number, version=outcome.version.digest, sequence=outcome.version.sequence)
        return outcome

    def carry_out_again(self, intent: Intent) -> RevertOutcome:
        """Carry out an intent that an earlier process has left; what ended `MOST_STARTS` of them is given up.

        Raises:
            UserError: it is given up, and settled as such.
            UserError, NumericalError, DamagedFileError: as `carry_out`.
        """
        again = [event for event in self._journal.events(AGAIN) if event.data["wish"] == intent.number]
        if len(again) >= MOST_STARTS:
            problem = f"given up: {MOST_STARTS} starts of the service ended while it was carried out"
            self._settle(intent.number, problem=problem)
            raise UserError(f"reverting {', '.join(intent.ids)} is {problem}")
        self._journal.record_event(AGAIN, {"wish": intent.number})
        return self.carry_out(intent.number, intent.ids, reason=intent.reason, by=intent.by)

    def _carry_out(self, ids: Sequence[str], reason: str, by: str | None) -> RevertOutcome:
        states = {name: row.state if (row := self._journal.request(name)) else "unknown" for name in ids}
        waiting = [name for name in ids if states[name] == "accepted"]
        applied = [name for name in ids if states[name] == "applied"]
        for name in ids:
            if states[name] not in ("accepted", "applied", "reverted"):
                raise UserError(f"edit {name!r} is {shown_state(states[name])} and cannot be reverted")
        for name in waiting:
            why = f"withdrawn by {by}" if by else "withdrawn"
            self._journal.withdraw(name, f"{why}: {reason}" if reason else why)
        version = self._pipeline.revert(applied, reason=reason, by=by) if applied else self._pipeline.head()
        before = [name for name in ids if states[name] == "reverted"]
        return RevertOutcome(tuple(applied + before), tuple(waiting), version)

    def _settle(self, number: int, **data: Any) -> None:
        self._journal.record_event(DONE, {"wish": number, **data})
