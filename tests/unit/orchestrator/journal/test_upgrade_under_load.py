"""An upgrade rehearsed on recorded journals: clients go on sending while the process is killed, migrated and started.

A journal of every schema that a release has had is recorded under tests/assets/journals. The process that takes in
requests is killed with signal 9 again and again; clients send again what was not answered, as they are told to.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from errata.orchestrator.history.log import History
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.schema import MIGRATIONS, schema_of
from tests.helpers.journals import RECORDED, restored

JOURNALS = sorted(RECORDED.glob("*.sql"))
TAKER = dedent("""
    import json, sys
    from pathlib import Path
    from errata.editing.request import EditRequest
    from errata.orchestrator.journal import Journal
    with Journal.open(Path(sys.argv[1])) as journal:
        print("open", flush=True)
        for line in sys.stdin:
            (answer,) = journal.accept([EditRequest.model_validate_json(line)])
            print(json.dumps([json.loads(line)["id"], answer.duplicate, answer.refused]), flush=True)
""")
SENT = 60


def rows(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """What the release before had written: requests by id, and commits."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return {
            "requests": connection.execute(
                "SELECT id, payload_digest, state, applied_in FROM requests ORDER BY seq"
            ).fetchall(),
            "commits": connection.execute("SELECT sequence, version, delta FROM commits ORDER BY sequence").fetchall(),
        }
    finally:
        connection.close()


def test_every_schema_of_a_release_is_recorded(tmp_path: Path) -> None:
    found = {schema_of(restored(recorded, tmp_path / recorded.stem)) for recorded in JOURNALS}
    # the newest is this release's own, which every other test writes
    assert found >= set(range(1, len(MIGRATIONS)))


@pytest.mark.parametrize("recorded", JOURNALS, ids=lambda path: path.stem)
def test_an_upgrade_under_load_loses_and_doubles_nothing(recorded: Path, tmp_path: Path) -> None:
    path, random_ = restored(recorded, tmp_path / "journal.sqlite"), random.Random(11)
    before = rows(path)
    known = [
        json.loads(payload)
        for (payload,) in sqlite3.connect(path).execute("SELECT payload FROM requests WHERE state != 'rejected'")
    ]
    new = [{"id": f"new-{n}", "subject": f"S{n}", "prompt": "{} is", "target_new": "x"} for n in range(SENT)]
    # clients send again what the release before has answered, too: they cannot know that it was
    waiting = [*known, *new]
    random_.shuffle(waiting)
    answers: dict[str, list[Any]] = {}
    deaths = 0
    until = time.monotonic() + 240
    while waiting:
        assert time.monotonic() < until, f"{len(waiting)} unanswered after {deaths} deaths"
        process = subprocess.Popen(
            [sys.executable, "-c", TAKER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])},
        )
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "open\n"
        last = random_.randrange(15, 45)
        while waiting:
            process.stdin.write(json.dumps(waiting[0]) + "\n")
            process.stdin.flush()
            last -= 1
            if last == 0:
                break  # sent, and killed before, while or after it is taken down
            identity, *said = json.loads(process.stdout.readline())
            answers.setdefault(identity, []).append(said)
            waiting.pop(0)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        deaths += 1
    assert deaths >= 2 and all(said[1] is None for given in answers.values() for said in given)
    assert schema_of(path) == len(MIGRATIONS)
    after = rows(path)
    assert after["commits"] == before["commits"]
    assert after["requests"][: len(before["requests"])] == before["requests"]
    added = [row[0] for row in after["requests"][len(before["requests"]) :]]
    assert sorted(added) == sorted(request["id"] for request in new), "0 lost, 0 doubled"
    assert all(given[0][0] for identity, given in answers.items() if not identity.startswith("new-")), "known"
    with Journal.open(path, read_only=True) as journal:
        history = History(journal)
        assert history.show(before["requests"][0][0]) is not None
        assert [row.id for row in journal.requests("accepted")][-SENT:] == added
