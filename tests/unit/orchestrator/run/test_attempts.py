"""A batch that the editor dies of is cut; the attempts are in the journal, so that a restart goes on with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from errata.editing.errors import EditorFaultError, ErrataError
from errata.editing.request import EditBatch, EditRequest
from errata.editing.session import EditReceipt, RequestResult
from errata.orchestrator.journal import Journal, reading
from errata.orchestrator.journal.rows import JournalMeta
from errata.orchestrator.run.batches import Attempts

REQUESTS = [EditRequest(id=f"r{i}", subject=f"Place {i}", prompt="{} lies in", target_new="Rome") for i in range(8)]


class Killed(BaseException):
    """This process is gone: nothing after it is done."""


class MortalEditor:
    """Dies while it has certain requests in hand, as long as it is asked to; with this process, if told so."""

    def __init__(self, *poison: str, everything: bool = False, times: int = 1000, takes_us_along: bool = False) -> None:
        self.poison, self.everything, self.times, self.takes_us_along = set(poison), everything, times, takes_us_along
        self.deaths = 0

    def _survive(self, names: Sequence[str], died: Callable[[Exception], None] | None) -> None:
        while (self.everything or self.poison & set(names)) and self.deaths < self.times:
            self.deaths += 1
            if self.takes_us_along:
                raise Killed
            assert died is not None
            died(RuntimeError("the worker was killed: out of memory"))

    def apply(self, batch: EditBatch, died: Callable[[Exception], None] | None = None) -> EditReceipt:
        names = [request.id for request in batch.requests]
        self._survive(names, died)
        results = tuple(RequestResult(name, True) for name in names)
        return EditReceipt(batch.sequence, None, results, tuple(names), (), ())

    def rehearse(self, requests: Sequence[EditRequest], died: Callable[[Exception], None] | None = None) -> None:
        self._survive([request.id for request in requests], died)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.create(tmp_path / "journal.sqlite", JournalMeta("run", "b" * 64, "e" * 64, {})) as journal:
        journal.accept(REQUESTS)
        yield journal


def batch(*numbers: int) -> EditBatch:
    return EditBatch(sequence=1, requests=tuple(REQUESTS[i] for i in numbers or range(8)))


def said() -> tuple[list[str], Callable[[str], None]]:
    lines: list[str] = []
    return lines, lines.append


def test_a_batch_that_is_survived_is_one_attempt(journal: Journal) -> None:
    attempts = Attempts(journal, MortalEditor(), print)
    receipt = attempts.apply(batch())
    assert receipt is not None and receipt.request_ids == tuple(f"r{i}" for i in range(8))
    assert [row.outcome for row in journal.attempts()] == [None]
    attempts.committed()
    assert [row.outcome for row in journal.attempts()] == ["committed"]


@pytest.mark.parametrize("times", [1, 2])
def test_a_death_or_two_may_be_the_machine(journal: Journal, times: int) -> None:
    editor = MortalEditor("r3", times=times)
    receipt = Attempts(journal, editor, print).apply(batch())
    assert receipt is not None and len(receipt.request_ids) == 8
    assert [row.outcome for row in journal.attempts()] == ["died"] * times + [None]


def test_after_three_deaths_the_culprit_is_set_aside_and_the_others_are_written(journal: Journal) -> None:
    lines, say = said()
    receipt = Attempts(journal, MortalEditor("r5"), say).apply(batch())
    assert receipt is not None and receipt.request_ids == tuple(f"r{i}" for i in range(8) if i != 5)
    row = journal.request("r5")
    assert row is not None and row.state == "rejected"
    assert row.reason is not None and "died every time" in row.reason and "out of memory" in row.reason
    assert len(lines) == 1 and "r5" in lines[0]
    assert [name.id for name in journal.pending(10)] == [f"r{i}" for i in range(8) if i != 5]


def test_two_culprits(journal: Journal) -> None:
    receipt = Attempts(journal, MortalEditor("r0", "r6"), print).apply(batch())
    assert receipt is not None and receipt.request_ids == ("r1", "r2", "r3", "r4", "r5", "r7")


def test_one_alone(journal: Journal) -> None:
    attempts = Attempts(journal, MortalEditor("r2"), print)
    assert attempts.apply(batch(2)) is None
    row = journal.request("r2")
    assert row is not None and row.state == "rejected"
    assert attempts.apply(batch(3)) is not None


def test_an_editor_that_dies_of_everything_blames_nobody(journal: Journal) -> None:
    attempts = Attempts(journal, MortalEditor(everything=True), print)
    with pytest.raises(
        ErrataError, match=r"dies of every edit, a plain one too: .*out of memory.*; nothing was written"
    ):
        attempts.apply(batch())
    assert len(journal.pending(10)) == 8


def test_what_killed_this_process_too_is_known_to_the_next(journal: Journal) -> None:
    """Every start dies with the editor; each goes on where the one before it ended, and it comes to an end."""
    editor = MortalEditor("r5", takes_us_along=True)
    starts, receipt = 0, None
    while receipt is None:
        starts += 1
        with suppress(Killed):
            receipt = Attempts(journal, editor, print).apply(batch())
    assert receipt is not None and receipt.request_ids == tuple(f"r{i}" for i in range(8) if i != 5)
    assert starts == 3 + 3 + 1, "three deaths of the whole, one for each half that holds it, then it is known"
    row = journal.request("r5")
    assert row is not None and row.state == "rejected" and "this process ended as well" in str(row.reason)


def test_attempts_since_a_time_are_read_from_the_newest_on(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_PAGE", 3)
    for _ in range(8):
        attempts = Attempts(journal, MortalEditor(), print)
        attempts.apply(batch())
        attempts.committed()
    rows = journal.attempts()
    assert journal.attempts_since(datetime(2001, 1, 1, tzinfo=UTC)) == rows and len(rows) == 8
    assert journal.attempts_since(datetime.now(UTC) + timedelta(days=1)) == []
    for row in rows:
        assert journal.attempts_since(row.started_at) == [one for one in rows if one.started_at >= row.started_at]


def test_an_interruption_is_no_death(journal: Journal) -> None:
    class Interrupted(MortalEditor):
        def apply(self, batch: EditBatch, died: Callable[[Exception], None] | None = None) -> EditReceipt:
            raise KeyboardInterrupt

    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            Attempts(journal, Interrupted(), print).apply(batch())
    assert {row.outcome for row in journal.attempts()} == {"failed"}
    receipt = Attempts(journal, MortalEditor(), print).apply(batch())
    assert receipt is not None and len(receipt.request_ids) == 8


def test_another_batch_starts_anew(journal: Journal) -> None:
    editor = MortalEditor("r1", times=2)
    assert Attempts(journal, editor, print).apply(batch(0, 1)) is not None
    assert Attempts(journal, MortalEditor("r1", times=2), print).apply(batch(1, 2)) is not None
    assert len(journal.pending(10)) == 8


def test_an_editor_that_fails_on_everything_blames_nobody(journal: Journal) -> None:
    class Broken(MortalEditor):
        def apply(self, batch: EditBatch, died: Callable[[Exception], None] | None = None) -> EditReceipt:
            raise EditorFaultError("the editor fails on every edit, a plain one too: MemoryError")

    for _ in range(4):
        with pytest.raises(EditorFaultError, match=r"MemoryError; nothing was written, and the edits still wait"):
            Attempts(journal, Broken(), print).apply(batch())
    assert {row.outcome for row in journal.attempts()} == {"failed"} and len(journal.pending(10)) == 8
    assert Attempts(journal, MortalEditor(), print).apply(batch()) is not None, "mended, it goes on"


def test_a_journal_that_cannot_take_a_batch_is_no_death(journal: Journal) -> None:
    for _ in range(4):
        attempts = Attempts(journal, MortalEditor(), print)
        assert attempts.apply(batch()) is not None
        attempts.failed(OSError("No space left on device"))
    assert [(row.outcome, row.reason) for row in journal.attempts()] == [
        ("failed", "OSError: No space left on device")
    ] * 4
    receipt = Attempts(journal, MortalEditor(), print).apply(batch())
    assert receipt is not None and len(receipt.request_ids) == 8, "nothing is cut"
