"""A comparison of covariances as one self-contained HTML page: MOIR's figures 3, 10 and 11 for one's own model.

The markup of the plots is built as an element tree and never by joining strings: text from the data cannot become
markup.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from xml.etree import ElementTree as ET

from markupsafe import Markup
from torch import Tensor

from errata.editing.estimation.diagnostics import common_grid, density
from errata.orchestrator.covariance.compare import CovarianceComparison, Side

WIDTH, HEIGHT = 460.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 12.0, 12.0, 38.0
COLORS = 6
"""Line styles in the page's style sheet; more sides than that share them."""
_SPECTRUM_POINTS = 160
_BAR = 20.0

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Bars:
    """A bar chart of words with the title under which it stands."""

    title: str
    svg: Markup


def render_comparison(comparison: CovarianceComparison) -> str:
    """The whole page, to be written as UTF-8."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_asset), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.j2").render(
        comparison=comparison,
        sides=[
            (side, f"c{index % COLORS}", json.dumps(dict(side.source))) for index, side in enumerate(comparison.sides)
        ],
        density=density_chart(comparison),
        spectra=[(layer, spectrum_chart(comparison, layer)) for layer in comparison.layers],
        words=[(side.name, word_charts(side)) for side in comparison.sides if side.openings],
    )


def density_chart(comparison: CovarianceComparison) -> Markup:
    """Densities of per-document NLL on a common grid (figures 3 and 11a); empty where no likelihood is known."""
    if not comparison.nll:
        return Markup("")
    grid = common_grid(list(comparison.nll.values()))
    lines = {name: _points(grid, density(sample, grid)) for name, sample in comparison.nll.items()}
    return _chart(_styled(comparison, lines), "NLL per token, nats", "density", "Densities of per-document NLL")


def spectrum_chart(comparison: CovarianceComparison, layer: int) -> Markup:
    """Eigenvalues of one layer against their rank, both logarithmic."""
    lines = {}
    for side in comparison.sides:
        values = side.layers[layer].eigenvalues
        kept = int((values > 0).sum())
        if not kept:
            continue
        ranks = sorted({round(kept ** (i / (_SPECTRUM_POINTS - 1))) for i in range(_SPECTRUM_POINTS)})
        # a few last eigenvalues are zero but for rounding and would squeeze all others into a line
        floor = float(values[0]) * 1e-10
        lines[side.name] = [
            (math.log10(rank), math.log10(float(values[rank - 1]))) for rank in ranks if float(values[rank - 1]) > floor
        ]
    return _chart(_styled(comparison, lines), "rank", "eigenvalue", f"Eigenspectra at layer {layer}", powers=True)


def word_charts(side: Side) -> list[Bars]:
    """The commonest first, second and third words of generated text (figure 10)."""
    titles = ("first word", "second word", "third word")
    return [Bars(title, _bars(side, title, place)) for place, title in enumerate(titles) if side.openings[place]]


# ---------------------------------------------------------------- plots


def _styled(comparison: CovarianceComparison, lines: Mapping[str, Points]) -> list[tuple[str, str, Points]]:
    order = [side.name for side in comparison.sides]
    return [(name, f"c{order.index(name) % COLORS}", points) for name, points in lines.items() if points]


def _points(x: Tensor, y: Tensor) -> Points:
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _chart(
    lines: Sequence[tuple[str, str, Points]], x_label: str, y_label: str, title: str, *, powers: bool = False
) -> Markup:
    """Lines over common axes; with ``powers`` the values are decimal logarithms and the ticks powers of ten."""
    xs = [x for _, _, points in lines for x, _ in points]
    ys = [y for _, _, points in lines for _, y in points]
    if not xs:
        return Markup("")
    x_low, x_high = _limits(xs)
    y_low, y_high = _limits(ys if powers else [0.0, *ys])

    def px(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (x - x_low) / (x_high - x_low)

    def py(y: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - y_low) / (y_high - y_low)

    svg = _svg(WIDTH, HEIGHT, f"{title}: {', '.join(name for name, _, _ in lines)}")
    write = _power if powers else _number
    for tick in _ticks(y_low, y_high, powers):
        _el(svg, "line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=py(tick), y2=py(tick))
        _el(svg, "text", write(tick), class_="tick y", x=LEFT - 6, y=py(tick) + 4)
    for tick in _ticks(x_low, x_high, powers):
        _el(svg, "line", class_="axis", x1=px(tick), x2=px(tick), y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM + 4)
        _el(svg, "text", write(tick), class_="tick x", x=px(tick), y=HEIGHT - BOTTOM + 16)
    _el(svg, "line", class_="axis", x1=LEFT, x2=WIDTH - RIGHT, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM)
    _el(svg, "text", x_label, class_="label", x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 4)
    _el(svg, "text", y_label, class_="label", x=12, y=HEIGHT / 2, transform=f"rotate(-90 12 {HEIGHT / 2:g})")
    for name, style, points in lines:
        path = "L".join(f"{px(x):.1f} {py(y):.1f}" for x, y in points)
        _el(_el(svg, "path", class_=f"line {style}", d=f"M{path}"), "title", name)
    return Markup(ET.tostring(svg, encoding="unicode"))


def _bars(side: Side, title: str, place: int) -> Markup:
    shares = side.openings[place]
    longest = max(item.share for item in shares)
    height = _BAR * len(shares) + 6
    svg = _svg(300.0, height, f"{title} of {side.name}: {shares[0].word} {shares[0].share:.1%}")
    for index, item in enumerate(shares):
        y = _BAR * index + 4
        _el(svg, "text", item.word[:14], class_="tick y", x=104, y=y + 12)
        _el(svg, "rect", class_="bar", x=110, y=y, width=max(1.0, 130 * item.share / longest), height=_BAR - 6)
        _el(svg, "text", f"{item.share:.2%}", class_="tick", x=246, y=y + 12)
    return Markup(ET.tostring(svg, encoding="unicode"))


def _svg(width: float, height: float, spoken: str) -> ET.Element:
    box = f"0 0 {width:.0f} {height:.0f}"
    return ET.Element("svg", {"viewBox": box, "role": "img", "aria-label": _clean(spoken)})


def _el(parent: ET.Element, tag: str, text: str | None = None, **attributes: str | float) -> ET.Element:
    given = {k.rstrip("_"): v if isinstance(v, str) else f"{v:.1f}" for k, v in attributes.items()}
    element = ET.SubElement(parent, tag, given)
    element.text = None if text is None else _clean(text)
    return element


def _clean(text: str) -> str:
    """Without the control characters that are not allowed in markup; generated text may hold any."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high - low > 1e-12 * max(1.0, abs(high)) else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float, powers: bool) -> list[float]:
    if powers:
        step = max(1, math.ceil((high - low) / 6))
        return [float(t) for t in range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1, step)]
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step_size = next(f * power for f in (1, 2, 5, 10) if f * power >= raw * 0.999)
    first, last = math.ceil(low / step_size - 1e-9), math.floor(high / step_size + 1e-9)
    return [index * step_size for index in range(first, last + 1)]


_number: Callable[[float], str] = "{:g}".format
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _power(exponent: float) -> str:
    return "10" + str(round(exponent)).translate(_SUPERSCRIPT)


def _asset(name: str) -> str:
    """The text of a file that lies beside this module, also when the package is installed as a wheel."""
    return resources.files("errata.orchestrator.covariance").joinpath(name).read_text(encoding="utf-8")
