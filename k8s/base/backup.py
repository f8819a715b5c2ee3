"""Copy a run that is being written: the journal by SQLite's own online copy, then every file it may name.

The files of a run are written once, under the digest of their content, before the journal names them. So a journal
that is copied first never names a file that is not there yet, and a file that an older backup has is linked, not
copied. A backup appears under its name by one rename, and ``latest`` points to it by another.

    python backup.py RUN BACKUPS [--keep N]
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

JOURNAL = "journal.sqlite"
LATEST = "latest"
BESIDE_THE_JOURNAL = tuple(JOURNAL + end for end in ("", "-wal", "-shm", "-journal", ".lock"))
MADE_ONCE = re.compile(r"[0-9a-f]{32}")
"""How names of content-addressed files begin: one of the same name and size is the same file."""


def copy_journal(source: Path, target: Path) -> None:
    """A consistent copy of a database that may be written meanwhile."""
    origin = sqlite3.connect(f"file:{source}?mode=ro", uri=True, timeout=60)
    copy = sqlite3.connect(target)
    try:
        origin.backup(copy, pages=1024)
        copy.execute("PRAGMA journal_mode = DELETE")  # one file, which a read-only volume can open
        (answer,) = copy.execute("PRAGMA integrity_check").fetchone()
        if answer != "ok":
            raise SystemExit(f"the copy of {source} is damaged: {answer}")
    finally:
        copy.close()
        origin.close()


def copy_files(run: Path, target: Path, previous: Path | None) -> tuple[int, int]:
    """(files copied, files linked to the previous backup)."""
    copied = linked = 0
    for path in sorted(run.rglob("*")):
        relative = path.relative_to(run)
        if not path.is_file() or path.name.startswith(".") or str(relative) in BESIDE_THE_JOURNAL:
            continue
        place = target / relative
        place.parent.mkdir(parents=True, exist_ok=True)
        old = previous / relative if previous is not None and MADE_ONCE.match(path.name) else None
        try:
            if old is not None and old.is_file() and old.stat().st_size == path.stat().st_size:
                os.link(old, place)
                linked += 1
            else:
                shutil.copy2(path, place)
                copied += 1
        except FileNotFoundError:
            continue  # `errata gc` took it: nothing names it
    return copied, linked


def back_up(run: Path, backups: Path, keep: int) -> Path:
    """Make a backup, point ``latest`` to it and remove all but the newest ``keep``."""
    if not (run / JOURNAL).is_file():
        raise SystemExit(f"{run} holds no {JOURNAL}: nothing to back up")
    backups.mkdir(parents=True, exist_ok=True)
    for left in backups.glob(".making-*"):
        shutil.rmtree(left, ignore_errors=True)
    pointer = backups / LATEST
    previous = pointer.resolve() if pointer.exists() else None
    making = Path(tempfile.mkdtemp(prefix=".making-", dir=backups))
    copy_journal(run / JOURNAL, making / JOURNAL)
    copied, linked = copy_files(run, making, previous)
    os.sync()
    done = backups / time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    making.rename(done)
    fresh = backups / ".latest"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(done.name)
    fresh.replace(pointer)
    for old in sorted(path for path in backups.glob("2*Z") if path.is_dir())[:-keep]:
        shutil.rmtree(old)
    sys.stdout.write(f"{done}: {copied} files copied, {linked} linked to the backup before\n")
    return done


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("backups", type=Path)
    parser.add_argument("--keep", type=int, default=7)
    given = parser.parse_args()
    back_up(given.run, given.backups, max(given.keep, 1))
