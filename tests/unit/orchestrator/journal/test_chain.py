"""The chain sees what was changed, taken out, put in or reordered; an erased request breaks nothing."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from errata.editing.request import EditRequest
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.chain import chain_head, check_chain
from errata.orchestrator.journal.rows import CommitData, JournalMeta, RequestOutcome, VersionHash, VersionParts
from errata.orchestrator.journal.schema import MIGRATIONS, V1, schema_of
from tests.helpers.journals import RECORDED, restored

META = JournalMeta("run", "b" * 64, "e" * 64, {"name": "run"})


def request(name: str) -> EditRequest:
    return EditRequest(id=name, subject=f"Subject {name}", prompt="{} lives in", target_new="Rome")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal with three requests, two commits and an event."""
    path = tmp_path / "journal.sqlite"
    with Journal.create(path, META) as journal:
        journal.accept([request(name) for name in "abc"])
        outcomes = (
            RequestOutcome("a", True, outcome="landed", figures={"p_target": 0.9}),
            RequestOutcome("b", True, outcome="weak", figures={"p_target": 0.1}),
        )
        journal.commit(CommitData(1, outcomes, "1" * 64, sweeps=2, figures={"moved": 0.0}))
        journal.commit(CommitData(2, (), "2" * 64, kind="revert", reverts=("b",), reason="wrong"))
        journal.record_event("note", {"text": "seen"})
        journal.record_evaluation("v", 2, "timeline", {"efficacy": 1.0})
    return path


def broken(path: Path) -> list[tuple[str, int]]:
    connection = sqlite3.connect(path)
    try:
        return [(link.kind, link.ref) for link in check_chain(connection)]
    finally:
        connection.close()


def change(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        assert connection.execute(statement).rowcount >= 1, statement
    connection.commit()
    connection.close()


def test_an_untouched_journal_holds(path: Path) -> None:
    assert broken(path) == []


@pytest.mark.parametrize(
    ("statement", "where"),
    [
        ("UPDATE requests SET payload = replace(payload, 'Rome', 'Nice') WHERE id = 'a'", ("acceptance", 1)),
        ("UPDATE requests SET fact_key = 'other' WHERE id = 'c'", ("acceptance", 3)),
        ("UPDATE fates SET state = 'applied' WHERE state = 'reverted'", ("fate", 6)),
        ("UPDATE fates SET reason = NULL WHERE reason = 'wrong'", ("fate", 6)),
        ("UPDATE commits SET seconds = 9 WHERE sequence = 1", ("commit", 1)),
        ("UPDATE commits SET sweeps = 1 WHERE sequence = 1", ("commit", 1)),
        ("UPDATE batches SET kind = 'repair' WHERE sequence = 2", ("commit", 2)),
        ("UPDATE events SET data = '{}'", ("event", 1)),
        ("UPDATE evaluations SET metrics = '{\"efficacy\":0.5}'", ("evaluation", 1)),
        ("UPDATE meta SET config = '{}'", ("begin", 1)),
        ("DELETE FROM events", ("event", 1)),
    ],
)
def test_a_changed_or_deleted_row_is_named(path: Path, statement: str, where: tuple[str, int]) -> None:
    change(path, statement)
    assert broken(path) == [where]


def test_a_row_put_in_later_and_a_link_taken_out_are_seen(path: Path) -> None:
    change(path, "INSERT INTO events (kind, data, at) VALUES ('forged', '{}', '2026-01-01T00:00:00+00:00')")
    assert ("event", 2) in broken(path)
    change(path, "DELETE FROM events WHERE kind = 'forged'", "DELETE FROM chain WHERE kind = 'commit' AND ref = 1")
    assert ("commit", 1) in broken(path)


def test_links_cannot_change_places(path: Path) -> None:
    change(
        path,
        "UPDATE chain SET number = -1 WHERE number = 3",
        "UPDATE chain SET number = 3 WHERE number = 4",
        "UPDATE chain SET number = 4 WHERE number = -1",
    )
    assert broken(path)


def test_an_erased_request_leaves_links_that_hold(path: Path) -> None:
    """What an erasure does to a row: name, text, salt and reasons go; the links keep their salted digests."""
    change(
        path,
        "UPDATE requests SET id = 'erased:2', payload = '{}', payload_digest = '', fact_key = NULL, salt = NULL,"
        " reason = NULL, result = NULL, figures = NULL, erased_at = '2026-02-02T00:00:00+00:00' WHERE id = 'b'",
        "UPDATE fates SET reason = NULL WHERE seq = 2",
        "UPDATE batches SET request_ids = replace(request_ids, '\"b\"', '\"erased:2\"')",
    )
    assert broken(path) == []
    change(path, "UPDATE requests SET erased_at = NULL WHERE id = 'erased:2'")
    assert ("acceptance", 2) in broken(path)


def test_two_journals_of_the_same_requests_cannot_be_told_to_hold_the_same_text(tmp_path: Path) -> None:
    """A plain digest of a name could be guessed; with a salt equal requests have unequal content."""
    contents = []
    for name in ("one", "two"):
        with Journal.create(tmp_path / f"{name}.sqlite", META) as journal:
            journal.accept([request("a")])
        connection = sqlite3.connect(tmp_path / f"{name}.sqlite")
        contents.append(connection.execute("SELECT content FROM chain WHERE kind = 'acceptance'").fetchone()[0])
        connection.close()
    assert contents[0] != contents[1]


def test_a_journal_of_schema_1_is_chained_when_it_is_migrated(tmp_path: Path) -> None:
    path = restored(RECORDED / "v1.sql", tmp_path / "journal.sqlite")
    assert schema_of(path) == 1 and V1
    with Journal.open(path) as journal:
        counts = journal.counts()
        assert counts.requests == len(journal.requests()) == sum(journal.counters().values())
        journal.accept([request("later")])
        assert journal.counts().accepted == counts.accepted + 1
    assert schema_of(path) == len(MIGRATIONS)
    assert broken(path) == []
    connection = sqlite3.connect(path)
    assert len(chain_head(connection) or "") == 64
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    connection.close()


def test_outcomes_and_counters_are_read_back(path: Path) -> None:
    with Journal.open(path, read_only=True) as journal:
        row = journal.request("a")
        assert row is not None and (row.outcome, row.figures) == ("landed", {"p_target": 0.9})
        assert journal.counters() == {
            "state.accepted": 1, "state.applied": 1, "state.reverted": 1, "outcome.landed": 1, "outcome.weak": 1,
        }  # fmt: skip
        assert (journal.counts().landed, journal.counts().weak) == (1, 1)
        first = journal.versions()[1]
        assert (first.sweeps, first.figures) == (2, {"moved": 0.0})


def test_attempts_tags_and_marks(path: Path) -> None:
    with Journal.open(path) as journal:
        first = journal.begin_attempt(3, ["c"])
        journal.end_attempt(first, "died", "killed")
        journal.end_attempt(first, "committed")  # too late: it changes nothing
        journal.begin_attempt(3, ["c"])
        assert [(row.request_ids, row.outcome) for row in journal.attempts(3)] == [(("c",), "died"), (("c",), None)]
        assert journal.attempts(4) == []
        journal.tag("good", 1)
        journal.tag("good", 2)
        assert journal.tags() == {"good": 2}
        journal.mark(1, "unprovable", "an edit was erased")
        journal.mark(1, "compacted", "old")
        assert [(row.sequence, row.state) for row in journal.marks()] == [(1, "unprovable")]
    assert broken(path) == []


def test_parts_enter_the_version_and_a_commit_without_parts_keeps_its_digest(path: Path) -> None:
    parts = VersionParts(modules=("m" * 64,), pieces="p" * 64, router="r" * 64)
    with Journal.open(path) as journal:
        before = journal.head().digest
        version = journal.commit(CommitData(3, (RequestOutcome("c", True),), None, parts=parts, kind="module"))
        assert version.parts == parts and version.digest != before
    with Journal.open(path) as journal:  # the running digest is rebuilt from the rows
        after = journal.commit(CommitData(4, (), "4" * 64, kind="revert"))
    plain = VersionHash("b" * 64, ["1" * 64, "2" * 64])
    assert plain.digest == before
    assert after.digest == plain.then(None, parts).then("4" * 64).digest
    assert plain.then("d", VersionParts()).digest == plain.then("d").digest
    assert len({plain.then(None, VersionParts(**{k: v})).digest for k, v in (
        ("modules", ("x",)), ("removed", ("x",)), ("pieces", "x"), ("router", "x"),
    )}) == 4  # fmt: skip
    assert broken(path) == []
