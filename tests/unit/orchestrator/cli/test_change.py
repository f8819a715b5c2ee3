"""``errata waiting`` and ``errata withdraw``: a way to edits that wait, without a model, while nobody runs the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from errata.editing.request import EditRequest
from errata.orchestrator.journal import JOURNAL_FILE, Journal
from errata.orchestrator.journal.rows import CommitData, JournalMeta, RequestOutcome
from tests.helpers.command import Command, in_process

Says = Callable[..., tuple[int, str, str]]


@pytest.fixture
def errata(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return in_process(monkeypatch, capsys)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """One edit is applied; three wait, and the editor has died twice with two of them in hand."""
    requests = [
        EditRequest(id=f"edit-{n}", subject=f"Place {n}", prompt="{} lies in", target_new="Rome") for n in range(3)
    ]
    strange = EditRequest(id="edit-\x1b[2J", subject="巴黎\x1b[2J", prompt="{}的首都是", target_new="里昂")
    with Journal.create(tmp_path / JOURNAL_FILE, JournalMeta("run", "b" * 64, "e" * 64, {})) as journal:
        journal.accept([*requests, strange])
        journal.commit(CommitData(1, (RequestOutcome("edit-0", True),), "delta"))
        for outcome in ("died", None):
            number = journal.begin_attempt(2, ["edit-1", "edit-2"])
            if outcome == "died":
                journal.end_attempt(number, "died", "OutOfMemoryError: the node has no memory left")
    return tmp_path


def test_waiting_lists_what_waits_and_how_often_it_ended_badly(errata: Command, run: Path) -> None:
    code, out, err = errata("waiting", run)
    lines = out.splitlines()
    assert code == 0 and len(lines) == 3 and "edit-0" not in out
    assert lines[0].startswith("edit-1  Place 1 lies in -> Rome  (2 attempts ended badly, the last: the process ended)")
    assert "ended badly" not in lines[2] and "里昂" in lines[2]
    assert "\x1b" not in out, "what comes from outside does not steer the terminal"
    assert "3 edits wait" in err
    assert "3 edits wait, 1 shown" in errata("waiting", "--run", run, "--limit", 1)[2]


def test_waiting_for_machines(errata: Command, run: Path) -> None:
    code, out, _ = errata("waiting", run, "--json")
    found = json.loads(out)
    assert code == 0 and found["waiting"] == 3
    assert [row["id"] for row in found["edits"]] == ["edit-1", "edit-2", "edit-\x1b[2J"]
    assert found["edits"][0]["attempts"] == ["OutOfMemoryError: the node has no memory left", "the process ended"]
    assert found["edits"][2]["subject"] == "巴黎\x1b[2J" and found["edits"][2]["attempts"] == []


def test_withdraw_takes_back_what_waits(errata: Command, run: Path) -> None:
    code, out, _ = errata("withdraw", "edit-2", "edit-2", "--run", run, "--reason", "it kills the editor")
    assert (code, out) == (0, "edit-2 withdrawn\n")
    with Journal.open(run / JOURNAL_FILE, read_only=True) as journal:
        row = journal.request("edit-2")
        assert row is not None and (row.state, row.reason) == ("reverted", "it kills the editor")
        assert [waiting.id for waiting in journal.pending(10)] == ["edit-1", "edit-\x1b[2J"]
    assert "2 edits wait" in errata("waiting", run)[2]


@pytest.mark.parametrize(
    ("name", "told"),
    [("nobody", "there is no edit 'nobody'"), ("edit-0", "edit 'edit-0' is applied and does not wait")],
)
def test_withdraw_refuses_all_or_nothing(errata: Command, run: Path, name: str, told: str) -> None:
    code, out, err = errata("withdraw", "edit-1", name, "--run", run)
    assert (code, out) == (2, "") and err.startswith(f"errata: {told}") and err.count("\n") == 1
    assert "nothing was withdrawn" in err
    with Journal.open(run / JOURNAL_FILE, read_only=True) as journal:
        assert len(journal.pending(10)) == 3


def test_a_run_that_is_being_run_is_left_alone(errata: Command, run: Path) -> None:
    with Journal.open(run / JOURNAL_FILE):
        code, _, err = errata("withdraw", "edit-1", "--run", run)
        assert code == 2 and err.count("\n") == 1
        assert errata("waiting", run)[0] == 0, "looking is always allowed"


@pytest.mark.parametrize("command", ["waiting", "withdraw"])
def test_where_no_run_is(errata: Command, tmp_path: Path, command: str) -> None:
    code, out, err = errata(command, *(["edit-1"] if command == "withdraw" else []), "--run", tmp_path)
    assert (code, out) == (2, "") and "there is no run in" in err
