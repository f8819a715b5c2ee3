"""The report's contents, computed from a run's summary: everything that is shown, and nothing about how it looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from errata.evaluation.outcomes import MEMORY_ARMS
from errata.orchestrator.report.facts import kind_counts
from errata.orchestrator.report.formats import (
    DASH,
    change,
    count,
    duration,
    fixed,
    mapping,
    number,
    percent,
    sequence,
    short_digest,
)
from errata.orchestrator.report.wording import EDITORS, GENERATED, TEACHER_FORCED, ArmLabel, Metric, shown


@dataclass(frozen=True)
class Card:
    """A key number with its name and the line that puts it in place; `full` is the uncut value, if it was cut."""

    label: str
    value: str
    note: str
    full: str = ""


@dataclass(frozen=True)
class Cell:
    """One arm's figure: as text, and as the share 0..1 of a full bar (None: no bar)."""

    arm: ArmLabel
    text: str
    share: float | None
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One metric for the arms."""

    name: str
    key: str
    definition: str
    asked: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Group:
    """Metrics that were measured the same way."""

    title: str
    note: str
    rows: tuple[Row, ...]


def model_name(summary: Mapping[str, Any]) -> str:
    """The model's name without the directory or organization in front of it."""
    return PurePath(str(mapping(summary.get("model")).get("name") or "the model")).name


def editor_name(summary: Mapping[str, Any]) -> str:
    key = str(summary.get("editor") or "")
    return EDITORS.get(key, key) or "an editor"


def counted(value: Any, noun: str) -> str:
    """`1 batch`, `13 batches`: a number with its noun in the right form."""
    plural = noun + ("es" if noun.endswith("ch") else "s")
    return f"{count(value)} {noun if number(value) == 1 else plural}"


def headline(summary: Mapping[str, Any]) -> tuple[str, str, str]:
    """What was done, in one sentence: the words before the model's name, the name, the words after it."""
    edits = number(summary.get("edits_applied"))
    if not edits:
        return "No update was written into", model_name(summary), ""
    return f"{counted(edits, 'fact')} updated in", model_name(summary), "in its weights and in a memory beside it"


def lead(summary: Mapping[str, Any]) -> str:
    """How it was done, in one sentence."""
    batches = counted(summary.get("batches"), "batch")
    text = f"The updates came as a stream and were written with {editor_name(summary)} in {batches}"
    refreshes = number(summary.get("refreshes"))
    if refreshes:
        text += f", while what must be preserved was estimated anew {_times(refreshes)}"
    return text + ". The same updates entered a retrieval memory. All ways to ask were put to the same questions."


def _times(value: float) -> str:
    return {1.0: "once", 2.0: "twice"}.get(value, f"{value:,.0f} times")


def _landed(summary: Mapping[str, Any]) -> str:
    """What the model itself said of the edits when they were written."""
    landed, weak = number(summary.get("edits_landed")), number(summary.get("edits_weak"))
    if landed is None or weak is None or not landed + weak:
        return ""
    return f"; {count(landed)} landed, {count(weak) if weak else 'none'} weak"


def cards(summary: Mapping[str, Any]) -> list[Card]:
    """The key numbers."""
    perplexity = mapping(summary.get("perplexity"))
    failed = number(summary.get("edits_failed"))
    applied = counted(summary.get("batches"), "batch")
    stages = mapping(summary.get("stages"))
    events = sequence(summary.get("refresh_events"))
    swaps = [count(mapping(event).get("swapped_at")) for event in events]
    few = 0 < len(swaps) <= 4
    return [
        Card("Edits applied", count(summary.get("edits_applied")),
             f"in {applied}, {'none' if failed == 0 else count(failed)} failed{_landed(summary)}"),
        Card("Time per edit", duration(summary.get("edit_seconds_per_edit")),
             f"{duration(stages.get('edit_seconds'))} of {duration(summary.get('wall_seconds'))}"),
        Card("Perplexity, held-out text", change(perplexity.get("edited"), perplexity.get("base")),
             f"from {fixed(perplexity.get('base'))} to {fixed(perplexity.get('edited'))}"),
        Card("Covariance refreshes", count(summary.get("refreshes")),
             f"in use from edit {', '.join(swaps)}" if few else "while edits went on"),
        Card("Version served", short_digest(summary.get("version"), 10), "digest of base and edits",
             str(summary.get("version") or "")),
    ]  # fmt: skip


def verdict(summary: Mapping[str, Any]) -> list[tuple[Cell, Cell]]:
    """The one comparison to see first, of each arm: what the edits gave (updated facts answered rightly), and what they
    cost (neighbors' facts that are still answered as before); both generated."""
    return list(zip(_cells(summary, "reliability"), _cells(summary, "locality"), strict=True))


def groups(summary: Mapping[str, Any], facts: Sequence[Mapping[str, Any]]) -> list[Group]:
    """The arms side by side: generated answers, teacher-forced tokens, time."""
    asked = kind_counts(facts)

    def row(metric: Metric) -> Row:
        questions = asked.get(metric.kind or "", 0)
        return Row(
            metric.name,
            metric.key,
            metric.definition,
            counted(questions, "question") if questions else "",
            _cells(summary, metric.key),
        )

    def has_figures(metric: Metric) -> bool:
        return not metric.since or any(
            number(_arm(summary, arm.key).get(metric.key)) is not None for arm in _shown(summary)
        )

    seconds = {arm.key: number(_arm(summary, arm.key).get("query_seconds")) for arm in _shown(summary)}
    longest = max((value for value in seconds.values() if value is not None), default=0.0)
    time_cells = tuple(
        Cell(arm, duration(value), value / longest if value is not None and longest > 0 else None)
        for arm, value in ((arm, seconds[arm.key]) for arm in _shown(summary))
    )
    time_row = Row(
        "Time per question", "query_seconds", "Mean time to answer, with retrieval and choice.", "", time_cells
    )
    alone = "What each arm writes by itself: greedy decoding, judged on the text."
    if skipped := number(summary.get("skipped_probes")):
        asked_not = f"{counted(skipped, 'question')} that the model cannot take in"
        alone += f" {asked_not} {'was' if skipped == 1 else 'were'} not asked."
    forced = "Each token of a given answer is predicted after the right ones before it: easier than writing the answer."
    return [
        Group("Generated", alone, tuple(row(metric) for metric in GENERATED if has_figures(metric))),
        Group("Teacher-forced", forced, tuple(row(metric) for metric in TEACHER_FORCED if has_figures(metric))),
        Group("Cost", "", (time_row,)),
    ]


def _shown(summary: Mapping[str, Any]) -> tuple[ArmLabel, ...]:
    return shown(mapping(summary.get("arms")))


def _arm(summary: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return mapping(mapping(summary.get("arms")).get(key))


def _cells(summary: Mapping[str, Any], metric: str) -> tuple[Cell, ...]:
    cells = []
    for arm in _shown(summary):
        share = number(_arm(summary, arm.key).get(metric))
        own = metric in ("locality", "locality_tf") and arm.key == "base" and share is not None
        cells.append(Cell(arm, percent(share), share, "by definition" if own else ""))
    return tuple(cells)


def choice_rows(summary: Mapping[str, Any]) -> list[Row]:
    """How often the memory arms chose none of the retrieved statements, in and out of the updates' scope."""
    choice = mapping(summary.get("choice"))
    texts = (
        ("none_in_scope", "About an update", "The memory holds the answer: choosing nothing is a miss. Low is good."),
        (
            "none_out_of_scope",
            "About a neighbor",
            "The memory has nothing to say: choosing nothing is right. High is good.",
        ),
    )
    arms = [arm for arm in _shown(summary) if arm.key in MEMORY_ARMS]
    rows = []
    for key, name, definition in texts:
        shares = [(arm, number(mapping(choice.get(arm.key)).get(key))) for arm in arms]
        rows.append(Row(name, key, definition, "", tuple(Cell(arm, percent(share), share) for arm, share in shares)))
    return rows


def refresh_rows(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """The covariance refreshes, in the order they were swapped in."""
    return [
        {
            "triggered": count(event.get("triggered_at")),
            "swapped": count(event.get("swapped_at")),
            "tokens": count(event.get("tokens")),
            "seconds": duration(event.get("seconds")),
            "source": short_digest(event.get("source_version")),
            "digest": short_digest(event.get("digest")),
        }
        for event in map(mapping, sequence(summary.get("refresh_events")))
    ]


def repair_rows(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """Retention by age: what the model said of old facts before they were repaired, and after."""
    return [
        {
            "age": f"up to {count(group.get('oldest'))}",
            "asked": count(group.get("asked")),
            "before": percent(number(group.get("before"))),
            "after": percent(number(group.get("after"))),
        }
        for group in map(mapping, sequence(mapping(summary.get("repair")).get("ages")))
    ]


def repair_note(summary: Mapping[str, Any]) -> str:
    """What repair did, in a sentence or two."""
    repair = mapping(summary.get("repair"))
    asked, said, written = (number(repair.get(name)) for name in ("asked", "said", "written"))
    if not asked or said is None or written is None:
        return ""
    share = "" if not written else f", of which the model says {count(repair.get('landed'))} now"
    cost = number(repair.get("cost"))
    price = "" if cost is None else f" It cost {percent(cost)} of the time of the edits."
    return (
        f"In {counted(repair.get('looks'), 'look')} {counted(asked, 'old fact')} were asked; the model did not say "
        f"{percent((asked - said) / asked)} of them any more. {counted(written, 'fact')} were written again{share}."
        f"{price}"
    )


def stage_rows(summary: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """Where the time went: (stage, time, share of the longest); stages may overlap, refreshes run in the background."""
    names = {"covariance_seconds": "Covariance", "evaluation_seconds": "Evaluation", "edit_seconds": "Editing"}
    names["repair_seconds"] = "Repair"
    stages = mapping(summary.get("stages"))
    rows = [
        (names.get(key, key.removesuffix("_seconds").replace("_", " ").capitalize()), number(stages[key]))
        for key in stages
    ]
    known = [(name, value) for name, value in rows if value is not None and value >= 0]
    whole = max([number(summary.get("wall_seconds")) or 0.0, *(value for _, value in known)], default=0.0)
    return [
        (name, duration(value), value / whole if whole else 0.0)
        for name, value in sorted(known, key=lambda row: -row[1])
    ]


def failures(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The records that were not applied, each with its reason."""
    entries = map(mapping, sequence(summary.get("failures")))
    return [(str(entry.get("id") or DASH), str(entry.get("reason") or DASH)) for entry in entries]


def sample(summary: Mapping[str, Any]) -> str:
    """What the curves were measured on, such as `a sample of 24 updates`."""
    sizes = [int(size) for point in _timeline(summary) if (size := number(point.get("facts"))) is not None]
    applied = number(summary.get("edits_applied"))
    if not sizes:
        return ""
    if set(sizes) == {applied}:
        return f"all {applied:,.0f} updates"
    low, high = min(sizes), max(sizes)
    return f"a sample of {counted(low, 'update')}" if low == high else f"samples of {low:,} to {high:,} updates"


def _timeline(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [mapping(point) for point in sequence(summary.get("timeline"))]
