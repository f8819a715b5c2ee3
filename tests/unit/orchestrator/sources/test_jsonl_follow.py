"""A followed file: nothing is lost and nothing doubled by restarts, half lines, rotation or truncation."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from errata.editing.errors import UserError
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.fail_points import InjectedCrash, raise_once
from errata.orchestrator.journal.rows import JournalMeta
from errata.orchestrator.sources import Pump, take_in
from errata.orchestrator.sources import jsonl_follow as follow
from errata.orchestrator.sources.jsonl_follow import FollowedFile, open_followed


def line(number: int, **changes: Any) -> str:
    return json.dumps({"subject": f"S{number}", "prompt": "{} is", "target_new": "x", **changes}) + "\n"


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.create(tmp_path / "journal.sqlite", JournalMeta("run", "b" * 64, "e" * 64, {})) as journal:
        yield journal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in" / "edits.jsonl"


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def drain(source: FollowedFile, journal: Journal) -> None:
    while take_in(journal, source, 0.0):
        pass


def subjects(journal: Journal) -> list[str]:
    return [row.request.subject for row in journal.requests("accepted")]


def rejected(journal: Journal) -> dict[str, str | None]:
    return {row.id.removeprefix("record:"): row.reason for row in journal.requests("rejected")}


def test_lines_arrive_as_they_are_written_and_a_half_one_is_waited_for(journal: Journal, path: Path) -> None:
    source = open_followed(path, journal)
    drain(source, journal)
    assert subjects(journal) == [], "the file is not there yet"
    append(path, line(1) + "\n   \n" + line(2) + line(3)[:10])
    drain(source, journal)
    assert subjects(journal) == ["S1", "S2"]
    append(path, line(3)[10:])
    drain(source, journal)
    assert subjects(journal) == ["S1", "S2", "S3"] and not rejected(journal)


def test_a_restart_goes_on_at_its_offset(journal: Journal, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    append(path, line(1) + line(2) + line(3)[:7])
    drain(open_followed(path, journal), journal)
    append(path, line(3)[7:] + line(4))
    with caplog.at_level(logging.INFO):
        source = open_followed(path, journal)
        first = source.read(0.0)
    assert [d.position for d in first] == ["edits.jsonl:3", "edits.jsonl:4"] and not caplog.records


def test_a_crash_between_journal_and_place_reads_again_and_changes_nothing(journal: Journal, path: Path) -> None:
    append(path, line(1) + "no json\n" + line(2))
    with raise_once("after_accept"), pytest.raises(InjectedCrash):
        take_in(journal, open_followed(path, journal), 0.0)
    assert subjects(journal) == ["S1", "S2"] and not journal.events(follow.EVENT)
    taken = take_in(journal, open_followed(path, journal), 0.0)
    assert (taken.accepted, taken.duplicates, taken.rejected) == (0, 2, 1)
    drain(open_followed(path, journal), journal)
    assert subjects(journal) == ["S1", "S2"] and list(rejected(journal)) == ["edits.jsonl:2"]


def test_what_is_no_request_is_kept_with_its_place_and_the_rest_goes_on(journal: Journal, path: Path) -> None:
    append(path, line(1, id="a") + "{\n" + "[1]\n" + '{"subject": "S"}\n' + line(2, id="a") + line(3, target_new=" "))
    append(path, line(4).replace("S4", "\\ud800") + line(5))
    drain(open_followed(path, journal), journal)
    assert subjects(journal) == ["S1", "S5"]
    reasons = rejected(journal)
    assert sorted(reasons) == [f"edits.jsonl:{number}" for number in range(2, 8)]
    assert "malformed JSON" in str(reasons["edits.jsonl:2"])
    assert reasons["edits.jsonl:4"] == "no layout fits a record with the keys ['subject']"
    assert "was used before" in str(reasons["edits.jsonl:5"])
    # all of the last read may be bad: its place is kept all the same
    append(path, "bad\n")
    drain(open_followed(path, journal), journal)
    assert open_followed(path, journal).read(0.0) == []


def test_rotation_reads_the_old_file_to_its_end_and_then_the_new_one(
    journal: Journal, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    append(path, line(1) + "bad\n")
    source = open_followed(path, journal)
    drain(source, journal)
    append(path, line(2) + line(3).rstrip("\n"))
    path.rename(path.with_name("edits.jsonl.1"))
    append(path, "bad\n" + line(4))
    with caplog.at_level(logging.INFO):
        for _ in range(4):
            drain(source, journal)
    assert subjects(journal) == ["S1", "S2", "S3", "S4"]
    assert list(rejected(journal)) == ["edits.jsonl:2", "edits.jsonl~2:1"], "two lines of two files"
    assert "a new file has taken the name" in caplog.text


def test_rotation_while_nobody_read_is_noticed(journal: Journal, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    append(path, line(1))
    drain(open_followed(path, journal), journal)
    append(path, line(2))
    path.rename(path.with_name("edits.jsonl.1"))
    append(path, line(3))
    source = open_followed(path, journal)
    with caplog.at_level(logging.INFO):
        for _ in range(4):
            drain(source, journal)
    assert subjects(journal) == ["S1", "S2", "S3"] and "going on in edits.jsonl.1" in caplog.text


@pytest.mark.parametrize("text", [line(9), line(7) + line(8) + line(9)], ids=["shorter", "rewritten"])
def test_truncation_starts_over_with_a_clear_message(
    journal: Journal, path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    append(path, line(1) + line(2))
    source = open_followed(path, journal)
    drain(source, journal)
    with path.open("r+") as file:  # the same file, as `copytruncate` leaves it
        file.truncate(0)
        file.write(text)
    for _ in range(3):
        drain(source, journal)
    assert subjects(journal)[-1] == "S9" and len(subjects(journal)) == 2 + text.count("\n")
    assert "reading it from its start" in caplog.text
    drain(open_followed(path, journal), journal)
    assert len(subjects(journal)) == 2 + text.count("\n")


def test_a_line_without_end_is_given_up_and_the_next_one_read(
    journal: Journal, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "MAX_LINE", 500)
    monkeypatch.setattr(follow, "_CHUNK", 200)
    append(path, "x" * 1200 + "\n" + line(1))
    source = open_followed(path, journal)
    for _ in range(5):
        drain(source, journal)
    assert subjects(journal) == ["S1"]
    assert rejected(journal) == {"edits.jsonl:1": "the line is longer than 500 bytes"}


def test_many_lines_come_in_portions(journal: Journal, path: Path) -> None:
    append(path, "".join(line(number) for number in range(1000)))
    source = open_followed(path, journal)
    assert len(source.read(0.0)) == 256
    drain(open_followed(path, journal), journal)
    assert subjects(journal) == [f"S{number}" for number in range(1000)]


def test_a_pump_empties_the_file_until_it_is_closed(journal: Journal, path: Path) -> None:
    room = {"open": False}
    append(path, line(1))
    pump = Pump(open_followed(path, journal), journal, room=lambda: room["open"], poll=0.01)
    assert not pump.ended
    room["open"] = True
    for number in range(2, 200):
        append(path, line(number))
    while len(journal.requests()) < 199:
        assert pump.error is None
    pump.close()
    assert pump.ended and subjects(journal) == [f"S{number}" for number in range(1, 200)]


def test_a_failing_journal_ends_the_pump_and_loses_nothing(journal: Journal, path: Path) -> None:
    append(path, line(1))
    with raise_once("accept_in_transaction"):
        pump = Pump(open_followed(path, journal), journal, poll=0.01)
        while not pump.ended:
            pass
    pump.close()
    assert isinstance(pump.error, InjectedCrash)
    drain(open_followed(path, journal), journal)
    assert subjects(journal) == ["S1"]


def test_what_cannot_be_followed_is_said_at_once(journal: Journal, path: Path) -> None:
    for bad, words in ((path.parent, "is a directory"), (Path("x.jsonl.gz"), "is packed")):
        with pytest.raises(UserError, match=words):
            open_followed(bad, journal)
    with pytest.raises(UserError, match=r"stream\.schema 'nope' is unknown"):
        open_followed(path, journal, schema="nope")
    if os.geteuid() != 0:
        append(path, line(1))
        path.chmod(0)
        with pytest.raises(UserError, match="cannot be read"):
            open_followed(path, journal).read(0.0)
