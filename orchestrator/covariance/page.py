"""A comparison of covariances as one self-contained HTML page: MOIR's figures 3, 10 and 11 for one's own model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from torch import Tensor

from errata.editing.estimation.diagnostics import common_grid, density
from errata.orchestrator.covariance.compare import CovarianceComparison, Side
from errata.orchestrator.report.charts import Form, Series, drawn, key, line_chart, style
from errata.orchestrator.report.pages import template

COLORS = 6
"""Looks of lines; more sides than that share them."""
_DASHES = ("", " dashed", " dotted")
"""Dense lines have no marks; where they lie on each other, gaps let the lower one through."""
_SPECTRUM_POINTS = 160

Points = Sequence[tuple[float, float]]


def render_comparison(comparison: CovarianceComparison) -> str:
    """The whole page, to be written as UTF-8."""
    return template("covariance", "page.html.j2").render(
        comparison=comparison,
        sides=[(side, key(style_of(index)), _told(side.source)) for index, side in enumerate(comparison.sides)],
        density=density_chart(comparison),
        spectra=[(layer, spectrum_chart(comparison, layer)) for layer in comparison.layers],
        chart_style=Markup(style()),
        words=[(side.name, word_charts(side)) for side in comparison.sides if side.openings],
        **drawn(),
    )


def density_chart(comparison: CovarianceComparison) -> Markup:
    """Densities of per-document NLL on a common grid (figures 3 and 11a); empty where no likelihood is known."""
    if not comparison.nll:
        return Markup("")
    grid = common_grid(list(comparison.nll.values()))
    lines = {name: _points(grid, density(sample, grid)) for name, sample in comparison.nll.items()}
    return line_chart(
        "Densities of per-document NLL",
        _series(comparison, lines),
        form=Form(None),
        x_label="NLL per token, nats",
        y_label="density",
        tight=True,
        labels=False,
    )


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
        lines[side.name] = [(float(rank), float(values[rank - 1])) for rank in ranks if float(values[rank - 1]) > floor]
    return line_chart(
        f"Eigenspectra at layer {layer}",
        _series(comparison, lines),
        form=Form(None),
        x_label="rank",
        y_label="eigenvalue",
        log=True,
        labels=False,
    )


def word_charts(side: Side) -> list[tuple[str, Markup]]:
    """The commonest first, second and third words of generated text (figure 10), each with its title."""
    titles = ("first word", "second word", "third word")
    return [(title, _word_chart(side, place, title)) for place, title in enumerate(titles) if side.openings[place]]


def _word_chart(side: Side, place: int, title: str) -> Markup:
    openings = side.openings[place]
    return line_chart(
        f"Commonest {title} of {side.name}",
        [Series("c2", "share", tuple((n, item.share) for n, item in enumerate(openings)))],
        form=Form(2, 100.0, "%"),
        tick=Form(None, 100.0, "%"),
        y_range=(0.0, 1.1 * max(item.share for item in openings)),
        bars=True,
        names=[item.word[:12] for item in openings],
        x_label="",
        labels=False,
    )


def _series(comparison: CovarianceComparison, lines: Mapping[str, Points]) -> list[Series]:
    order = [side.name for side in comparison.sides]
    return [Series(style_of(order.index(name)), name, tuple(points)) for name, points in lines.items() if points]


def style_of(place: int) -> str:
    """Look of a side, by its place; the first six differ in color."""
    return f"c{2 + place % COLORS}{_DASHES[place % len(_DASHES)]}"


def _told(source: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a covariance was made from, in words: digests short, what was not set left out."""
    plain = {name: value for name, value in source.items() if value is not None}
    return [
        (
            name.replace("_", " "),
            value[:12] if name == "version" else value if isinstance(value, str) else json.dumps(value),
        )
        for name, value in plain.items()
    ]


def _points(x: Tensor, y: Tensor) -> Points:
    return list(zip(x.tolist(), y.tolist(), strict=True))
