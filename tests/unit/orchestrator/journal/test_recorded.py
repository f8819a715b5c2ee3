"""A journal with reverts, snapshots and an overwritten fact, recorded once; later releases read it the same."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from errata.orchestrator.history.log import History, RequestStory
from errata.orchestrator.history.snapshots import snapshots
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.chain import check_chain
from errata.orchestrator.journal.derived import check_derived
from errata.orchestrator.journal.rows import version_digest
from errata.orchestrator.journal.schema import MIGRATIONS, schema_of
from errata.orchestrator.run.reverting import gone
from tests.helpers.journals import RECORDED, restored


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    return restored(RECORDED / "reverts.sql", tmp_path / "journal.sqlite")


def test_it_reads_as_it_was_written(recorded: Path) -> None:
    assert schema_of(recorded) == 1
    with Journal.open(recorded, read_only=True) as journal:
        versions = journal.versions()
        assert [version.kind for version in versions] == ["base", "edit", "edit", "edit", "revert", "edit"]
        assert [version.edits for version in versions] == [0, 3, 6, 9, 9, 12]
        deltas = [version.delta for version in versions if version.delta is not None]
        assert journal.head().digest == version_digest(journal.meta.base_digest, deltas)
        assert [row.sequence for row in snapshots(journal)] == [2, 4]
        assert gone(journal.requests()) == {"fact-1", "fact-4", "fact-7"}
        history = History(journal)
        story = history.show("fact-4")
        assert isinstance(story, RequestStory)
        assert [fate.state for fate in story.fates] == ["accepted", "applied", "reverted"]
        assert story.fates[-1].reason == "wrong (by on call)"
        assert [journal.held_count(n) for n in range(7)] == [*(len(history.held(n)) for n in range(6)), 0]
        assert set(history.held(5)) == {f"fact-{number}" for number in range(12) if number not in (1, 4, 7)}


def test_it_is_migrated_and_goes_on(recorded: Path) -> None:
    with Journal.open(recorded) as journal:
        assert journal.next_sequence() == 6
        assert journal.record_event("later", {"is": "read"}) > 0
    assert schema_of(recorded) == len(MIGRATIONS)


@pytest.mark.parametrize(("name", "reverts"), [("reverts.sql", [4]), ("v2.sql", [6, 4])])
def test_what_reverts_of_before_computed_again_is_not_known_and_may_be_every_batch(
    name: str, reverts: list[int], tmp_path: Path
) -> None:
    path = restored(RECORDED / name, tmp_path / "journal.sqlite")
    had = schema_of(path)
    with Journal.open(path) as journal:
        for batch in (1, 2, 3):
            assert journal.recomputed(batch) == reverts and journal.recomputed(batch, before=5) == [4]
        assert journal.recomputed(5) == [sequence for sequence in reverts if sequence > 5]
    connection = sqlite3.connect(path)
    assert had < len(MIGRATIONS) and not list(check_chain(connection)) and not list(check_derived(connection))


def test_a_commit_that_is_said_to_be_computed_again_by_an_edit_is_told(tmp_path: Path) -> None:
    path = restored(RECORDED / "v2.sql", tmp_path / "journal.sqlite")
    with Journal.open(path):
        pass
    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO recomputed VALUES (1, 3)")
    (told,) = check_derived(connection)
    assert str(told.where) == "batch 1" and "v3, which took nothing out of it" in told.what
