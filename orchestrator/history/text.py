"""Histories as lines for a terminal and as plain data for ``--json``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from errata.editing.model.decoder import number_name
from errata.editing.wording import counted
from errata.orchestrator.history.events import EventEntry, event_text
from errata.orchestrator.history.log import (
    CommitEntry,
    Fact,
    LogEntry,
    RefreshEntry,
    RequestStory,
    SwapEntry,
    VersionDiff,
    VersionStory,
)
from errata.orchestrator.journal.rows import shown_state

SHORT: Final = 12
"""Digits of a digest that a person is shown."""


def plain(value: Any) -> str:
    """JSON of a dataclass, or of a list of them; times are ISO 8601."""

    def convert(item: Any) -> Any:
        if dataclasses.is_dataclass(item) and not isinstance(item, type):
            return {f.name: getattr(item, f.name) for f in dataclasses.fields(item)}
        if isinstance(item, datetime):
            return item.isoformat()
        raise TypeError(f"cannot write {type(item).__name__} as JSON")

    return json.dumps(value, default=convert, ensure_ascii=False, indent=2)


def clean(text: str) -> str:
    """The text on one line, without characters that would steer a terminal: requests come from outside."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def log_lines(entries: Iterable[LogEntry], *, facts: int = 10) -> Iterator[str]:
    """The log; of each commit at most ``facts`` facts of a kind are spelled out."""
    for entry in entries:
        if isinstance(entry, CommitEntry):
            yield from _commit(entry, facts)
        elif isinstance(entry, SwapEntry):
            yield _swap(entry)
        elif isinstance(entry, EventEntry):
            yield f"-- {_time(entry.at)}  {clean(event_text(entry))}"
        else:
            yield _refresh(entry)


def request_lines(story: RequestStory) -> Iterator[str]:
    """One request and its fates."""
    fact, request = story.fact, story.request
    yield f"edit {clean(fact.id)}: {shown_state(fact.state)}" + (f" ({clean(story.reason)})" if story.reason else "")
    yield f"  asked      {clean(fact.prompt)} -> {clean(fact.target)}"
    for name in ("subject", "target_true", "relation", "statement"):
        if request.get(name):
            yield f"  {name:<10} {clean(str(request[name]))}"
    probes = {name: len(request.get(name, ())) for name in ("paraphrases", "neighborhood", "portability")}
    if any(probes.values()):
        yield "  probes     " + ", ".join(f"{count} {name}" for name, count in probes.items() if count)
    provenance = request.get("provenance") or {}
    for name in ("who", "when", "why", "source"):
        if provenance.get(name):
            yield f"  {name:<10} {clean(str(provenance[name]))}"
    if story.result:
        yield "  editor     " + ", ".join(f"{name} {_figure(value)}" for name, value in story.result.items())
    if fact.superseded_by:
        yield f"  now        {clean(fact.superseded_by)} holds instead"
    yield "  fates"
    for fate in story.fates:
        where = "" if fate.sequence is None else f" in v{fate.sequence}"
        why = f": {clean(fate.reason)}" if fate.reason else ""
        yield f"    {_time(fate.at)}  {shown_state(fate.state)}{where}{why}"
    if story.commit is not None:
        commit = story.commit
        yield f"  batch      v{commit.sequence} {commit.version[:SHORT]}, {counted(len(story.batch), 'request')}"
        for other in story.batch:
            yield f"    {'*' if other.id == fact.id else ' '} {_fact(other)}"


def version_lines(story: VersionStory, *, facts: int | None = 20) -> Iterator[str]:
    """One version: its commit and what it holds."""
    version = story.version
    if story.commit is None:
        yield f"v0 {version.digest}"
        yield "  the base model, unedited"
    else:
        yield f"v{version.sequence} {version.digest}"
        yield f"  parent     {version.parent}"
        for name in ("delta", "covariance", "keys", "contexts"):
            digest = getattr(version, name)
            if digest:
                yield f"  {name:<10} {digest}"
        yield from _commit(story.commit, None)
    yield f"  holds {counted(story.holds, 'fact')}" + (":" if story.facts else "")
    yield from (f"    {_fact(fact)}" for fact in story.facts[:facts])
    shown = len(story.facts[:facts])
    if shown < story.holds:
        yield f"    ... and {story.holds - shown} more: use --all"


def diff_lines(diff: VersionDiff) -> Iterator[str]:
    """Two versions side by side."""
    first, second = diff.first, diff.second
    yield f"v{first.sequence} {first.digest[:SHORT]} -> v{second.sequence} {second.digest[:SHORT]}"
    for sign, name, facts in (("+", "gained", diff.gained), ("-", "lost", diff.lost)):
        if facts:
            yield f"{name}: {len(facts)}"
        for fact in facts:
            yield f"  {sign} {_fact(fact)}"
    if diff.superseded:
        yield f"superseded: {len(diff.superseded)}"
    for old, new in diff.superseded:
        ids = f"[{clean(old.id)} -> {clean(new.id)}]"
        yield f"  ~ {clean(old.prompt)}: {clean(old.target)} -> {clean(new.target)}  {ids}"
    if not (diff.gained or diff.lost or diff.superseded):
        yield "the same facts"
    for layer in sorted({*diff.norms, *diff.change}):
        before, after = diff.norms.get(layer, (None, None))
        change = f", difference {diff.change[layer]:.4g}" if layer in diff.change else ""
        yield f"layer {number_name(layer)}: norm {_figure(before)} -> {_figure(after)}{change}"
    for swap in diff.covariances:
        yield _swap(swap)


def _commit(entry: CommitEntry, facts: int | None) -> Iterator[str]:
    kind = "" if entry.kind == "edit" else f"  {entry.kind}"
    change = len(entry.applied) if entry.kind == "edit" else 0
    yield (
        f"v{entry.sequence}  {entry.version[:SHORT]}  {_time(entry.at)}  "
        f"{counted(entry.edits, 'edit')} (+{change})  {entry.seconds:.1f} s{kind}"
    )
    if entry.norms:
        yield "    norms " + "  ".join(
            f"{number_name(layer)}: {_figure(norm)} (moved {_figure(entry.delta_norms.get(layer))})"
            for layer, norm in entry.norms.items()
        )
    more = f"errata show v{entry.sequence}"
    now = {"superseded": "later superseded", "reverted": "later reverted"}
    applied = (
        f"    + {_fact(f)}" + (f" ({now[f.state]} in v{f.ended_in})" if f.state in now else "") for f in entry.applied
    )
    yield from _some(applied, len(entry.applied), facts, more)
    old = (
        f"    ~ {_fact(e.fact)} superseded"
        + (f" by {clean(e.fact.superseded_by)}" if e.fact.superseded_by and e.fact.state == "superseded" else "")
        for e in entry.superseded
    )
    yield from _some(old, len(entry.superseded), facts, more)
    out = (f"    - {_fact(e.fact)} reverted" + (f": {clean(e.reason)}" if e.reason else "") for e in entry.reverted)
    yield from _some(out, len(entry.reverted), facts, more)
    rejected = (f"    x {_fact(e.fact)} rejected: {clean(e.reason or '')}" for e in entry.rejected)
    yield from _some(rejected, len(entry.rejected), facts, more)


def _some(lines: Iterator[str], total: int, limit: int | None, more: str) -> Iterator[str]:
    for number, line in enumerate(lines):
        if limit is not None and number == limit:
            yield f"    ... and {total - limit} more: {more}"
            return
        yield line


def _swap(entry: SwapEntry) -> str:
    made = "" if entry.tokens is None else f", {counted(entry.tokens, 'token')}"
    source = "" if not entry.from_version else f" of version {entry.from_version[:SHORT]}"
    new = f"covariance {entry.covariance[:SHORT]} in force after v{entry.after_sequence}"
    return f"-- {_time(entry.at)}  {new}{made}{source}"


def _refresh(entry: RefreshEntry) -> str:
    new = "" if entry.covariance is None else f": covariance {entry.covariance[:SHORT]}"
    took = "" if entry.seconds is None else f", {entry.seconds:.0f} s"
    why = "" if entry.reason is None else f" ({clean(entry.reason)})"
    begun = f"refresh triggered at {counted(entry.triggered_at, 'edit')}: {entry.state}"
    return f"-- {_time(entry.at)}  {begun}{why}{new}{took}"


def _fact(fact: Fact) -> str:
    weak = " weak" if fact.outcome == "weak" else ""
    return f"{clean(fact.subject) or '?'} -> {clean(fact.target) or '?'}  [{clean(fact.id)}]{weak}"


def _time(at: datetime | None) -> str:
    return "-" if at is None else at.strftime("%Y-%m-%d %H:%M:%S")


def _figure(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:#.5g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def by_layer(values: Mapping[str, float]) -> str:
    """Figures by layer on one line."""
    return ", ".join(f"layer {layer}: {value:.2g}" for layer, value in values.items())
