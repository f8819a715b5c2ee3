"""Running a sweep: every cell is ``errata run`` in a process of its own, all of them on one Ray.

Processes and not tasks of the Ray: a run owns its journal, its signals and its connection to the tracking store; one
that is killed, runs out of memory or hangs takes no other with it; and what goes on after an interruption is the very
``errata run --resume`` that is there for single runs.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from errata.actors.sweep import SharedRay, shared_ray
from errata.editing.errors import UserError
from errata.editing.wording import counted
from errata.orchestrator.experiments.config import Cell, PreserveConfig, Sweep
from errata.orchestrator.experiments.plan import (
    Layout,
    Progress,
    Schedule,
    fresh_record,
    has_begun,
    is_done,
    is_preserved,
    keep_other_cells,
    note_preserved,
    progress_of,
    reason_of,
    write_cell_config,
)
from errata.orchestrator.experiments.record import CellRecord, CellState, SweepRecord, read_record, write_record
from errata.orchestrator.experiments.view import SweepView, clock
from errata.orchestrator.experiments.write import write_tables
from errata.orchestrator.run.opening import termination_as_interrupt
from errata.orchestrator.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

Command = Callable[[Path, Path, bool], list[str]]
"""(the run's file, its directory, whether to resume) -> what is executed."""

_POLL_SECONDS = 0.2
_LOOK_SECONDS = 2.0
_STOP_SECONDS = 60.0
"""A run told to stop finishes the batch under way; one that takes longer is ended."""
_PARENT_SECONDS = 30.0
"""How long the first cell waits for the tracking store to have made the sweep's own run."""


def errata_run(config: Path, directory: Path, resume: bool) -> list[str]:
    """The command of a cell: ``errata run`` by the interpreter that runs the sweep."""
    command = [sys.executable, "-m", "errata.orchestrator.cli", "run", str(config), "--output", str(directory)]
    return [*command, "--resume"] if resume else command


def errata_preserve(directory: Path, asked: PreserveConfig) -> list[str]:
    """The command that puts a sweep's benchmarks to versions of a finished run."""
    return [sys.executable, "-m", "errata.orchestrator.cli", "preserve", *asked.arguments(directory)]


def prepare(sweep: Sweep, output: Path) -> tuple[Layout, SweepRecord]:
    """Look at what the directory holds; nothing is written.

    Raises:
        UserError: the directory is not empty and holds no sweep, or one of another name.
    """
    layout = Layout(output.absolute())
    record = fresh_record(sweep, layout, sweep_id=uuid.uuid4().hex, now=datetime.now(UTC))
    if not output.exists():
        return layout, record
    if not output.is_dir():
        raise UserError(f"output {str(output)!r} is a file; give a directory")
    if not layout.record.is_file():
        if any(path.name != layout.lock.name for path in output.iterdir()):
            raise UserError(f"output directory {str(output)!r} is not empty and holds no sweep; give another one")
        return layout, record
    old = read_record(layout.record)
    if old.name != sweep.config.name:
        raise UserError(f"output directory {str(output)!r} holds the sweep {old.name!r}, not {sweep.config.name!r}")
    return layout, keep_other_cells(record, old)


def run_sweep(sweep: Sweep, output: Path, *, jobs: int, view: SweepView, command: Command = errata_run) -> SweepRecord:
    """Run every cell that is not done; a cell that fails is reported and the others go on.

    Raises:
        UserError: the directory holds something else, or another sweep is at work in it.
        KeyboardInterrupt: interrupted; the cells under way have stopped as ``errata run`` does, and the same call goes
            on with them.
    """
    layout, record = prepare(sweep, output)
    layout.root.mkdir(parents=True, exist_ok=True)
    with termination_as_interrupt(), _only_one(layout):
        write_record(layout.record, record)
        (layout.root / "sweep.yaml").write_text(sweep.to_yaml(), encoding="utf-8")
        own = {cell.key for cell in sweep.cells}
        states = {cell.key: cell.state for cell in record.cells if cell.key in own}
        todo = [cell for cell in sweep.cells if states[cell.key] != "done"]
        skipped = len(sweep.cells) - len(todo)
        view.say(f"{counted(len(sweep.cells), 'cell')}: {len(todo)} to run, {skipped} done before")
        if todo:
            _Execution(sweep, layout, record, jobs, view, command).run(todo)
        else:
            tables(layout, record, view)
    return record


def tables(layout: Layout, record: SweepRecord, view: SweepView) -> list[Path]:
    """Write the tables of what is done; without them the runs are there all the same."""
    if not record.count("done"):
        return []
    try:
        return write_tables([layout.root], layout.root)
    except UserError as error:
        view.say(f"no tables: {error}")
        return []


@contextmanager
def _only_one(layout: Layout) -> Iterator[None]:
    """Two sweeps in one directory would run the same cells."""
    with layout.lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another sweep is at work in {str(layout.root)!r}") from None
        yield


@dataclass
class _Running:
    """A cell whose process is up."""

    cell: Cell
    process: subprocess.Popen[bytes]
    stage: Literal["run", "preservation"] = "run"
    started: float = field(default_factory=time.monotonic)
    progress: Progress | None = None

    def seconds(self) -> float:
        return time.monotonic() - self.started


class _Execution:
    """One call of ``run_sweep``: its processes, and what is kept of them."""

    def __init__(
        self, sweep: Sweep, layout: Layout, record: SweepRecord, jobs: int, view: SweepView, command: Command
    ) -> None:
        self._sweep, self._layout, self._record = sweep, layout, record
        self._jobs, self._view, self._command = jobs, view, command
        self._records: dict[str, CellRecord] = {cell.key: cell for cell in record.cells}
        self._running: list[_Running] = []
        self._sections: dict[str, Any] = {}
        self._store = str(Path(sweep.config.covariances or layout.covariances).expanduser().absolute())
        self._looked = 0.0

    def run(self, todo: list[Cell]) -> None:
        """All cells to their ends."""
        first = todo[0].config
        status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
        tracker = Tracker(
            self._layout.root,
            run_key=self._record.sweep_id,
            uri=first.tracking.uri,
            experiment=first.tracking.experiment,
            run_name=self._record.name,
        )
        try:
            tracker.log_params({"sweep": {"name": self._record.name, "axes": self._record.axes}})
            need = max(cell.config.ray.local_cpus(cell.config.model_spec().ranks) for cell in todo)
            with shared_ray(first.ray, self._jobs * need) as ray:
                self._fit_jobs(ray, need)
                self._sections = self._shared_sections(todo, tracker, ray)
                self._all(Schedule(todo), tracker)
            for path in tables(self._layout, self._record, self._view):
                tracker.log_artifact(path)
            status = "FAILED" if self._record.count("failed") else "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            tracker.log_artifact(self._layout.record)
            if not tracker.close(timeout=30.0, status=status):
                self._view.say("tracking: the store did not take everything; the rest is kept and sent next time")

    def _fit_jobs(self, ray: SharedRay, need: float) -> None:
        # two runs that each hold half of the actors they need would wait for each other forever
        fits = max(1, int(ray.cpus // need))
        if fits < self._jobs:
            self._view.say(
                f"the cluster has {ray.cpus:g} CPUs and a run asks for {need:g}: {fits} at a time, not {self._jobs}"
            )
            self._jobs = fits

    def _shared_sections(self, todo: list[Cell], tracker: Tracker, ray: SharedRay) -> dict[str, Any]:
        """What is the same for all cells of this start: the Ray, and the sweep's own run in the tracking store."""
        config = todo[0].config
        until = time.monotonic() + _PARENT_SECONDS
        while tracker.run_id is None and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
        if tracker.run_id is None:
            self._view.say("tracking: the store does not answer; these cells will not be found under the sweep's run")
        address = ray.address if config.ray.address == "local" else config.ray.address
        uri = config.tracking.uri or f"sqlite:///{self._layout.root / 'mlflow.db'}"
        return {"ray": {"address": address}, "tracking": {"uri": uri, "parent": tracker.run_id}}

    # --- processes ---

    def _all(self, schedule: Schedule, tracker: Tracker) -> None:
        try:
            while schedule.waiting or self._running:
                while len(self._running) < self._jobs and (cell := schedule.next()) is not None:
                    self._start(cell)
                time.sleep(_POLL_SECONDS)
                self._look(schedule)
                for running in [r for r in self._running if r.process.poll() is not None]:
                    self._running.remove(running)
                    self._end(running, schedule)
                    done, failed = self._record.count("done"), self._record.count("failed")
                    tracker.log_metrics({"sweep/done_cells": done, "sweep/failed_cells": failed}, step=done + failed)
        except BaseException:
            self._stop_all()
            raise

    def _start(self, cell: Cell) -> None:
        directory = self._layout.run(cell)
        if is_done(directory, cell):  # it came to its end before, and what is to be asked of it did not
            self._preserve(cell)
            return
        path = write_cell_config(cell, self._layout, shared=self._store, sections=self._sections)
        directory.parent.mkdir(parents=True, exist_ok=True)
        self._spawn(cell, self._command(path, directory, has_begun(directory)), "run")
        self._set(cell, "running")
        self._view.say(f"begun: {cell.title}")

    def _preserve(self, cell: Cell) -> None:
        assert self._sweep.config.preserve is not None
        self._spawn(cell, errata_preserve(self._layout.run(cell), self._sweep.config.preserve), "preservation")
        self._set(cell, "running")
        self._view.say(f"benchmarks: {cell.title}")

    def _spawn(self, cell: Cell, command: list[str], stage: Literal["run", "preservation"]) -> None:
        log = self._layout.log(cell)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                # Ctrl-C on the terminal is for the sweep, which tells its runs itself
                start_new_session=True,
            )
        self._running.append(_Running(cell, process, stage))

    def _look(self, schedule: Schedule) -> None:
        """Read how far the runs are; now and then, it opens their journals."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        for running in self._running:
            running.progress = progress_of(self._layout.run(running.cell))
            if running.progress is not None and running.progress.covariance:
                schedule.has_covariance(running.cell)
        self._show()

    def _end(self, running: _Running, schedule: Schedule) -> None:
        cell, code, seconds = running.cell, running.process.returncode, running.seconds()
        directory = self._layout.run(cell)
        progress = progress_of(directory)
        if progress is not None and progress.covariance:
            schedule.has_covariance(cell)
        schedule.ended(cell)
        asked = self._sweep.config.preserve
        done = code == 0 and is_done(directory, cell)
        if done and asked is not None and running.stage == "preservation":
            note_preserved(directory, asked)
        if done and not is_preserved(directory, asked):
            self._preserve(cell)
        elif done:
            self._set(cell, "done", seconds=seconds)
            self._view.say(f"done: {cell.title} ({clock(seconds)})")
        else:
            reason = reason_of(self._layout.log(cell), code)
            self._set(cell, "failed", reason=reason, seconds=seconds)
            self._view.say(f"failed: {cell.title}: {reason}")
        self._show()

    def _stop_all(self) -> None:
        """Have every run stop as Ctrl-C does; a second interrupt, or a run that does not listen, ends it at once."""
        try:
            for running in self._running:
                with suppress(ProcessLookupError):
                    running.process.terminate()
            until = time.monotonic() + _STOP_SECONDS
            for running in self._running:
                with suppress(subprocess.TimeoutExpired):
                    running.process.wait(max(0.1, until - time.monotonic()))
        finally:
            for running in self._running:
                if running.process.poll() is None:
                    with suppress(ProcessLookupError):
                        os.killpg(running.process.pid, signal.SIGKILL)
                    running.process.wait()
                self._set(running.cell, "interrupted", seconds=running.seconds())
            self._running = []
            self._show()

    def _set(self, cell: Cell, state: CellState, *, reason: str | None = None, seconds: float | None = None) -> None:
        record = self._records[cell.key]
        record.state, record.reason, record.seconds = state, reason, seconds
        write_record(self._layout.record, self._record)

    def _show(self) -> None:
        self._view.update(
            self._record,
            {running.cell.key: running.progress for running in self._running},
            {running.cell.key: running.seconds() for running in self._running},
        )
