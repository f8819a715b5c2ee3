"""Progress of long work: bars on a terminal, a line per stage in a log."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

logger = logging.getLogger(__name__)

_LOG_EVERY_SECONDS = 60.0


class Display:
    """Named stages with a total, a count and a note; safe to call from several threads."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self.console = console if console is not None else Console(stderr=True)
        self._bars: Progress | None = None
        if self.console.is_terminal and not quiet:
            self._bars = Progress(
                TextColumn("{task.description:<22}"),
                BarColumn(bar_width=28),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self.console,
                transient=False,
            )
        self._tasks: dict[str, TaskID] = {}
        self._logged: dict[str, float] = {}

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def say(self, message: str) -> None:
        """One line about what happens now."""
        if self._bars is not None:
            self._bars.console.print(message, highlight=False, markup=False)
        else:
            logger.info("%s", message)

    def warn(self, message: str) -> None:
        """One line about what somebody should look at."""
        if self._bars is not None:
            self._bars.console.print(f"warning: {message}", highlight=False, markup=False, style="yellow")
        else:
            logger.warning("%s", message)

    def update(self, stage: str, done: float, total: float, note: str = "") -> None:
        """Set how far a stage is; the stage appears with its first call."""
        if self._bars is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total, note=note)
            self._bars.update(self._tasks[stage], completed=min(done, total), total=total, note=note)
            return
        now = time.monotonic()
        if done >= total or now - self._logged.get(stage, now - _LOG_EVERY_SECONDS) >= _LOG_EVERY_SECONDS:
            self._logged[stage] = now
            logger.info("%s: %d of %d %s", stage, int(done), int(total), note)


class StandardError(logging.StreamHandler):
    """Writes to what ``sys.stderr`` is when a line comes: while bars are drawn, lines go above them."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def configure_logging(verbose: bool) -> None:
    """Log lines to standard error; called by the command line only."""
    logging.basicConfig(
        handlers=[StandardError()],
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
    )
    for noisy in (
        "httpx",
        "urllib3",
        "filelock",
        "alembic",
        "mlflow",
        "matplotlib",
        "sentence_transformers",
        "git",
    ):
        logging.getLogger(noisy).setLevel(logging.WARNING)
