"""Errata's command line with a wall clock that is off by as many seconds as a file says, whenever it is asked.

python -m tests.helpers.shifted CLOCK_FILE serve CONFIG ...
"""

from __future__ import annotations

import importlib
import sys
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

READERS = ("journal.records", "run.pipeline", "covariance.schedule", "service.app", "service.auth", "service.metrics")
"""Modules of the orchestrator that ask for the time of day."""


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

    for name in READERS:
        module = importlib.import_module(f"errata.orchestrator.{name}")
        assert module.datetime is datetime
        module.datetime = Shifted  # type: ignore[attr-defined]


if __name__ == "__main__":
    shift(Path(sys.argv.pop(1)))
    from errata.orchestrator.cli.main import main

    main()
