"""A sweep's processes: run, skipped, failed, stopped. What they execute is a shell that leaves a run's files behind."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import errata.orchestrator.experiments.execute as execute
from errata.actors.sweep import SharedRay
from errata.editing.errors import UserError
from errata.orchestrator.experiments.config import Sweep, load_sweep
from errata.orchestrator.experiments.plan import Layout, absolute, fresh_record
from errata.orchestrator.experiments.record import read_record
from errata.orchestrator.experiments.view import SweepView, cells_table, clock, headline
from errata.orchestrator.report.summary import ArmMetrics, ModelName, Summary, write_facts, write_summary
from errata.orchestrator.tracking.tracker import NullTracker
from tests.unit.orchestrator.experiments.conftest import write_sweep

NOW = datetime(2026, 1, 2, tzinfo=UTC)


class Tracked(NullTracker):
    """Tracking that notes what it is given."""

    run_id = "parent"
    metrics: list[dict[str, float]]
    statuses: list[str]

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def log_metrics(self, metrics, step):
        Tracked.metrics.append(dict(metrics))

    def close(self, timeout=30.0, status="FINISHED"):
        Tracked.statuses.append(status)
        return True


@pytest.fixture(autouse=True)
def no_ray_and_no_mlflow(monkeypatch):
    @contextmanager
    def shared(config, cpus):
        yield SharedRay("ray:1", cpus)

    Tracked.metrics, Tracked.statuses = [], []
    monkeypatch.setattr(execute, "shared_ray", shared)
    monkeypatch.setattr(execute, "Tracker", Tracked)


@pytest.fixture
def finished(tmp_path: Path, sweep: Sweep) -> Path:
    """What each cell's run leaves behind when it ends, by the name of its directory."""
    root = tmp_path / "finished"
    for number, cell in enumerate(sweep.cells):
        directory = root / Layout(tmp_path).run(cell).name
        directory.mkdir(parents=True)
        config = absolute(cell.config)
        write_summary(
            directory / "summary.json",
            Summary(
                name=config.name,
                errata_version="0",
                started_at=NOW,
                finished_at=NOW,
                config_digest=config.digest,
                model=ModelName(name="nowhere", digest="d"),
                editor=config.editor.type,
                edits_applied=1,
                edits_failed=0,
                batches=1,
                refreshes=0,
                version="v",
                wall_seconds=1.0,
                arms={"base": ArmMetrics(reliability=0.0), "edited": ArmMetrics(reliability=number / 10)},
            ),
        )
        (directory / "resolved.yaml").write_text(config.to_yaml())
        write_facts(directory / "facts.jsonl", [])
    return root


def shell(finished: Path, special: dict[str, str] | None = None):
    """A command that puts a cell's files into place, or does something else for the cells named."""

    def command(config: Path, directory: Path, resume: bool) -> list[str]:
        default = f"cp -r {finished / directory.name} {directory}"
        return ["sh", "-c", (special or {}).get(directory.name, default)]

    return command


def run(sweep: Sweep, output: Path, command, jobs: int = 1):
    text = StringIO()
    view = SweepView(Console(file=text))
    return execute.run_sweep(sweep, output, jobs=jobs, view=view, command=command)


def name_of(sweep: Sweep, number: int) -> str:
    return Layout(Path()).run(sweep.cells[number]).name


def test_every_cell_runs_and_the_tables_are_written(tmp_path, sweep, finished):
    record = run(sweep, tmp_path / "out", shell(finished), jobs=2)
    assert [cell.state for cell in record.cells] == ["done"] * 4
    assert read_record(tmp_path / "out" / "sweep.json") == record
    assert Tracked.metrics[-1] == {"sweep/done_cells": 4, "sweep/failed_cells": 0} and Tracked.statuses == ["FINISHED"]
    table = (tmp_path / "out" / "comparison.md").read_text()
    assert "| MEMIT | 5.0 ± 5.0 |" in table and "| AlphaEdit | **25.0 ± 5.0** |" in table
    assert (tmp_path / "out" / "comparison.html").is_file() and (tmp_path / "out" / "comparison.tex").is_file()


def test_a_cell_that_fails_is_reported_and_the_others_go_on(tmp_path, sweep, finished):
    special = {name_of(sweep, 1): "echo 'errata: no such model' >&2; exit 2", name_of(sweep, 2): "true"}
    record = run(sweep, tmp_path / "out", shell(finished, special))
    assert [cell.state for cell in record.cells] == ["done", "failed", "failed", "done"]
    assert record.cells[1].reason == "no such model"
    assert record.cells[2].reason == "exit code 0"  # it ended well and left nothing behind
    assert Tracked.statuses == ["FAILED"]


def test_what_is_done_is_skipped_and_what_failed_is_tried_again(tmp_path, sweep, finished):
    run(sweep, tmp_path / "out", shell(finished, {name_of(sweep, 3): "exit 1"}))
    ran = []

    def again(config: Path, directory: Path, resume: bool) -> list[str]:
        ran.append(directory.name)
        return ["cp", "-r", str(finished / directory.name), str(directory)]

    record = run(sweep, tmp_path / "out", again)
    assert ran == [name_of(sweep, 3)] and [cell.state for cell in record.cells] == ["done"] * 4
    run(sweep, tmp_path / "out", again)
    assert len(ran) == 1 and Tracked.statuses == ["FAILED", "FINISHED"]  # nothing to run: not even a Ray is started


def test_a_directory_whose_files_do_not_belong_together_is_not_done(tmp_path, sweep, finished):
    layout = Layout(tmp_path)
    for cell in sweep.cells[:2]:
        shutil.copytree(finished / layout.run(cell).name, layout.run(cell))
    (layout.run(sweep.cells[1]) / "resolved.yaml").write_text("seed: 5\n")
    states = [cell.state for cell in fresh_record(sweep, layout, sweep_id="x", now=NOW).cells]
    assert states == ["done", "waiting", "waiting", "waiting"]


def test_interrupted_the_runs_are_told_to_stop_and_the_next_start_goes_on(tmp_path, sweep, finished):
    stopped = tmp_path / "stopped"
    waits = f"trap 'touch {stopped}; exit 130' TERM; touch {tmp_path / 'up'}; while :; do sleep 0.05; done"

    def interrupt() -> None:
        for _ in range(200):
            if (tmp_path / "up").exists():
                break
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)  # as Ctrl-C, which a process in the background never hears

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run(sweep, tmp_path / "out", shell(finished, {name_of(sweep, 1): waits}))
    record = read_record(tmp_path / "out" / "sweep.json")
    assert stopped.exists()
    assert [cell.state for cell in record.cells] == ["done", "interrupted", "waiting", "waiting"]
    assert Tracked.statuses == ["KILLED"]
    assert [cell.state for cell in run(sweep, tmp_path / "out", shell(finished)).cells] == ["done"] * 4


def test_a_run_that_does_not_listen_is_ended(tmp_path, sweep, finished, monkeypatch):
    monkeypatch.setattr(execute, "_STOP_SECONDS", 0.2)
    deaf = f"trap '' TERM; echo $$ > {tmp_path / 'pid'}; while :; do sleep 0.05; done"

    def broken(self, schedule):
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip():
            raise RuntimeError("ours")

    monkeypatch.setattr(execute._Execution, "_look", broken)
    with pytest.raises(RuntimeError, match="ours"):
        run(sweep, tmp_path / "out", shell(finished, {name_of(sweep, 0): deaf}))
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_no_more_runs_at_a_time_than_the_cluster_has_room_for(tmp_path, sweep, finished, monkeypatch):
    @contextmanager
    def small(config, cpus):
        yield SharedRay("ray:1", 9.0)  # a run asks for 6.5

    monkeypatch.setattr(execute, "shared_ray", small)
    most = []
    start = execute._Execution._start

    def counted(self, cell):
        start(self, cell)
        most.append(len(self._running))

    monkeypatch.setattr(execute._Execution, "_start", counted)
    run(sweep, tmp_path / "out", shell(finished), jobs=3)
    assert max(most) == 1


def test_a_directory_that_holds_something_else_is_refused(tmp_path, sweep, finished):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no sweep"):
        run(sweep, tmp_path / "full", shell(finished))
    run(sweep, tmp_path / "out", shell(finished))
    other = Sweep(sweep.config.model_copy(update={"name": "other"}), sweep.cells)
    with pytest.raises(UserError, match="holds the sweep 'demo', not 'other'"):
        run(other, tmp_path / "out", shell(finished))
    with pytest.raises(UserError, match="is a file"):
        run(sweep, tmp_path / "out" / "sweep.json", shell(finished))


def test_two_sweeps_in_one_directory_are_refused(tmp_path, sweep, finished):
    layout = Layout(tmp_path / "out")
    layout.root.mkdir()
    with execute._only_one(layout), pytest.raises(UserError, match="another sweep is at work"):
        run(sweep, tmp_path / "out", shell(finished))


def test_the_table_shows_what_runs_first_and_counts_what_does_not_fit(tmp_path, sweep):
    record = fresh_record(sweep, Layout(tmp_path), sweep_id="x", now=NOW)
    record.cells[0].state = "done"
    record.cells[2].state, record.cells[2].reason = "failed", "odd"
    record.cells[3].state = "running"
    text = StringIO()
    Console(file=text, width=100).print(cells_table(record, {}, {record.cells[3].key: 75.0}, rows=2))
    lines = [line.split() for line in text.getvalue().splitlines()]
    assert lines[1][:4] == ["AlphaEdit,", "seed", "1", "running"] and lines[1][-1] == "1:15"
    assert lines[2][:5] == ["AlphaEdit,", "seed", "0", "failed:", "odd"]
    assert lines[3] == ["and", "2", "more"]
    assert headline(record, 3700) == "demo: 1 done, 1 running, 1 waiting, 1 failed of 4 cells, 1:01:40"
    assert clock(None) == ""


def test_benchmarks_follow_each_run_and_only_they_are_done_again(tmp_path, finished, monkeypatch):
    """A run that came to its end and whose benchmarks did not is not run again."""
    asked = {"tasks": ["rte"], "versions": ["v0", "timeline", "head"]}
    sweep = load_sweep(str(write_sweep(tmp_path, preserve=asked)))
    ran, preserved, broken = [], [], {name_of(sweep, 1)}

    def command(config: Path, directory: Path, resume: bool) -> list[str]:
        ran.append(directory.name)
        return ["cp", "-r", str(finished / directory.name), str(directory)]

    def benchmarks(directory: Path, config) -> list[str]:
        assert directory.is_dir() and config.arguments(directory)[:3] == ["v0", "timeline", "head"]
        preserved.append(directory.name)
        return ["sh", "-c", "echo 'errata: no data' >&2; exit 2" if directory.name in broken else "true"]

    monkeypatch.setattr(execute, "errata_preserve", benchmarks)
    record = run(sweep, tmp_path / "out", command, jobs=2)
    assert [cell.state for cell in record.cells] == ["done", "failed", "done", "done"]
    assert record.cells[1].reason == "no data" and len(ran) == len(preserved) == 4
    broken.clear()
    record = run(sweep, tmp_path / "out", command)
    assert [cell.state for cell in record.cells] == ["done"] * 4
    assert len(ran) == 4 and preserved[4:] == [name_of(sweep, 1)]
    run(sweep, tmp_path / "out", command)
    assert len(preserved) == 5
