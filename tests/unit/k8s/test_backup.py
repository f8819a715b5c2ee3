"""Copies of a run: whole while it is written, cheap the second time, good enough to go on from."""

from __future__ import annotations

import runpy
import shutil
import sqlite3
from pathlib import Path

import pytest

from errata.orchestrator.history.rebuild import BaseCheckpoint
from errata.orchestrator.history.verify import verify
from errata.orchestrator.journal import JOURNAL_FILE
from tests.helpers.k8s.objects import K8S
from tests.helpers.small_run import SmallRun, make_run

back_up = runpy.run_path(str(K8S / "base" / "backup.py"))["back_up"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return make_run(tmp_path_factory.mktemp("small"))


def test_a_backup_of_a_run_that_is_open_is_sound(run: SmallRun, tmp_path: Path) -> None:
    writer = sqlite3.connect(run.directory / JOURNAL_FILE)
    writer.execute("BEGIN IMMEDIATE")  # a commit is under way: the backup neither waits for it nor sees it
    try:
        done = back_up(run.directory, tmp_path / "backups", 3)
    finally:
        writer.rollback()
        writer.close()
    assert (tmp_path / "backups" / "latest").resolve() == done
    assert not [p for p in done.iterdir() if p.name.startswith(JOURNAL_FILE) and p.name != JOURNAL_FILE]
    report = verify(done, BaseCheckpoint(run.model))
    assert report.sound and [r.version for r in report.rebuilt] == run.versions


def test_the_second_one_links_what_is_written_once(run: SmallRun, tmp_path: Path, monkeypatch) -> None:
    stamps = iter(["20260101T000000Z", "20260102T000000Z"])
    monkeypatch.setitem(back_up.__globals__, "time", _Clock(stamps))
    first = back_up(run.directory, tmp_path / "backups", 3)
    second = back_up(run.directory, tmp_path / "backups", 3)
    delta = next(p.relative_to(first) for p in (first / "deltas").rglob("*") if p.is_file())
    assert (first / delta).stat().st_ino == (second / delta).stat().st_ino
    assert (first / JOURNAL_FILE).stat().st_ino != (second / JOURNAL_FILE).stat().st_ino
    shutil.rmtree(first)
    assert verify(second, None).sound


def test_old_ones_and_what_was_left_half_made_go(run: SmallRun, tmp_path: Path, monkeypatch) -> None:
    backups = tmp_path / "backups"
    (backups / ".making-x").mkdir(parents=True)
    stamps = [f"2026010{day}T000000Z" for day in range(1, 5)]
    monkeypatch.setitem(back_up.__globals__, "time", _Clock(iter(stamps)))
    for _ in stamps:
        back_up(run.directory, backups, 2)
    assert sorted(p.name for p in backups.iterdir()) == [*stamps[2:], "latest"]


def test_no_run_no_backup(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nothing to back up"):
        back_up(tmp_path, tmp_path / "backups", 2)
    assert not (tmp_path / "backups").exists()


class _Clock:
    """Names of backups are to the second; a test makes several in one."""

    def __init__(self, stamps) -> None:
        self._stamps = stamps

    def gmtime(self) -> None:
        return None

    def strftime(self, _form: str, _time: object) -> str:
        return next(self._stamps)
