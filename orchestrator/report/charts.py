"""Line charts as inline SVG. Colors come from the page's style sheet, so one chart serves light, dark and paper.

The markup is built as an element tree and never by joining strings: text from the data cannot become markup.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from markupsafe import Markup

WIDTH, HEIGHT = 340.0, 214.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 94.0, 26.0, 36.0
LABEL_GAP = 14.0  # least distance of two labels at line ends: one line of text
CHARACTER = 6.0  # rough width of a character, to keep the labels of neighboring refreshes apart


@dataclass(frozen=True)
class Series:
    """One line: `style` names its look in the style sheet, `points` are (x, y), y None where nothing was measured."""

    style: str
    label: str
    points: tuple[tuple[float, float | None], ...]


@dataclass(frozen=True)
class Event:
    """A moment on the x axis, drawn as a vertical line with a label on top (`short` where there is no room for it)."""

    x: float
    label: str
    short: str
    detail: str


@dataclass(frozen=True)
class Band:
    """A range of y that deserves a shade, such as "within 10% of the base"."""

    low: float
    high: float
    label: str


def nice_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """About `wanted` round numbers (steps of 1, 2 or 5 times a power of ten) that lie within [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / max(wanted, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near `wanted` with at least `gap` between neighbors, within [low, high] if they fit."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    placed: list[float] = []
    for index in order:
        lowest = placed[-1] + gap if placed else low
        placed.append(max(wanted[index], lowest))
    ceiling = high
    for position in range(len(placed) - 1, -1, -1):
        placed[position] = min(placed[position], ceiling)
        ceiling = placed[position] - gap
    result = [0.0] * len(wanted)
    for index, value in zip(order, placed, strict=True):
        result[index] = value
    return result


def _el(parent: ET.Element, tag: str, text: str | None = None, **attributes: str | float) -> ET.Element:
    """A child element; `class_` and `stroke_width` become `class` and `stroke-width`, floats get one decimal."""
    named = {
        key.rstrip("_").replace("_", "-"): f"{value:.1f}" if isinstance(value, float) else str(value)
        for key, value in attributes.items()
    }
    element = ET.SubElement(parent, tag, named)
    element.text = text
    return element


def _symbol(parent: ET.Element, style: str, x: float, y: float) -> None:
    """The mark of one measurement; each arm has its own form, so that color is never the only difference."""
    if style == "memory":
        _el(parent, "rect", class_="dot", x=x - 3.4, y=y - 3.4, width=6.8, height=6.8)
    elif style == "edited_memory":
        _el(parent, "path", class_="dot", d=f"M{x:.1f} {y - 4.9:.1f}l4.9 4.9l-4.9 4.9l-4.9 -4.9z")
    elif style == "routed":
        _el(parent, "path", class_="dot", d=f"M{x:.1f} {y - 5.1:.1f}l4.8 8.4h-9.6z")
    else:
        _el(parent, "circle", class_="dot", cx=x, cy=y, r=3.2 if style == "base" else 3.8)


def _segments(points: Sequence[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    """Runs of neighboring measured points: a line is not drawn across what was not measured."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is None:
            runs.append([])
        else:
            runs[-1].append((x, y))
    return [run for run in runs if run]


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    write: Callable[[float], str],
    write_tick: Callable[[float], str] | None = None,
    y_range: tuple[float, float] | None = None,
    events: Sequence[Event] = (),
    band: Band | None = None,
    x_label: str = "edits applied",
) -> Markup:
    """One chart over the number of edits, as an `<svg>` element.

    Args:
        title: what is shown; becomes the name that a screen reader says, together with the last values.
        series: the lines, drawn in this order (the last one on top).
        write: how a value is written at line ends and in the hover text.
        write_tick: how the y axis is labeled; `write` where it is not given.
        y_range: fixed limits of y; from the data (and the band) where it is not given.
        events: vertical lines.
        band: a shaded range of y.

    Returns:
        Safe markup; empty if no series has a single measured point.
    """
    lines = [line for line in series if any(y is not None for _, y in line.points)]
    if not lines:
        return Markup("")
    values = [y for line in lines for _, y in line.points if y is not None]
    xs = sorted({x for line in lines for x, _ in line.points})
    x_high = max([*xs, *(event.x for event in events), 1.0])
    low, high = y_range or _limits(values + ([band.low, band.high] if band else []))

    def px(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * x / x_high

    def py(y: float) -> float:
        inside = min(max(y, low), high)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (inside - low) / (high - low)

    ends = [next((x, y) for x, y in reversed(line.points) if y is not None) for line in lines]
    spoken = ", ".join(f"{line.label} {write(y)}" for line, (_, y) in zip(lines, ends, strict=True))
    svg = ET.Element(
        "svg",
        {
            "class": "chart",
            "viewBox": f"0 0 {WIDTH:.0f} {HEIGHT:.0f}",
            "role": "img",
            "aria-label": f"{title} over {x_label}. At the end: {spoken}.",
        },
    )
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    if band is not None:
        height = py(band.low) - py(band.high)
        _el(svg, "rect", class_="band", x=LEFT, y=py(band.high), width=right - LEFT, height=height)
        _el(svg, "text", band.label, class_="band-label", x=LEFT + 6, y=py(band.low) - 6)
    for tick in nice_ticks(low, high, 4):
        _el(svg, "line", class_="grid", x1=LEFT, x2=right, y1=py(tick), y2=py(tick))
        _el(svg, "text", (write_tick or write)(tick), class_="tick y", x=LEFT - 8, y=py(tick) + 4)
    for tick in nice_ticks(0, x_high, 4):
        _el(svg, "line", class_="axis", x1=px(tick), x2=px(tick), y1=bottom, y2=bottom + 4)
        _el(svg, "text", f"{tick:,.0f}" if x_high >= 5 else f"{tick:g}", class_="tick x", x=px(tick), y=bottom + 17)
    _el(svg, "line", class_="axis", x1=LEFT, x2=right, y1=bottom, y2=bottom)
    _el(svg, "text", x_label, class_="axis-label", x=(LEFT + right) / 2, y=HEIGHT - 3)
    _draw_events(svg, events, px, bottom)
    for line in lines:
        group = _el(svg, "g", class_=f"line {line.style}")
        for run in _segments(line.points):
            path = "L".join(f"{px(x):.1f} {py(y):.1f}" for x, y in run)
            if len(run) > 1:
                _el(group, "path", class_="stroke", d=f"M{path}")
            for x, y in run:
                _symbol(group, line.style, px(x), py(y))
    for line, (x, y), height in zip(lines, ends, spread([py(y) for _, y in ends], LABEL_GAP, TOP, bottom), strict=True):
        group = _el(svg, "g", class_=f"line {line.style}")
        _el(group, "path", class_="leader", d=f"M{px(x) + 6:.1f} {py(y):.1f}L{right + 12:.1f} {height:.1f}")
        label = _el(group, "text", f"{line.label} ", class_="end", x=right + 15, y=height + 4)
        _el(label, "tspan", write(y), class_="value")
    _draw_hover(svg, lines, xs, px, bottom, right, write, x_label)
    return Markup(ET.tostring(svg, encoding="unicode"))


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Limits of y around the data, with a little air; a flat line lies in the middle."""
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(abs(high), 1.0):
        room = 0.05 * abs(high) or 1.0
        return low - room, high + room
    return low - 0.08 * (high - low), high + 0.08 * (high - low)


def _draw_events(svg: ET.Element, events: Sequence[Event], px: Callable[[float], float], bottom: float) -> None:
    """Vertical lines with labels on top; one that would touch the label before it is shortened or left out."""
    free_from = LEFT - 30
    for event in sorted(events, key=lambda item: item.x):
        group = _el(svg, "g", class_="event", data_tip=event.detail)
        x = px(event.x)
        _el(group, "line", x1=x, x2=x, y1=TOP - 6, y2=bottom)
        for label in (event.label, event.short):
            half = CHARACTER * len(label) / 2
            if x - half >= free_from:
                _el(group, "text", label, x=x, y=TOP - 11)
                free_from = x + half + 4
                break
        _el(group, "rect", class_="catch", x=x - 5, y=0.0, width=10.0, height=TOP + 6)
        _el(group, "title", event.detail)


def _draw_hover(
    svg: ET.Element,
    lines: Sequence[Series],
    xs: Sequence[float],
    px: Callable[[float], float],
    bottom: float,
    right: float,
    write: Callable[[float], str],
    x_label: str,
) -> None:
    """Invisible strips, one per measured x: hovering shows every line's value there."""
    for index, x in enumerate(xs):
        start = LEFT if index == 0 else (px(xs[index - 1]) + px(x)) / 2
        stop = right + 8 if index == len(xs) - 1 else (px(x) + px(xs[index + 1])) / 2
        rows = [f"{x:,.0f} {x_label}"]
        for line in lines:
            y = dict(line.points).get(x)
            if y is not None:
                rows.append(f"{line.label}: {write(y)}")
        group = _el(svg, "g", class_="strip", data_tip="\n".join(rows))
        _el(group, "line", class_="cursor", x1=px(x), x2=px(x), y1=TOP, y2=bottom)
        _el(group, "rect", class_="catch", x=start, y=TOP + 6, width=max(stop - start, 1.0), height=bottom - TOP - 6)
        _el(group, "title", "\n".join(rows))
