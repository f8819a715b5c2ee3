"""A comparison as one self-contained HTML page: tables, and curves over the number of edits."""

from __future__ import annotations

from markupsafe import Markup

from errata.orchestrator.experiments.curves import STYLES, panels_of
from errata.orchestrator.experiments.tables import RunComparison, heading
from errata.orchestrator.experiments.text import MISSING, columns_of, parts, reading
from errata.orchestrator.report import charts
from errata.orchestrator.report.pages import template


def render_page(comparison: RunComparison) -> str:
    """The whole page, to be written as UTF-8."""
    return template("experiments", "page.html.j2").render(
        comparison=comparison,
        tables=[
            (
                block.title,
                columns_of(block, comparison),
                [
                    (
                        row,
                        [
                            (*parts(figure, column), figure.best)
                            if (figure := row.figures.get(column.key)) is not None
                            else (MISSING, "", False)
                            for column in columns_of(block, comparison)
                        ],
                    )
                    for row in block.rows
                ],
            )
            for block in comparison.blocks
        ],
        panels=panels_of(comparison),
        heading=heading,
        reading=reading(comparison),
        styles=STYLES,
        key=charts.key,
        chart_style=Markup(charts.style()),
        **charts.drawn(),
    )
