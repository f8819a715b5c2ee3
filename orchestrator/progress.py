"""Progress of long work: bars on a terminal; elsewhere every 20 seconds a line with what is done, how fast and what is
left."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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

LOG_EVERY_SECONDS = 20.0
"""Without a terminal, how often a stage that is under way says so."""
_BEAT_SECONDS = 1.0


@dataclass
class _Stage:
    """What a log knows of a stage."""

    begun: float
    """Clock reading at its first update, in seconds; rates are measured from there."""
    first: float
    """How much was done by then."""
    done: float
    total: float
    note: str
    alive: bool
    said: float | None = None
    """Clock reading when it was last logged."""
    changed: bool = True
    """Whether anything was updated since."""

    def line(self, name: str, now: float) -> str:
        """``edits: 30 of 120, 0.9/s, 1 min 40 s left (version 12ab)``."""
        parts = [f"{name}: {self.done:.0f} of {self.total:.0f}"]
        gained, spent = self.done - self.first, now - self.begun
        if gained > 0 and spent > 0:
            rate = gained / spent
            parts.append(f"{rate:.2g}/s" if rate >= 1 else f"{60 * rate:.2g}/min")
            if self.done < self.total:
                parts.append(f"{duration((self.total - self.done) / rate)} left")
        elif self.done < self.total and spent >= 1:
            parts.append(f"{duration(spent)} so far")
        return ", ".join(parts) + (f" ({self.note})" if self.note else "")


def duration(seconds: float) -> str:
    """``40 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Display:
    """Named stages with a total, a count and a note; safe to call from several threads.

    While somebody is at work a log never stays silent for longer than `LOG_EVERY_SECONDS`: where no stage has got on it
    says how far those under way are, and where there is none, what is being done for how long. Somebody is at work
    within the context of a display that is not ``quiet``, and as `working` says.
    """

    def __init__(
        self, *, quiet: bool = False, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """
        Args:
            quiet: no bars, and work comes and goes, as in a service.
            clock: gives seconds, for tests.
        """
        self._quiet = quiet
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
        self._stages: dict[str, _Stage] = {}
        self._lock = threading.Lock()
        self._clock = clock
        self._at_work = False
        self._doing = "at work"
        self._since = self._spoke = clock()
        """Clock readings: when what is being done began, and of the last line."""
        self._ended = threading.Event()
        self._beating: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        else:
            self._at_work, self._since = not self._quiet, self._clock()
            self._spoke = self._since
            self._beating = threading.Thread(target=self._beat, name="progress", daemon=True)
            self._beating.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._at_work = False
        self._ended.set()
        if self._beating is not None:
            self._beating.join()

    def say(self, message: str) -> None:
        """One line about what happens now."""
        if self._bars is not None:
            self._bars.console.print(message, highlight=False, markup=False)
        else:
            self._spoke = self._clock()
            logger.info("%s", message)

    def begin(self, what: str) -> None:
        """Say what begins and cannot be counted, such as loading; a log repeats it with the time it takes."""
        with self._lock:
            self._doing, self._since = what, self._clock()
        self.say(what)

    @contextmanager
    def working(self, at_work: bool = True) -> Iterator[None]:
        """Within the context somebody is at work, or nobody: a stream has brought nothing, so nothing is to be said."""
        before, self._at_work = self._at_work, at_work
        self._spoke = self._since = self._clock()
        try:
            yield
        finally:
            self._at_work = before
            self._spoke = self._since = self._clock()

    def warn(self, message: str) -> None:
        """One line about what somebody should look at."""
        if self._bars is not None:
            self._bars.console.print(f"warning: {message}", highlight=False, markup=False, style="yellow")
        else:
            self._spoke = self._clock()
            logger.warning("%s", message)

    def update(self, stage: str, done: float, total: float, note: str = "", *, alive: bool = False) -> None:
        """Set how far a stage is; the stage appears with its first call, and ends when all of it is done.

        Args:
            alive: work goes on although nothing may be counted for a long time; the log says so now and then.
        """
        if self._bars is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total, note=note)
            self._bars.update(self._tasks[stage], completed=min(done, total), total=total, note=note)
            with self._lock:
                self._stages[stage] = _Stage(self._clock(), done, done, total, note, alive)
            return
        now = self._clock()
        with self._lock:
            known = self._stages.get(stage)
            if known is None or known.done >= known.total > done or done < known.first:
                known = self._stages[stage] = _Stage(now, done, done, total, note, alive)
            self._doing, self._since = "at work", now
            known.done, known.total, known.note, known.alive, known.changed = done, total, note, alive, True
            if done >= total or known.said is None or now - known.said >= LOG_EVERY_SECONDS:
                self._log(stage, known, now)

    def under_way(self) -> list[dict[str, float | str]]:
        """Stages that are not done: ``name``, ``done``, ``total`` and ``note`` of each. Where there is none and
        somebody is at work, what is being done, with a total of 0 and the time it takes so far as its note."""
        with self._lock:
            found: list[dict[str, float | str]] = [
                {"name": name, "done": stage.done, "total": stage.total, "note": stage.note}
                for name, stage in self._stages.items()
                if stage.done < stage.total
            ]
            if not found and self._at_work:
                so_far = f"{duration(self._clock() - self._since)} so far"
                found.append({"name": self._doing, "done": 0.0, "total": 0.0, "note": so_far})
            return found

    def speak(self) -> None:
        """Log every stage that is under way and has something to say; called every second off a terminal."""
        now = self._clock()
        with self._lock:
            for name, stage in self._stages.items():
                due = stage.said is None or now - stage.said >= LOG_EVERY_SECONDS
                if stage.done < stage.total and due and (stage.changed or stage.alive):
                    self._log(name, stage, now)
            if not self._at_work or now - self._spoke < LOG_EVERY_SECONDS:
                return
            open_stages = [(name, stage) for name, stage in self._stages.items() if stage.done < stage.total]
            for name, stage in open_stages:
                self._log(name, stage, now)
            if not open_stages:
                self._spoke = now
                logger.info("%s, %s so far", self._doing, duration(now - self._since))

    def _log(self, name: str, stage: _Stage, now: float) -> None:
        stage.said, stage.changed, self._spoke = now, False, now
        logger.info("%s", stage.line(name, now))

    def _beat(self) -> None:
        while not self._ended.wait(_BEAT_SECONDS):
            self.speak()


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
