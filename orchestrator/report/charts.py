"""The line charts of every page: described here as plain data, drawn in the browser by uPlot (MIT), which lies beside.

A chart is an element that holds its description and, for those who do not see it, what it shows in words. The pages
are sent with `script` and `style` in them, so that a report is one file and asks no network for anything; the service's
page asks for the same files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup

from errata.orchestrator.report.formats import MINUS
from errata.orchestrator.report.pages import asset, script_hash, template

_FILES: Final = ("vendor/uplot.css", "colors.css", "charts.css", "vendor/uplot.js", "charts.js")


@dataclass(frozen=True)
class Form:
    """How a value is written: ``scale * value`` with so many digits (None: three significant), and what follows it."""

    digits: int | None = 0
    scale: float = 1.0
    suffix: str = ""
    sign: bool = False
    """A plus before what is above zero."""

    def text(self, value: float) -> str:
        """The value in words, as the script writes it."""
        scaled = value * self.scale
        if self.digits is None:
            return f"{scaled:.3g}{self.suffix}"
        sign = MINUS if scaled < 0 else "+" if self.sign and scaled > 0 else ""
        return f"{sign}{abs(scaled):,.{self.digits}f}{self.suffix}"

    def plain(self) -> dict[str, Any]:
        """For the script."""
        return {"digits": self.digits, "scale": self.scale, "suffix": self.suffix, "sign": self.sign}


MARKS: Final = ("dot", "square", "diamond", "triangle", "ring")
"""What stands at the points of a line that has few."""

PERCENT: Final = Form(0, 100.0, "%")
SHARE: Final = Form(1, 100.0)
"""A share as a number up to 100, as tables have it."""


@dataclass(frozen=True)
class Series:
    """One line: `style` names its look: an arm, or a color (``shade0`` to ``shade4``, ``c0`` to ``c9``), behind which
    may stand ``dashed`` or ``dotted`` and one of `MARKS`. A color alone is a whole line with the mark of its number."""

    style: str
    label: str
    points: tuple[tuple[float, float | None], ...]
    """(x, y); y None where nothing was measured: the line is not drawn across."""
    spread: tuple[tuple[float, float], ...] | None = None
    """For each point the range around it that is shaded."""


@dataclass(frozen=True)
class Event:
    """A moment on the x axis, a vertical line with a label on top (`short` where there is no room for it)."""

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


@dataclass(frozen=True)
class Span:
    """A range of x that deserves a shade, such as the layers that were chosen; its label stands above it."""

    low: float
    high: float
    label: str


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    form: Form = PERCENT,
    tick: Form | None = None,
    y_range: tuple[float, float] | None = None,
    events: Sequence[Event] = (),
    band: Band | None = None,
    spans: Sequence[Span] = (),
    bars: bool = False,
    names: Sequence[str] = (),
    x_label: str = "edits applied",
    y_label: str = "",
    log: bool = False,
    tight: bool = False,
    labels: bool = True,
) -> Markup:
    """One chart, as an element of the page.

    Args:
        title: what is shown; with the last values it becomes what a screen reader says.
        series: the lines, drawn in this order (the last one on top).
        form: how a value is written at line ends and in the hover text.
        tick: how the y axis is labeled; as ``form`` where it is not given.
        y_range: fixed limits of y; from the data (and the band) where it is not given.
        spans: ranges of x that are shaded.
        bars: bars in the place of lines.
        names: what stands under the bars at x = 0, 1, ...; numbers where none are given.
        log: both axes by powers of ten; every value is above zero.
        tight: the x axis begins at the first point, not at zero.
        labels: each line is named at its end; else the page has a legend.

    Returns:
        Safe markup; empty if no series has a single measured point.
    """
    lines = [line for line in series if any(y is not None and math.isfinite(y) for _, y in line.points)]
    if not lines:
        return Markup("")
    ends = [next(y for _, y in reversed(line.points) if y is not None) for line in lines]
    spoken = ", ".join(f"{line.label} {form.text(y)}" for line, y in zip(lines, ends, strict=True))
    spec: dict[str, Any] = {
        "series": [_plain(line) for line in lines],
        "form": form.plain(),
        "xLabel": x_label,
        "events": [vars(event) for event in events],
    }
    more = {
        "tick": None if tick is None else tick.plain(),
        "range": y_range,
        "band": None if band is None else vars(band),
        "spans": [vars(span) for span in spans] or None,
        "bars": bars or None,
        "names": [clean(name) for name in names] or None,
        "yLabel": y_label or None,
        "log": log or None,
        "tight": tight or None,
        "labels": None if labels else False,
    }
    spec |= {key: value for key, value in more.items() if value is not None}
    over = f" over {x_label}" if x_label else ""
    # attributes are escaped, and control characters are in no text of a page
    return Markup('<div class="chart" role="img" aria-label="{}" data-chart="{}"></div>').format(
        clean(f"{title}{over}. At the end: {spoken}."), json.dumps(spec, allow_nan=False)
    )


def spans_of(layers: Sequence[int], noun: str) -> list[Span]:
    """A shade for every unbroken run of layers, called by its noun: ``chosen layers 3-8``."""
    spans: list[Span] = []
    for layer in sorted(set(layers)):
        first = layer if not spans or spans[-1].high + 0.5 != layer else int(spans[-1].low + 0.5)
        if first != layer:
            spans.pop()
        spans.append(
            Span(first - 0.5, layer + 0.5, f"{noun} {layer}" if first == layer else f"{noun}s {first}-{layer}")
        )
    return spans


def key(style: str) -> Markup:
    """A piece of a line, for a legend."""
    return Markup('<canvas class="chart-key" data-key="{}" aria-hidden="true"></canvas>').format(style)


def script() -> str:
    """The engine and our part of it; `Charts.all()` draws every chart of the page."""
    engine = asset("report", "vendor/uplot.js")
    # its license goes where it goes
    license_text = asset("report", "vendor/uplot.LICENSE.txt").strip()
    return f"/*! uPlot\n{license_text}\n*/\n{engine.partition('*/')[2].lstrip()}\n{asset('report', 'charts.js')}"


def style() -> str:
    """What the charts need of a style sheet, colors of the arms included."""
    return "\n".join(asset("report", name) for name in _FILES if name.endswith(".css"))


def chart_page(room: str, name: str, **filled: Any) -> str:
    """A template of a room as a page of its own: ``page.css``, the engine and the script's digest are filled in."""
    look = f"{style()}\n{asset('report', 'page.css')}"
    return template(room, name).render(**filled, style=Markup(look), **drawn())


def drawn() -> dict[str, Any]:
    """The script that draws all charts of a page, and its digest, by the names that templates have for them."""
    code = f"{script()}\nCharts.all();\n"
    return {"script": Markup(code), "script_hash": script_hash(code)}


def files() -> list[Path]:
    """The same as files, for a server."""
    return [Path(str(resources.files("errata.orchestrator.report").joinpath(name))) for name in _FILES]


def clean(text: str) -> str:
    """Without control characters, which generated text may hold."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _plain(line: Series) -> dict[str, Any]:
    finite = [(x, y if y is None or math.isfinite(y) else None) for x, y in line.points]
    found: dict[str, Any] = {"style": line.style, "label": clean(line.label), "points": finite}
    return found if line.spread is None else {**found, "spread": line.spread}
