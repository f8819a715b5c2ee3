"""A sweep as it goes: a live table of its cells on a terminal, a line per event in a log."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from errata.editing.wording import counted
from errata.orchestrator.experiments.labels import title_of
from errata.orchestrator.experiments.plan import Progress
from errata.orchestrator.experiments.record import CellRecord, SweepRecord

logger = logging.getLogger(__name__)

_STYLES = {"running": "bold", "done": "green", "failed": "red", "interrupted": "yellow", "waiting": "dim"}
_ORDER = {"running": 0, "failed": 1, "interrupted": 2, "waiting": 3, "done": 4}
_ROWS = 24
"""Rows of the live table: a terminal's height; what does not fit is counted."""


class SweepView:
    """Shows states and progress; ``update`` as often as one likes, ``say`` for what has happened."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console if console is not None else Console(stderr=True)
        self._live = Live(console=self.console, refresh_per_second=2) if self.console.is_terminal else None
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, message: str) -> None:
        """One line about what happened."""
        if self._live is not None:
            self.console.print(message, highlight=False, markup=False)
        else:
            logger.info("%s", message)

    def update(
        self, record: SweepRecord, progress: Mapping[str, Progress | None], seconds: Mapping[str, float]
    ) -> None:
        """Show how far the cells are; ``progress`` and ``seconds`` of the running ones by key."""
        if self._live is not None:
            self._live.update(
                Group(
                    cells_table(record, progress, seconds),
                    Text(headline(record, time.monotonic() - self._started), style="dim"),
                )
            )


def cells_table(
    record: SweepRecord, progress: Mapping[str, Progress | None], seconds: Mapping[str, float], rows: int = _ROWS
) -> Table:
    """The cells, those that run first and those that are done last; no more than ``rows``."""
    table = Table(box=None, pad_edge=False)
    for name in ("cell", "state", "edits", "time"):
        table.add_column(name, justify="left" if name in ("cell", "state") else "right", overflow="fold")
    shown = sorted(record.cells, key=lambda cell: _ORDER[cell.state])
    for cell in shown[:rows]:
        state = progress.get(cell.key)
        edits = f"{state.edits}/{state.total}" if state is not None else ""
        if cell.state == "running" and state is not None and not state.edits and not state.covariance:
            edits = "covariance"
        elif cell.state == "running" and state is not None and state.edits == state.total:
            edits = "measuring"
        table.add_row(title_of(cell.coordinates), state_of(cell), edits, clock(seconds.get(cell.key, cell.seconds)))
    if len(shown) > rows:
        table.add_row(Text(f"and {len(shown) - rows} more", style="dim"), "", "", "")
    return table


def state_of(cell: CellRecord) -> Text:
    """The state in its color, with the reason of a failure."""
    text = Text(cell.state, style=_STYLES[cell.state])
    return text.append(f": {cell.reason}", style="red") if cell.state == "failed" and cell.reason else text


def headline(record: SweepRecord, elapsed: float) -> str:
    """Counts by state, and how long it has taken."""
    counts = [(state, record.count(state)) for state in ("done", "running", "waiting", "failed", "interrupted")]
    said = ", ".join(f"{count} {state}" for state, count in counts if count)
    return f"{record.name}: {said} of {counted(len(record.cells), 'cell')}, {clock(elapsed)}"


def clock(seconds: float | None) -> str:
    """Seconds as 0:09, 12:30 or 1:02:03."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
