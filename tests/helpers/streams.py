"""What tests of a stream write and read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.rows import JournalMeta


def new_journal(path: Path) -> Journal:
    """An empty journal."""
    return Journal.create(path, JournalMeta("run", "b" * 64, "e" * 64, {}))


def record(number: int, **changes: Any) -> dict[str, Any]:
    """An edit as it comes in, about a subject of its own."""
    return {"subject": f"S{number}", "prompt": "{} is", "target_new": "x", **changes}
