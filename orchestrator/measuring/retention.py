"""What becomes of the edits of a run: each measured on the version that wrote it, and again on the last one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from torch import Tensor

from errata.editing.wording import counted
from errata.evaluation.metrics import Retention, forgetting, retention
from errata.evaluation.preservation.battery import Item, Outcomes, Suite
from errata.orchestrator.measuring.preserve import Ask, Asked, keep_outcomes, kept_outcomes

CURVE_METRICS = ("efficacy", "generalization", "efficacy_score", "paraphrase_score")
"""What an edit is for; specificity and the neighborhood are not its own."""


@dataclass(frozen=True)
class AgePoint:
    """Edits of like age."""

    youngest: int
    oldest: int
    """Edits that came after, at the end."""
    edits: int
    right_after: float
    at_end: float


@dataclass(frozen=True)
class Lifetime:
    """One metric at both ends of the edits' lives."""

    metric: str
    retention: Retention
    forgetting: float
    curve: tuple[AgePoint, ...]
    """Youngest edits first; groups of as nearly equal size as can be."""


def lifetimes(
    directory: Path,
    suite: Suite,
    written_in: Sequence[Asked],
    edits_at: Mapping[str, int],
    last: Asked,
    versions: Iterator[tuple[Asked, Callable[[], Mapping[int, Tensor]]]],
    ask: Ask,
    *,
    items: Sequence[Item],
    bins: int = 5,
    progress: Callable[[str, int, int, str], None] | None = None,
) -> list[Lifetime]:
    """Measure each item's edit on the version that wrote it and on the last.

    Args:
        suite: of the edits that hold at the last version (`EditSuite`).
        written_in: for each item of the suite the version whose commit wrote it.
        edits_at: by a version's digest the number of edits applied up to it.
        versions: every version in order, with a function that gives its weights.
        items: which edits.

    Returns:
        One entry for each of `CURVE_METRICS` that some edit has.
    """
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[written_in[item[1]].digest].append(item)
    before: dict[str, dict[Item, float | None]] = defaultdict(dict)
    after: dict[str, dict[Item, float | None]] = defaultdict(dict)
    done, total = 0, len(groups) + 1
    for version, weights in versions:
        for wanted, scores in ((groups.get(version.digest), before), (items if version == last else None, after)):
            if not wanted:
                continue
            for metric, values in _outcomes(directory, version, suite, wanted, weights, ask).items():
                scores[metric].update(zip(wanted, values, strict=True))
            done += 1
            if progress is not None:
                progress("retention", done, total, version.name)
    ages = {item: edits_at[last.digest] - edits_at[written_in[item[1]].digest] for item in items}
    return [life for metric in CURVE_METRICS if (life := _lifetime(metric, before[metric], after[metric], ages, bins))]


def _outcomes(
    directory: Path,
    version: Asked,
    suite: Suite,
    items: Sequence[Item],
    weights: Callable[[], Mapping[int, Tensor]],
    ask: Ask,
) -> Outcomes:
    kept = kept_outcomes(directory, version, suite, items, 0)
    if kept is None:
        kept = ask(suite.name, items, version.digest, weights())
        keep_outcomes(directory, version, suite, items, 0, kept)
    return kept


def _lifetime(
    metric: str,
    before: Mapping[Item, float | None],
    after: Mapping[Item, float | None],
    ages: Mapping[Item, int],
    bins: int,
) -> Lifetime | None:
    known = [
        (ages[item], first, last)
        for item, first in before.items()
        if first is not None and (last := after.get(item)) is not None
    ]
    if not known:
        return None
    known.sort(key=lambda one: one[0])
    firsts, lasts = [first for _, first, _ in known], [last for _, _, last in known]
    names = [str(at) for at in range(len(known))]
    ends = retention(dict(zip(names, firsts, strict=True)), dict(zip(names, lasts, strict=True)))
    assert ends is not None
    count = min(bins, len(known))
    edges = [round(at * len(known) / count) for at in range(count + 1)]
    curve = tuple(
        AgePoint(
            known[start][0],
            known[stop - 1][0],
            stop - start,
            sum(firsts[start:stop]) / (stop - start),
            sum(lasts[start:stop]) / (stop - start),
        )
        for start, stop in pairwise(edges)
    )
    return Lifetime(metric, ends, forgetting(firsts, lasts), curve)


def lifetime_lines(lives: Sequence[Lifetime]) -> Iterator[str]:
    """One line a metric, one a group of the curve."""
    yield "edits right after they were written, and at the end"
    for life in lives:
        ends = life.retention
        kept = "" if ends.kept is None else f", {ends.kept:.3f} of it kept"
        yield f"  {life.metric:<22}{ends.right_after:.3f} -> {ends.at_end:.3f}{kept}  ({counted(ends.edits, 'edit')})"
        for point in life.curve:
            span = f"{point.youngest}" if point.youngest == point.oldest else f"{point.youngest}-{point.oldest}"
            yield f"    age {span:<12}{point.right_after:8.3f} -> {point.at_end:.3f}  ({point.edits})"
