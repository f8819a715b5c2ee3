"""What repair has found and done, in figures, from the events of its rounds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def repair_figures(rounds: Iterable[Mapping[str, Any]], edit_seconds: float) -> dict[str, Any] | None:
    """Sums over the rounds of a run's repairs, oldest first; None where there were none.

    Args:
        rounds: data of the journal's events of kind ``repair``.
        edit_seconds: wall seconds of the run's other commits.

    Returns:
        ``looks``, ``rounds``, ``asked``, ``said``, ``tried``, ``written``, ``landed``; ``ask_seconds``,
        ``write_seconds`` and ``cost``, both together as a share of ``edit_seconds``; ``ages``: what was asked and said
        before and after, by age in edits; ``points``: for each look what its first sample said, before anything of
        the look was written, and its last.
    """
    totals: dict[str, float] = dict.fromkeys(("rounds", "asked", "tried", "written", "landed"), 0)
    said, ask_seconds, write_seconds = 0, 0.0, 0.0
    ages: dict[int, list[int]] = {}
    points: dict[int, dict[str, Any]] = {}
    for data in rounds:
        if not data["asked"]:
            continue
        asked, lost = len(data["asked"]), len(data["lost"])
        totals["rounds"] += 1
        totals["asked"] += asked
        said += asked - lost
        for name in ("tried", "written", "landed"):
            totals[name] += data[name]
        ask_seconds += data["ask_seconds"]
        write_seconds += data["write_seconds"]
        for (oldest, count, before), (_, _, after) in zip(data["ages"], data["ages_after"], strict=True):
            row = ages.setdefault(oldest, [0, 0, 0])
            row[0], row[1], row[2] = row[0] + count, row[1] + before, row[2] + after
        point = points.setdefault(data["at"], {"edits": data["at"], "before": 1 - lost / asked, "written": 0})
        point["last"] = 1 - lost / asked
        point["written"] += data["written"]
    if not totals["rounds"]:
        return None
    return {
        "looks": len(points),
        **{name: int(value) for name, value in totals.items()},
        "said": said,
        "ask_seconds": ask_seconds,
        "write_seconds": write_seconds,
        "cost": (ask_seconds + write_seconds) / edit_seconds if edit_seconds else None,
        "ages": [
            {"oldest": oldest, "asked": asked, "before": before / asked, "after": after / asked}
            for oldest, (asked, before, after) in sorted(ages.items())
        ],
        "points": [points[at] for at in sorted(points)],
    }
