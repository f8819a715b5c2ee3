"""Curves over the number of edits: the timelines of the runs, and the ends of runs of several lengths."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from markupsafe import Markup

from errata.editing.wording import counted
from errata.orchestrator.experiments.labels import GROUP, SEED
from errata.orchestrator.experiments.tables import Block, Column, Figure, RunComparison, heading, mean_of
from errata.orchestrator.report.charts import nice_ticks
from errata.orchestrator.report.summary import TimelinePoint

WIDTH, HEIGHT = 400.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 12.0, 36.0
STYLES = 10
"""Colors of the page: one for the unedited model, one for the memory alone, the others for methods in turn."""
_ALONE = ("unedited", "memory")
_WITH_MEMORY = " + memory"
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
    svg: Markup


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
    for key in _KEYS:
        chosen = [line for line in lines.get(key, ()) if len(line.points) >= _SHORTEST]
        if chosen and key in columns:
            column = columns[key]
            charts.append(Chart(heading(column), draw(chosen, styles, column)))
    about = "Bands are standard errors over repetitions." if _has_bands(lines) else ""
    return Panel(title, about, tuple(styles.items()), tuple(charts)) if charts else None


def styles_of(labels: Sequence[str]) -> dict[str, str]:
    """A style for every label: a color a method, dashed for the same method with the memory."""
    methods = [label.removesuffix(_WITH_MEMORY) for label in labels if label.partition(",")[0] not in _ALONE]
    colors = {method: f"c{2 + n % (STYLES - 2)}" for n, method in enumerate(dict.fromkeys(methods))}
    styles = {}
    for label in labels:
        alone = label.partition(",")[0]
        if alone in _ALONE:
            styles[label] = f"c{_ALONE.index(alone)}"
        else:
            dashed = " dashed" if label.endswith(_WITH_MEMORY) else ""
            styles[label] = colors[label.removesuffix(_WITH_MEMORY)] + dashed
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
                for key, value in _figures_at(point, row.arm).items():
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


# ---------------------------------------------------------------- drawing


def draw(lines: Sequence[Line], styles: Mapping[str, str], column: Column) -> Markup:
    """An ``<svg>`` of lines with bands of their standard errors; safe markup, built as a tree."""
    scale = 100.0 if column.share else 1.0
    values = [
        scale * (point.figure.mean + sign * (point.figure.error or 0.0))
        for line in lines
        for point in line.points
        for sign in (-1, 1)
    ]
    low, high = (0.0, 100.0) if column.share else _limits(values)
    most = max(point.edits for line in lines for point in line.points) or 1

    def px(edits: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * edits / most

    def py(value: float) -> float:
        inside = min(max(value, low), high)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (inside - low) / (high - low)

    spoken = "; ".join(f"{line.label} {column.text(line.points[-1].figure.mean)}" for line in lines)
    svg = ET.Element(
        "svg",
        {
            "viewBox": f"0 0 {WIDTH:.0f} {HEIGHT:.0f}",
            "role": "img",
            "aria-label": _clean(f"{column.heading} over edits. At the end: {spoken}."),
        },
    )
    for tick in nice_ticks(low, high, 5):
        _el(svg, "line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=py(tick), y2=py(tick))
        _el(svg, "text", f"{tick:g}", class_="tick y", x=LEFT - 6, y=py(tick) + 4)
    for tick in nice_ticks(0, most, 5):
        _el(svg, "line", class_="axis", x1=px(tick), x2=px(tick), y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM + 4)
        _el(svg, "text", f"{tick:g}", class_="tick x", x=px(tick), y=HEIGHT - BOTTOM + 17)
    _el(svg, "line", class_="axis", x1=LEFT, x2=WIDTH - RIGHT, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM)
    _el(svg, "text", "edits", class_="label", x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 4)
    for line in lines:
        style = styles[line.label]
        if any(point.figure.error for point in line.points):
            upper = [(px(p.edits), py(scale * (p.figure.mean + (p.figure.error or 0)))) for p in line.points]
            lower = [(px(p.edits), py(scale * (p.figure.mean - (p.figure.error or 0)))) for p in line.points]
            corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*upper, *reversed(lower)])
            ET.SubElement(svg, "polygon", {"class": f"band {style}", "points": corners})
        path = "L".join(f"{px(p.edits):.1f} {py(scale * p.figure.mean):.1f}" for p in line.points)
        ET.SubElement(svg, "path", {"class": f"line {style}", "d": f"M{path}"})
        for point in line.points:
            dot = ET.SubElement(
                svg,
                "circle",
                {
                    "class": f"dot {style}",
                    "cx": f"{px(point.edits):.1f}",
                    "cy": f"{py(scale * point.figure.mean):.1f}",
                    "r": "3",
                },
            )
            said = f"{line.label}: {column.text(point.figure.mean)} at {counted(point.edits, 'edit')}"
            ET.SubElement(dot, "title").text = _clean(said)
    return Markup(ET.tostring(svg, encoding="unicode"))


def _el(parent: ET.Element, tag: str, text: str | None = None, **attributes: str | float) -> None:
    named = {k.rstrip("_"): v if isinstance(v, str) else f"{v:.1f}" for k, v in attributes.items()}
    ET.SubElement(parent, tag, named).text = text


def _clean(text: str) -> str:
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room
