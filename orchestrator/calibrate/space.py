"""What calibration may choose: settings as points of a grid, and an order in which points are tried."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

from errata.editing.tracing import usual_layers

RIDGES: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "alphaedit": ("l2", (10.0, 1.0, 0.1, 0.01)),
    "memit": ("cov_weight", (15_000.0, 1_000.0, 100.0, 10.0, 1.0)),
}
"""By editor: the ridge's setting and the values that are tried, the papers' first."""

Candidate = Mapping[str, Any]
"""Dotted keys below ``editor`` with values, JSON's types only."""


@dataclass(frozen=True)
class Space:
    """Dotted keys below ``editor`` and the values each may have, ascending or in a sensible order."""

    axes: Mapping[str, tuple[Any, ...]]
    starts: tuple[Candidate, ...]
    """Points that are tried first: what is known to work somewhere."""

    def points(self, count: int, seed: int = 0) -> list[Candidate]:
        """At most ``count`` different points: the starts, then others at random."""
        every = [dict(zip(self.axes, values, strict=True)) for values in product(*self.axes.values())]
        random.Random(seed).shuffle(every)
        candidates: list[Candidate] = []
        for point in (*self.starts, *every):
            if point not in candidates:
                candidates.append(point)
            if len(candidates) >= count:
                break
        return candidates

    def neighbors(self, point: Candidate) -> list[Candidate]:
        """The points that differ in one setting by one step."""
        candidates: list[Candidate] = []
        for key, values in self.axes.items():
            for a, b in pairwise(values):
                if point[key] in (a, b) and a != b:
                    candidates.append({**point, key: b if point[key] == a else a})
        return candidates


def space_for(editor: str, windows: Sequence[Sequence[int]]) -> Space:
    """The space of an editor over windows of layers, the most promising window first."""
    ridge, values = RIDGES[editor]
    layers = tuple(list(window) for window in windows)
    axes: dict[str, tuple[Any, ...]] = {
        "layers": layers,
        ridge: values,
        "values.units": ("absolute", "relative"),
        "values.clamp": (0.75, 1.5, 4.0),
        "values.lr": (0.5, 0.25, 0.15),
        "values.steps": (15, 25),
        "values.weight_decay": (0.5, 0.05, 0.001),
    }
    usual = {"values.units": "absolute", "values.lr": 0.5, "values.steps": 25}
    # steps that count in the size of the states are the same on every model; behind a norm nothing else arrives
    scaled = {"values.units": "relative", "values.lr": 0.15, "values.steps": 15}
    starts = []
    for window in layers:
        starts.append({"layers": window, ridge: values[0], "values.clamp": 0.75, "values.weight_decay": 0.5} | usual)
        starts.append({"layers": window, ridge: values[1], "values.clamp": 0.75, "values.weight_decay": 0.001} | scaled)
        starts.append({"layers": window, ridge: values[-1], "values.clamp": 4.0, "values.weight_decay": 0.001} | usual)
    return Space(axes, tuple({key: start[key] for key in axes} for start in starts))


def windows_from(effects: Sequence[float], widths: Sequence[int] = (5, 1, 3)) -> list[list[int]]:
    """Windows of layers by causal effects at the subject's last token: the best of each width, and early single ones.

    The last two layers are left out: what they write, few layers can read. Tracing and editing do not always agree
    about the place, so the window's first and last layer are candidates by themselves, and so are five layers from a
    seventh of the depth on, where the models that were traced recall facts.
    """
    usable = list(effects[: max(1, len(effects) - 2)])
    windows: list[list[int]] = []
    for width in widths:
        width = min(width, len(usable))
        sums = [sum(usable[start : start + width]) for start in range(len(usable) - width + 1)]
        best = max(range(len(sums)), key=lambda i: sums[i])
        windows.append(list(range(best, best + width)))
    windows.append([layer for layer in usual_layers(len(effects)) if layer < len(usable)])
    for layer in (windows[0][0], windows[0][-1]):
        windows.append([layer])
    return [window for i, window in enumerate(windows) if window not in windows[:i]]


def settings_of(candidate: Candidate) -> dict[str, Any]:
    """A candidate as a section ``editor``, without its type."""
    section: dict[str, Any] = {}
    for key, value in candidate.items():
        head, dot, rest = key.partition(".")
        if dot:
            section.setdefault(head, {})[rest] = value
        else:
            section[head] = value
    return section
