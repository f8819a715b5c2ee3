"""Acceptances in shares: one edit does not wait for another client's thousand, and each client gets its own answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from errata.editing.errors import UserError
from errata.editing.request import EditRequest
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.rows import Accepted, JournalMeta
from errata.orchestrator.service.acceptor import Acceptor
from errata.orchestrator.service.errors import ServiceError


def request(name: str) -> EditRequest:
    return EditRequest(id=name, subject="Rome", prompt="{} lies in", target_new="Canada")


def listed(name: str, count: int) -> list[EditRequest]:
    return [request(f"{name}-{number}") for number in range(count)]


class Held:
    """A journal whose transactions begin when the test says so; by transaction the ids that it was given."""

    def __init__(self, journal: Journal) -> None:
        self.written: list[list[str]] = []
        self.may, self.begun = threading.Event(), threading.Event()
        self._real = journal.accept
        self.fails: Callable[[int], bool] = lambda number: False
        journal.accept = self  # type: ignore[method-assign,assignment]

    def __call__(self, requests: Sequence[EditRequest]) -> list[Accepted]:
        self.begun.set()
        assert self.may.wait(60)
        self.written.append([request.id for request in requests])
        if self.fails(len(self.written)):
            raise OSError("No space left on device")
        return self._real(requests)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.create(tmp_path / "journal.sqlite", JournalMeta("run", "b" * 64, "e" * 64, {})) as journal:
        yield journal


@pytest.fixture
def held(journal: Journal) -> Held:
    return Held(journal)


def test_a_long_list_goes_in_shares_beside_which_others_find_room(journal: Journal, held: Held) -> None:
    acceptor = Acceptor(journal, max_waiting=10_000, max_queued=100)
    first = acceptor.submit([request("first")])
    assert held.begun.wait(60)  # what comes now is gathered for the next transactions
    long = acceptor.submit(listed("long", 310))
    others = [acceptor.submit([request(f"other-{number}")]) for number in range(5)]
    last = acceptor.submit(listed("second long", 60))
    held.may.set()
    answers = long.result(60)
    assert [answer.id for answer in answers] == [f"long-{number}" for number in range(310)]
    assert [answer.seq for answer in answers] == sorted(answer.seq or 0 for answer in answers)
    assert [other.result(60)[0].id for other in others] == [f"other-{number}" for number in range(5)]
    assert len(last.result(60)) == 60 and first.result(60)[0].id == "first"
    assert held.written[0] == ["first"]
    assert {f"other-{number}" for number in range(5)} <= set(held.written[1]), "nobody waits for the whole list"
    assert all(len(ids) <= 100 for ids in held.written)
    assert sum("long" in name and not name.startswith("second") for name in held.written[1]) >= 25
    assert sum(map(len, held.written)) == 376 == journal.waiting()
    acceptor.close()


@pytest.mark.parametrize("count", [1, 99, 100, 101, 250, 1000])
def test_a_list_alone_fills_transactions_of_a_hundred(journal: Journal, held: Held, count: int) -> None:
    held.may.set()
    acceptor = Acceptor(journal, max_waiting=10_000, max_queued=100)
    assert len(acceptor.submit(listed("long", count)).result(60)) == count
    acceptor.close()
    assert [len(ids) for ids in held.written] == [100] * (count // 100) + [count % 100] * bool(count % 100)


def test_a_list_that_fails_half_way_is_sent_again_and_nothing_is_doubled(journal: Journal, held: Held) -> None:
    held.may.set()
    held.fails = lambda number: number == 2
    acceptor = Acceptor(journal, max_waiting=10_000, max_queued=100)
    with pytest.raises(ServiceError) as refused:
        acceptor.submit(listed("long", 250)).result(60)
    assert refused.value.status == 503 and journal.waiting() == 100
    again = acceptor.submit(listed("long", 250)).result(60)
    assert [answer.duplicate for answer in again] == [True] * 100 + [False] * 150 and journal.waiting() == 250
    acceptor.close()


def test_what_is_only_half_written_holds_its_room(journal: Journal, held: Held) -> None:
    acceptor = Acceptor(journal, max_waiting=300, max_queued=100)
    long = acceptor.submit(listed("long", 280))
    assert held.begun.wait(60)
    fitting, more = acceptor.submit(listed("fitting", 20)), acceptor.submit(listed("more", 21))
    held.may.set()
    assert len(long.result(60)) == 280 and len(fitting.result(60)) == 20
    with pytest.raises(ServiceError) as refused:
        more.result(60)
    assert refused.value.status == 429 and journal.waiting() == 300
    with pytest.raises(ServiceError):
        acceptor.submit([request("one more")]).result(60)
    assert acceptor.submit(listed("long", 280)).result(60)[0].duplicate, "what only repeats finds room"
    acceptor.close()


def test_the_gate_is_asked_in_the_clients_thread_and_a_refusal_costs_no_transaction(
    journal: Journal, held: Held
) -> None:
    asked: list[int] = []

    def gate(given: EditRequest) -> EditRequest:
        asked.append(threading.get_ident())
        if given.id.endswith("-1"):
            raise UserError("too long")
        return given

    held.may.set()
    acceptor = Acceptor(journal, max_waiting=100, max_queued=100, admit=gate)
    answers = acceptor.submit(listed("a", 3)).result(60)
    assert [answer.refused for answer in answers] == [None, "too long", None] and set(asked) == {threading.get_ident()}
    assert acceptor.submit([request("b-1")]).result(60)[0].invalid
    assert held.written == [["a-0", "a-2"]]
    acceptor.close()


def test_the_end_writes_all_that_was_taken(journal: Journal, held: Held) -> None:
    acceptor = Acceptor(journal, max_waiting=10_000, max_queued=100)
    taken = [acceptor.submit(listed(f"list {number}", 130)) for number in range(3)]
    closing = threading.Thread(target=acceptor.close)
    closing.start()
    held.may.set()
    closing.join(60)
    assert [len(one.result(0)) for one in taken] == [130] * 3 and journal.waiting() == 390
    with pytest.raises(ServiceError) as refused:
        acceptor.submit([request("late")])
    assert refused.value.status == 503
