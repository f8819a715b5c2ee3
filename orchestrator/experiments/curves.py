"""Curves over the number of edits: the timelines of the runs, and the ends of runs of several lengths."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from errata.orchestrator.experiments.collect import Run
from errata.orchestrator.experiments.labels import GROUP, SEED
from errata.orchestrator.experiments.tables import (
    TASK,
    WAYS,
    Block,
    Column,
    Figure,
    RunComparison,
    heading,
    mean_of,
    preserved_figures,
)
from errata.orchestrator.report.charts import MARKS, SHARE, Form, Series, line_chart
from errata.orchestrator.report.summary import TimelinePoint

STYLES = 10
"""Colors of the page: one for each way that needs no editor, the others for methods in turn."""
_ALONE = {
    "unedited": ("c0", "", "ring"),
    "memory": ("c1", "dashed", "square"),
    "IKE": ("ike", "dashed", "diamond"),
    "IKE oracle": ("ike_oracle", "dotted", "diamond"),
}
_LOOKS = {WAYS["edited_memory"]: "dashed", WAYS["routed"]: "dotted"}
"""How a line of a method is told from the method's own, by the end of its label: by its dashes, whereas methods
are told apart by color and mark."""
_KEYS = (
    "reliability",
    "generalization_gen",
    "locality",
    "locality_true",
    "portability",
    "efficacy",
    "specificity",
    "specificity_exact",
    "perplexity",
    "s_p",
    "retention",
    "uncertainty_growth",
)
_SHORTEST = 2


@dataclass(frozen=True)
class Point:
    """A mean at a number of edits."""

    edits: int
    figure: Figure


@dataclass(frozen=True)
class Line:
    """One row's course."""

    label: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Chart:
    """One figure of several rows over the number of edits."""

    title: str
    chart: Markup


@dataclass(frozen=True)
class Panel:
    """Charts that share their legend."""

    title: str
    about: str
    labels: tuple[tuple[str, str], ...]
    """What each line is, and its style."""
    charts: tuple[Chart, ...]


def panels_of(comparison: RunComparison) -> list[Panel]:
    """All panels that have something to show: ends over lengths first, then the timeline of every block."""
    panels = [_panel("At the end of streams of different length", _ends(comparison), comparison)]
    for block in comparison.blocks:
        title = f"As the stream goes on, {block.title}" if block.title else "As the stream goes on"
        panels.append(_panel(title, _timelines(block), comparison))
    return [panel for panel in panels if panel is not None]


def _panel(title: str, lines: Mapping[str, Sequence[Line]], comparison: RunComparison) -> Panel | None:
    styles = styles_of(list(dict.fromkeys(line.label for chosen in lines.values() for line in chosen)))
    columns = {column.key: column for column in comparison.columns}
    charts = []
    for key in (*_KEYS, *(key for key in columns if key.startswith(TASK))):
        chosen = [line for line in lines.get(key, ()) if len(line.points) >= _SHORTEST]
        if chosen and key in columns:
            column = columns[key]
            charts.append(Chart(heading(column), draw(chosen, styles, column)))
    about = "Bands are standard errors over repetitions." if _has_bands(lines) else ""
    return Panel(title, about, tuple(styles.items()), tuple(charts)) if charts else None


def styles_of(labels: Sequence[str]) -> dict[str, str]:
    """A style for every label: a color and a mark a method, dashed for the same method with the memory, dotted routed.

    Methods beyond the colors begin them anew with other marks, and so do several memories.
    """
    styles: dict[str, str] = {}
    methods: dict[str, tuple[str, str]] = {}
    seen = dict.fromkeys(_ALONE, 0)
    for label in labels:
        if (alone := label.partition(",")[0]) in _ALONE:
            color, dash, mark = _ALONE[alone]
            mark = MARKS[(MARKS.index(mark) + seen[alone]) % len(MARKS)]
            seen[alone] += 1
        else:
            way = next((way for way in _LOOKS if label.endswith(way)), "")
            turn, place = divmod(len(methods), STYLES - 2)
            new = (f"c{2 + place}", MARKS[(place + turn) % len(MARKS)])
            color, mark = methods.setdefault(label.removesuffix(way), new)
            dash = _LOOKS.get(way, "")
        styles[label] = " ".join(part for part in (color, dash, mark) if part)
    return styles


def _has_bands(lines: Mapping[str, Sequence[Line]]) -> bool:
    return any(point.figure.error is not None for each in lines.values() for line in each for point in line.points)


def _ends(comparison: RunComparison) -> dict[str, list[Line]]:
    """Final figures by the length of the stream, where blocks differ in nothing else."""
    axes = [axis for axis in comparison.split if _numeric(axis, comparison.blocks)]
    if len(axes) != 1 or len(comparison.split) != 1:
        return {}
    points: dict[str, dict[str, list[Point]]] = {}
    for block in sorted(comparison.blocks, key=lambda block: float(block.coordinates.get(axes[0], "0"))):
        for row in block.rows:
            for key, figure in row.figures.items():
                if figure is not None:
                    place = points.setdefault(key, {}).setdefault(row.label, [])
                    place.append(Point(int(float(block.coordinates.get(axes[0], "0"))), figure))
    return {
        key: [Line(label, tuple(points_of_row)) for label, points_of_row in rows.items()]
        for key, rows in points.items()
    }


def _numeric(axis: str, blocks: Sequence[Block]) -> bool:
    labels = [block.coordinates.get(axis, "") for block in blocks]
    return len(set(labels)) > 1 and all(re.fullmatch(r"\d+(\.0*)?", label) for label in labels)


def _timelines(block: Block) -> dict[str, list[Line]]:
    """Timeline points of every row, means over its repetitions; groups have other facts and are averaged."""
    lines: dict[str, list[Line]] = {}
    for row in block.rows:
        values: dict[str, dict[int, dict[tuple[str, str], list[float]]]] = {}
        for run in row.runs:
            place = (run.coordinates.get(SEED, ""), run.coordinates.get(GROUP, ""))
            for point in run.summary.timeline:
                at_point = _figures_at(point, row.arm) | _kept_at(run, point, row.arm)
                for key, value in at_point.items():
                    values.setdefault(key, {}).setdefault(point.edits, {}).setdefault(place, []).append(value)
        for key, at in values.items():
            marks = [(edits, mean_of(seen)) for edits, seen in sorted(at.items())]
            points = tuple(Point(edits, figure) for edits, figure in marks if figure is not None)
            lines.setdefault(key, []).append(Line(row.label, points))
    return lines


def _figures_at(point: TimelinePoint, arm: str) -> dict[str, float]:
    metrics = next((figures for name, figures in point.arms.items() if name == arm), None)
    figures = {} if metrics is None else metrics.model_dump()
    if arm == "edited":
        figures["perplexity"] = point.perplexity.edited
    return {key: value for key, value in figures.items() if value is not None}


def _kept_at(run: Run, point: TimelinePoint, arm: str) -> dict[str, float]:
    figures = preserved_figures(run, "base" if arm == "edited" and not point.edits else arm, point.version)
    return {key: value for key, value in figures.items() if value is not None}


# ---------------------------------------------------------------- drawing


def draw(lines: Sequence[Line], styles: Mapping[str, str], column: Column) -> Markup:
    """Lines over the number of edits, shaded by their standard errors."""
    return line_chart(
        column.heading,
        [
            Series(
                styles[line.label],
                line.label,
                tuple((point.edits, point.figure.mean) for point in line.points),
                tuple(_around(point.figure) for point in line.points) if _is_spread(line) else None,
            )
            for line in lines
        ],
        form=SHARE if column.share else Form(None),
        y_range=(0.0, 1.0) if column.share else None,
        x_label="edits",
        labels=False,
    )


def _is_spread(line: Line) -> bool:
    return any(point.figure.error for point in line.points)


def _around(figure: Figure) -> tuple[float, float]:
    error = figure.error or 0.0
    return figure.mean - error, figure.mean + error
