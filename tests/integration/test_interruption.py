"""The command itself, interrupted from outside: signals, SIGKILL, crashes at commit points; then ``--resume``."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

from errata.editing.errors import UserError
from errata.orchestrator.config.loading import build_config
from errata.orchestrator.history.rebuild import BaseCheckpoint, weights_digest
from errata.orchestrator.history.receipts import open_store
from errata.orchestrator.history.snapshots import load_snapshot, snapshots
from errata.orchestrator.history.verify import verify
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.fail_points import (
    DROPPING_POINTS,
    ENVIRONMENT_VARIABLE,
    EXIT_CODE,
    FAIL_POINTS,
    REPAIR_POINTS,
    RETRACTION_POINTS,
    REVERT_POINTS,
)
from errata.orchestrator.report.summary import read_summary
from tests.integration.harness import Outcome, go, outcome, settings

ROOT = Path(__file__).parents[2]
PATIENCE = 240.0


@dataclass(frozen=True)
class Setting:
    """A configuration whose edits take seconds, so that a signal meets a run in the middle of them."""

    config: Path
    model: Path
    expected: Outcome
    weights: str
    """Digest of the final weights, as the undisturbed editor held them."""


@pytest.fixture(scope="module")
def setting(tiny_checkpoint: Path, stream: Path, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    directory = tmp_path_factory.mktemp("interruption")
    values = {"editor": {"values": {"steps": 25, "lr": 0.01}}, "batching": {"size": 1}, "snapshots": {"every": 4}}
    data = settings(tiny_checkpoint, stream, **values)
    path = directory / "config.yaml"
    path.write_text(yaml.safe_dump(data))
    weights = go(build_config(data), directory / "plain")
    return Setting(path, tiny_checkpoint, outcome(directory / "plain"), weights_digest(weights))


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """A shell's background job ignores SIGINT and what it starts inherits that; a command on a terminal does not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def start(setting: Setting, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts the command as a shell would: in a process group of its own."""

    def call(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        with (tmp_path / "stderr.txt").open("w") as errors:
            return subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "errata.orchestrator.cli",
                    "run",
                    str(setting.config),
                    "--output",
                    "run",
                    *arguments,
                ],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
                stdout=subprocess.DEVNULL,
                stderr=errors,
                text=True,
                start_new_session=True,
            )

    return call


def edits(directory: Path) -> int:
    """Edits in the journal; -1 where there is none yet."""
    try:
        with Journal.open(directory / "journal.sqlite", read_only=True) as journal:
            return journal.head().edits
    except (UserError, OSError):
        return -1


def wait_for(run: subprocess.Popen[str], directory: Path, count: int) -> list[psutil.Process]:
    """Wait until that many edits are committed; everything that the run has started."""
    deadline = time.monotonic() + PATIENCE
    while edits(directory) < count:
        assert run.poll() is None, (directory.parent / "stderr.txt").read_text()[-2000:]
        assert time.monotonic() < deadline, f"{edits(directory)} of {count} edits"
        time.sleep(0.02)
    return psutil.Process(run.pid).children(recursive=True)


def gone(processes: list[psutil.Process], *, killed: bool = False) -> None:
    """Every one of them has ended, or does within moments.

    After a SIGKILL nobody is left to end Ray's two agents, which hold nothing and notice within two minutes.
    """
    assert processes
    _, alive = psutil.wait_procs(processes, timeout=5 if killed else 30)
    agents = [p for p in alive if killed and p.name().startswith(("ray::Dashboard", "ray::RuntimeEnv"))]
    for agent in agents:
        agent.kill()
    left = [process for process in psutil.wait_procs(processes, timeout=120)[1] if process.status() != "zombie"]
    assert not left, [" ".join(process.cmdline())[:120] for process in left]


def live_weights(directory: Path) -> str:
    """Digest of what the run's editor held after its last commit: the snapshot that it took of itself."""
    with Journal.open(directory / "journal.sqlite", read_only=True) as journal:
        row = snapshots(journal)[-1]
        assert row.version == journal.head().digest
        return weights_digest(dict(load_snapshot(open_store(directory), row).weights))


def complete(directory: Path, setting: Setting) -> None:
    """The run has come to what it comes to undisturbed, bit for bit; no request is lost or applied twice."""
    assert outcome(directory) == setting.expected
    report = verify(directory, BaseCheckpoint(setting.model))
    assert report.sound, report.problems
    assert report.rebuilt[-1].weights == setting.weights == live_weights(directory)
    assert not report.leftovers
    assert set(setting.expected.applications.values()) == {1}
    summary = read_summary(directory / "summary.json")
    assert summary.edits_applied == 12 and summary.version == setting.expected.version
    assert tuple(point.edits for point in summary.timeline) == setting.expected.timeline == (0, 6, 12)
    assert [(event.triggered_at, event.swapped_at) for event in summary.refresh_events] == [(6, 9)]


def resumed_to_the_end(start: Callable[..., subprocess.Popen[str]], setting: Setting, directory: Path) -> None:
    """Started again, the run comes to what it comes to undisturbed."""
    run = start("--resume")
    assert run.wait(PATIENCE) == 0, (directory.parent / "stderr.txt").read_text()[-2000:]
    complete(directory, setting)


@pytest.mark.timeout(600)
def test_ctrl_c_and_then_sigkill_and_then_the_end(start, setting, tmp_path):
    directory = tmp_path / "run"
    run = start()
    started = wait_for(run, directory, 2)
    os.killpg(run.pid, signal.SIGINT)  # a terminal tells the whole group
    assert run.wait(120) == 130
    errors = (tmp_path / "stderr.txt").read_text()
    assert f"Go on with: errata run {setting.config} --output run --resume" in errors
    assert "Traceback" not in errors
    gone(started)
    kept = edits(directory)
    assert 2 <= kept < 12

    run = start("--resume")
    started = wait_for(run, directory, 8)  # the refresh is under way, or about to take effect
    run.kill()
    run.wait(60)
    gone(started, killed=True)
    assert kept < edits(directory) < 12

    resumed_to_the_end(start, setting, directory)


# Which visit of a point is taken: the middle of the run for what every batch passes, else the refresh's own.
VISITS = {
    "accept_in_transaction": 1,
    "after_accept": 1,
    "swap_in_transaction": 2,
    "after_swap": 2,
    "after_covariance_stored": 2,
    "after_refresh_started": 1,
    "after_evaluation": 2,
    "after_snapshot_stored": 2,
    "artifact_written": 15,
    "artifact_renamed": 16,
}


ELSEWHERE = {*REVERT_POINTS, *RETRACTION_POINTS, *REPAIR_POINTS, *DROPPING_POINTS}
"""Points that a run over a stream does not pass."""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("point", [point for point in FAIL_POINTS if point not in ELSEWHERE])
def test_a_process_that_vanishes_at_a_commit_point(point, start, setting, tmp_path):
    run = start(**{ENVIRONMENT_VARIABLE: f"{point}:exit:{VISITS.get(point, 7)}"})
    assert run.wait(PATIENCE) == EXIT_CODE, (tmp_path / "stderr.txt").read_text()[-2000:]
    resumed_to_the_end(start, setting, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sigterm_ends_it_cleanly(start, setting, tmp_path):
    directory = tmp_path / "run"
    run = start()
    started = wait_for(run, directory, 4)
    run.terminate()
    assert run.wait(120) == 130
    gone(started)
    resumed_to_the_end(start, setting, directory)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_whole_process_tree_vanishes(start, setting, tmp_path):
    directory = tmp_path / "run"
    run = start()
    tree = wait_for(run, directory, 3)
    for process in (psutil.Process(run.pid), *tree):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    run.wait(60)
    psutil.wait_procs(tree, timeout=30)
    assert 3 <= edits(directory) < 12
    resumed_to_the_end(start, setting, directory)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_actors_that_vanish_one_after_the_other(start, setting, tmp_path):
    directory = tmp_path / "run"
    run = start()
    # the editor in the middle of a batch; the memory; whoever generates and evaluates; the editor of before's stead
    for count, kind in ((2, "EditorActor"), (4, "RetrievalActor"), (6, "SharedActor"), (8, "EditorActor")):
        tree = wait_for(run, directory, count)
        victims = [p for p in tree if p.is_running() and (p.cmdline() or [""])[0].startswith(f"ray::{kind}")]
        assert victims, f"no {kind} among the processes at {count} edits"
        victims[-1].kill()
    assert run.wait(PATIENCE) == 0, (tmp_path / "stderr.txt").read_text()[-2000:]
    complete(directory, setting)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_disk_that_is_full_in_the_middle(start, setting, tmp_path):
    directory = tmp_path / "run"
    run = start()
    started = wait_for(run, directory, 4)
    psutil.Process(run.pid).rlimit(psutil.RLIMIT_FSIZE, (4096, 4096))  # no file of it may grow from here on
    assert run.wait(120) == 1
    errors = (tmp_path / "stderr.txt").read_text()
    assert "errata: error: cannot write: " in errors and "Traceback" not in errors
    gone(started)
    assert 4 <= edits(directory) < 12
    resumed_to_the_end(start, setting, directory)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_torn_delta_is_named_and_put_back_it_goes_on(start, setting, tmp_path):
    directory = tmp_path / "run"
    run = start(**{ENVIRONMENT_VARIABLE: "after_commit:exit:3"})  # before the first snapshot
    assert run.wait(PATIENCE) == EXIT_CODE
    with Journal.open(directory / "journal.sqlite", read_only=True) as journal:
        delta = journal.versions()[2].delta
    (file,) = (directory / "deltas").glob(f"{delta}*")
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    run = start("--resume")
    assert run.wait(PATIENCE) == 1
    errors = (tmp_path / "stderr.txt").read_text()
    assert str(delta)[:12] in errors and "Traceback" not in errors
    assert edits(directory) == 3
    file.write_bytes(whole)
    resumed_to_the_end(start, setting, directory)
