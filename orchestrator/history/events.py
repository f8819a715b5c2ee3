"""What guard and publications have done, as entries of the log: their outcomes; every step is in the journal."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from errata.editing.wording import counted
from errata.orchestrator.journal.reading import JournalReader
from errata.orchestrator.journal.rows import Version

_ALL: Final = -1
"""As many as there are."""


@dataclass(frozen=True, slots=True)
class EventEntry:
    """Something that was done around versions."""

    kind: str
    data: Mapping[str, Any]
    after_sequence: int
    """The newest commit when it happened."""
    at: datetime
    entry: Literal["event"] = "event"


def event_entries(journal: JournalReader, versions: Sequence[Version]) -> list[EventEntry]:
    """Newest first, each after the commit that was the newest then.

    Args:
        versions: in order; of those before the first that is given nothing is told, unless that is the base.
    """
    times = [v.at if v.at is not None else datetime.min.replace(tzinfo=UTC) for v in versions]
    since = times[0].isoformat() if versions and versions[0].sequence > 0 else None
    entries: list[EventEntry] = []
    for event in journal.event_page(_ALL, since=since):
        if _LINES.get((event.kind, str(event.data.get("what")))) is None:
            continue
        at = bisect_right(times, event.at)
        if at or since is None:
            entries.append(EventEntry(event.kind, event.data, versions[at - 1].sequence if at else 0, event.at))
    return entries


def event_text(entry: EventEntry) -> str:
    """One line, without the time; what it quotes from outside is not cleaned."""
    return f"{entry.kind} " + _LINES[entry.kind, str(entry.data["what"])](entry.data)


def _check(data: Mapping[str, Any]) -> str:
    figures = [] if data["kept"] is None else [f"{data['kept']:.0%} of the sentinels hold"]
    figures += [] if data["ratio"] is None else [f"perplexity {data['ratio']:.4g} times the base's"]
    if data["good"]:
        return f"v{data['sequence']} is good: {', '.join(figures)}"
    done = ["paused"] if data["paused"] else []
    done += [f"reverting {counted(len(data['reverting']), 'edit')}"] if data["reverting"] else []
    return f"BREACH at v{data['sequence']}: {'; '.join(data['reasons'])}" + (f" ({', '.join(done)})" if done else "")


def _alert(data: Mapping[str, Any]) -> str:
    state = "delivered" if data["delivered"] else f"NOT delivered ({data['reason']})"
    return f"alert to {data['host']} {state} after {counted(data['attempts'], 'attempt')}"


def _round(data: Mapping[str, Any]) -> str:
    asked, lost = len(data["asked"]), len(data["lost"])
    again = f"; {data['written']} written again, {data['landed']} of these said now" if data["written"] else ""
    return f"at {counted(data['at'], 'edit')}: {asked - lost} of {counted(asked, 'old fact')} still said{again}"


def _at(text: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda data: f"v{data['sequence']} {text}" + (f" {data['server']}" if "server" in data else "")


def _why(text: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda data: f"{_at(text)(data)}: {data.get('reason', '')}"


_LINES: Final[Mapping[tuple[str, str], Callable[[Mapping[str, Any]], str]]] = {
    ("guard", "check"): _check,
    ("guard", "failed"): _why("could not be checked"),
    ("guard", "reverted"): lambda d: (
        f"reverted {counted(len(d['requests']), 'edit')}: v{d['sequence']} is v{d['to']} again"
    ),
    ("guard", "revert_failed"): lambda d: str(d["reason"]),
    ("guard", "resume"): lambda d: f"resumed by {d['by']}",
    ("guard", "alert"): _alert,
    ("repair", "round"): _round,
    ("publication", "switched"): _at("to"),
    ("publication", "already"): _at("is already on"),
    ("publication", "refused"): _why("refused on"),
    ("publication", "failed"): _why("failed"),
    ("publication", "undone"): _at("undone on"),
    ("publication", "lost"): _why("leaves no version on"),
    ("publication", "restoring"): lambda d: f"gives {d['server']} its last version back",
    ("publication", "registered"): lambda d: (
        f"v{d['sequence']} registered as {d['registry']} version {d['number']}, alias {d['alias']}"
    ),
}
