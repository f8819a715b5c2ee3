"""Errata's command line with a wall clock that is off by as many seconds as a file says, whenever it is asked.

python -m tests.helpers.shifted CLOCK_FILE serve CONFIG ...
"""

from __future__ import annotations

import importlib
import sys
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

ORCHESTRATOR = Path(__file__).parents[2] / "orchestrator"


def readers() -> list[str]:
    """Modules of the orchestrator that ask for the time of day."""
    found = [path for path in sorted(ORCHESTRATOR.rglob("*.py")) if "datetime.now(" in path.read_text("utf-8")]
    return [".".join(path.relative_to(ORCHESTRATOR).with_suffix("").parts) for path in found]


def shift(file: Path) -> None:
    """Have them see the shifted clock from now on."""

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            try:
                seconds = float(file.read_text())
            except (OSError, ValueError):  # not there, or being written
                seconds = 0.0
            return datetime.now(tz) + timedelta(seconds=seconds)

    for name in readers():
        module = importlib.import_module(f"errata.orchestrator.{name}")
        if getattr(module, "datetime", None) is datetime:  # a command may import it where it needs it
            module.datetime = Shifted  # type: ignore[attr-defined]


if __name__ == "__main__":
    shift(Path(sys.argv.pop(1)))
    from errata.orchestrator.cli.main import main

    main()
