"""Journals of older releases, as they were recorded."""

from __future__ import annotations

import sqlite3
from pathlib import Path

RECORDED = Path(__file__).parents[1] / "assets" / "journals"


def restored(recorded: Path, path: Path) -> Path:
    """Make a journal's file of what was recorded of it."""
    connection = sqlite3.connect(path)
    connection.executescript(recorded.read_text(encoding="utf-8"))
    connection.close()
    return path
