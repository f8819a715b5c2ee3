"""The forms in which a comparison is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from errata.orchestrator.experiments.collect import collect
from errata.orchestrator.experiments.page import render_page
from errata.orchestrator.experiments.tables import RunComparison, compare
from errata.orchestrator.experiments.text import to_latex, to_markdown

SUFFIXES: Final = {".md": "markdown", ".tex": "latex", ".html": "html"}
FORMATS: Final = tuple(SUFFIXES.values())


def render(comparison: RunComparison, kind: str) -> str:
    """A comparison in one of ``FORMATS``."""
    if kind == "html":
        return render_page(comparison)
    return to_latex(comparison) if kind == "latex" else to_markdown(comparison)


def write_tables(paths: Sequence[Path], target: Path) -> list[Path]:
    """Write ``comparison.md``, ``.tex`` and ``.html`` of runs or sweeps into a directory.

    Raises:
        UserError: no run is finished, or they cannot be compared.
    """
    comparison = compare(collect(paths))
    written = []
    for suffix, kind in SUFFIXES.items():
        path = target / f"comparison{suffix}"
        path.write_text(render(comparison, kind), encoding="utf-8")
        written.append(path)
    return written
