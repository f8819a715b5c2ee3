"""A lifetime past d_in edits with the store behind it: what leaves is read from the receipts."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from errata.editing.errors import ErrataError
from errata.editing.request import EditBatch, EditRequest
from errata.editing.reverting import HistoryItem, RevertOrder, revert
from errata.editing.session import EditReceipt, EditSession
from errata.orchestrator.config.run import RunConfig
from errata.orchestrator.history.dropping import store_cut
from errata.orchestrator.history.receipts import (
    commit_data,
    history,
    load_receipt,
    old_keys,
    open_store,
    read_receipt,
    store_receipt,
)
from errata.orchestrator.history.snapshots import newest_snapshot, store_snapshot
from errata.orchestrator.history.verify import verify
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.artifacts import ArtifactStore
from errata.orchestrator.journal.rows import CovarianceRow, JournalMeta
from errata.orchestrator.run.reverting import commit_revert
from tests.unit.editing.editors.common import session_of

SETTINGS: dict[str, Any] = {"layers": (1,), "values": {"steps": 1}}


class Life:
    """A session, its journal and its store."""

    def __init__(self, root: Path) -> None:
        self.session = session_of("memit", **SETTINGS)
        self.store: ArtifactStore = open_store(root)
        config = RunConfig.model_validate(
            {
                "model": {"name": "tiny"},
                "stream": {"path": "x"},
                "covariance": {"source": "self_generated", "tokens": 400},
                "editor": self.session.editor.config.model_dump(mode="json"),
            }
        )
        self.config = config
        self.journal = Journal.create(root / "journal.sqlite", JournalMeta("run", "b" * 64, "e" * 64, config.dump()))
        covariance = self.session.state.covariance
        assert covariance is not None
        digest = self.store.put_file("covariances", covariance.save)
        self.journal.record_covariance(CovarianceRow(digest, {}, 400, (0, 1, 2), "v0", digest))
        self.journal.record_swap(0, digest, 0)

    def edit(
        self, requests: Sequence[EditRequest], kept: Callable[[EditReceipt], EditReceipt] = lambda receipt: receipt
    ) -> EditReceipt:
        """Write a batch; ``kept`` makes of its receipt what is stored."""
        self.journal.accept(requests)
        sequence = self.journal.next_sequence()
        wanted = self.session.keys_wanted([request.fact_key for request in requests])
        leaving = old_keys(self.journal, self.store, wanted, before=sequence)
        batch = EditBatch(sequence=sequence, requests=tuple(requests), old_keys=leaving)
        receipt = self.session.apply(batch)
        delta, keys = store_receipt(self.store, kept(receipt))
        self.journal.commit(commit_data(receipt, delta=delta, keys=keys, contexts=None, norms=self.session.norms()))
        return receipt

    def take_out(self, *names: str) -> None:
        commit_revert(self.journal, self.store, self, names, commutes=True, contexts=None)

    def revert(self, order: RevertOrder, items: Callable[[], Iterable[HistoryItem]]) -> EditReceipt:
        return revert(self.session, order, items())

    def keys_wanted(self, fact_keys: Sequence[str]) -> tuple[str, ...]:
        return self.session.keys_wanted(fact_keys)

    def norms(self) -> dict[int, float]:
        return self.session.norms()

    def replayed(self, *, snapshot: bool = False) -> EditSession:
        """Another session brought to the journal's head."""
        other = session_of("memit", **SETTINGS)
        found = newest_snapshot(self.journal, self.store) if snapshot else None
        items = iter(history(self.journal, self.store, since=None if found is None else found[1]))
        next(items)  # the covariance that a session begins on
        for item in items:
            if isinstance(item, EditReceipt):
                other.replay(item)
            else:
                other.resume(item)  # type: ignore[arg-type]
        return other


def request(number: int, fact: int) -> EditRequest:
    return EditRequest(
        id=f"r{number}", subject=f"Nobody {fact}", prompt="{} comes from", target_new=f"place {number % 7}"
    )


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    """Fifty facts in batches of ten, then batches of which half are updates; a snapshot on the way."""
    found = Life(tmp_path_factory.mktemp("run"))
    for start in range(0, 50, 10):
        found.edit([request(i, i) for i in range(start, start + 10)])
    for start in range(50, 90, 8):
        found.edit([request(i, i % 50 if i % 2 else i) for i in range(start, start + 8)])
        if start == 66:
            store_snapshot(found.journal, found.store, found.session.snapshot(), found.journal.head())
    return found


def as_before(receipt: EditReceipt) -> EditReceipt:
    """The receipt as releases before 0.2 stored it."""
    return replace(receipt, old_keys={})


def same(left: EditSession, right: EditSession) -> None:
    assert left.state.request_ids == right.state.request_ids and left.sequence == right.sequence
    probe = torch.randn(48, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.equal(left.state.systems[1].solve(probe), right.state.systems[1].solve(probe))
    assert torch.equal(left.weights()[1], right.weights()[1])


def test_a_replay_gives_the_bits_from_the_beginning_and_from_a_snapshot(life: Life) -> None:
    state = life.session.state
    assert state.wants_keys and state.keys[1].shape == (48, 0) and len(state.request_ids) == 70
    for snapshot in (False, True):
        same(life.replayed(snapshot=snapshot), life.session)


def test_the_gram_matrix_is_that_of_the_keys_in_the_receipts(life: Life) -> None:
    state = life.session.state
    found = old_keys(life.journal, life.store, state.request_ids, before=life.journal.next_sequence())
    keys = torch.stack([found[name][1] for name in state.request_ids], dim=1).double()
    gram = state.systems[1].form.current_gram()  # type: ignore[union-attr]
    torch.testing.assert_close(gram, keys @ keys.T, rtol=1e-12, atol=1e-12)


def test_reverts_and_later_updates_find_the_keys_that_were_computed_again(tmp_path: Path) -> None:
    life = Life(tmp_path)
    for start in range(0, 60, 10):
        life.edit([request(i, i) for i in range(start, start + 10)])
    with pytest.raises(ErrataError, match="are in the receipts of the commits that wrote them"):
        life.session.state.without(["r11"])
    life.take_out("r13", "r52")
    # the other nine of the batch have keys that were computed without it; one of them is written again
    life.edit([request(100, 11), request(101, 55)])
    life.take_out("r15")
    same(life.replayed(), life.session)
    state = life.session.state
    assert {"r13", "r52", "r11", "r55", "r15"}.isdisjoint(state.request_ids)
    found = old_keys(life.journal, life.store, state.request_ids, before=life.journal.next_sequence())
    keys = torch.stack([found[name][1] for name in state.request_ids], dim=1).double()
    gram = state.systems[1].form.current_gram()  # type: ignore[union-attr]
    torch.testing.assert_close(gram, keys @ keys.T, rtol=1e-12, atol=1e-12)


def counted_reads(monkeypatch: pytest.MonkeyPatch, life: Life) -> list[str]:
    """The receipts that are read from here on, by digest."""
    read: list[str] = []
    get = life.store.get

    def noted(kind: str, digest: str, **options: Any) -> Path:
        if kind == "keys":
            read.append(digest)
        return get(kind, digest, **options)

    monkeypatch.setattr(life.store, "get", noted)
    return read


def test_what_leaves_is_read_from_as_few_receipts_however_many_reverts_came_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = Life(tmp_path)
    for start in range(0, 80, 10):
        life.edit([request(i, i) for i in range(start, start + 10)])
    for fact in (12, 23, 34, 45):
        life.take_out(f"r{fact}")
    read = counted_reads(monkeypatch, life)
    before = life.journal.next_sequence()
    # of a batch that no revert touched, of one that the first of four did, and both of one batch
    for names, expected in ((["r1"], 1), (["r13"], 1), (["r1", "r2"], 1), (["r1", "r13", "r24"], 3)):
        read.clear()
        found = old_keys(life.journal, life.store, names, before=before)
        assert set(found) == set(names) and len(read) == expected
    read.clear()
    life.take_out("r14")  # its batch, and the revert that computed that again
    recomputed = life.journal.recomputed(2)
    assert recomputed == [13, 9] and life.journal.recomputed(2, before=13) == [9]
    mine = {life.journal.version(sequence).keys for sequence in recomputed[1:]}
    others = {life.journal.version(sequence).keys for sequence in (10, 11, 12)}
    assert mine <= set(read) and not others & set(read)


def test_a_journal_of_before_the_table_finds_the_same_keys(tmp_path: Path) -> None:
    life = Life(tmp_path)
    for start in range(0, 60, 10):
        life.edit([request(i, i) for i in range(start, start + 10)])
    life.take_out("r13", "r52")
    life.take_out("r24")
    before = life.journal.next_sequence()
    names = [name for name in life.session.state.request_ids]
    listed = old_keys(life.journal, life.store, names, before=before)
    with life.journal._transaction() as connection:
        connection.execute("DELETE FROM recomputed")
        connection.execute("INSERT INTO recomputed VALUES (0, 7), (0, 8)")
    found = old_keys(life.journal, life.store, names, before=before)
    assert found.keys() == listed.keys() == set(names)
    assert all(torch.equal(found[name][1], listed[name][1]) for name in names)


def test_a_replay_reads_one_receipt_for_each_commit(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    read = counted_reads(monkeypatch, life)
    same(life.replayed(), life.session)
    assert sorted(read) == sorted(version.keys for version in life.journal.versions()[1:] if version.keys)


def test_receipts_without_the_keys_that_left_give_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lives = Life(tmp_path / "new"), Life(tmp_path / "old")
    for life, kept in zip(lives, (lambda receipt: receipt, as_before), strict=True):
        for start in range(0, 60, 10):
            life.edit([request(i, i) for i in range(start, start + 10)])
        for start in (100, 110):
            life.edit([request(i, i % 50) for i in range(start, start + 8)], kept)
    new, old = lives
    same(new.replayed(), new.session)
    read = counted_reads(monkeypatch, old)
    same(old.replayed(), new.session)
    assert len(read) > len(old.journal.versions())
    # a revert walks the same way, and keeps what left with it
    for life in lives:
        life.take_out("r105", "r33")
    same(new.session, old.session)
    assert new.journal.head().delta == old.journal.head().delta
    receipt = load_receipt(new.store, new.journal.head())
    assert {"r105", "r33"} <= receipt.old_keys.keys() <= {*receipt.taken_out, *receipt.request_ids}


def test_what_is_cut_out_of_a_receipt_leaves_no_key_of_it(tmp_path: Path) -> None:
    life = Life(tmp_path)
    for start in range(0, 60, 10):
        life.edit([request(i, i) for i in range(start, start + 10)])
    gone, stays = (old_keys(life.journal, life.store, [name], before=7)[name][1] for name in ("r11", "r12"))
    receipt = life.edit([request(100, 11), request(101, 12)])
    assert set(receipt.old_keys) == {"r11", "r12"}
    digest = life.journal.head().keys
    assert digest is not None
    left = store_cut(life.store, digest, {"r11": "erased:12", "r100": "erased:61"})
    assert left is not None
    assert b'"r11"' in life.store.get("keys", digest).read_bytes().replace(b"\\", b"")
    assert b'"r11"' not in life.store.get("keys", left).read_bytes().replace(b"\\", b"")
    # the newer edit of the fact has the same key here, and goes as well
    for name, count in ((digest, 2), (left, 0)):
        _, tensors = read_receipt(life.store, name)
        matrices = [matrix for matrix in tensors.values() if matrix.shape[0] == 48]
        assert sum(torch.equal(column, gone) for matrix in matrices for column in matrix.T) == count
    again = load_receipt(life.store, replace(life.journal.head(), keys=left))
    assert set(again.old_keys) == {"r12"} and torch.equal(again.old_keys["r12"][1], stays)
    assert again.superseded == ("erased:12", "r12")
    # a receipt of which every key that left goes
    all_of_it = store_cut(life.store, left, {"r12": "erased:13"})
    assert all_of_it is not None and not load_receipt(life.store, replace(life.journal.head(), keys=all_of_it)).old_keys


def test_verify_sees_a_key_that_is_not_the_one_that_was_written(tmp_path: Path) -> None:
    life = Life(tmp_path)
    for start in range(0, 60, 10):
        life.edit([request(i, i) for i in range(start, start + 10)])
    life.take_out("r13")
    life.edit([request(100, 11), request(101, 14)])  # r11 and r14 have the keys that the revert computed again
    assert [problem for problem in verify(tmp_path, None).problems if "keys of" in problem.what] == []

    def moved(receipt: EditReceipt) -> EditReceipt:
        others = {name: {1: keys[1] + (name == "r22")} for name, keys in receipt.old_keys.items()}
        return replace(receipt, old_keys=others)

    life.edit([request(102, 21), request(103, 22)], moved)
    life.journal.close()
    said = [(problem.where, problem.what) for problem in verify(tmp_path, None).problems]
    assert ("v9", "its receipt keeps other keys of the edits ['r22'] than those that were written") in said


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("DELETE FROM recomputed WHERE batch = 3", r"v7: computed the batches [2, 3] again, the journal says [2]"),
        ("INSERT INTO recomputed VALUES (4, 7)", r"v7: computed the batches [2, 3] again, the journal says [2, 3, 4]"),
        ("UPDATE recomputed SET sequence = 6", r"batch 2: is said to be computed again by v6, which took nothing"),
    ],
)
def test_verify_sees_a_table_of_computed_batches_that_the_receipts_do_not_bear_out(
    tmp_path: Path, statement: str, words: str
) -> None:
    life = Life(tmp_path)
    for start in range(0, 60, 10):
        life.edit([request(i, i) for i in range(start, start + 10)])
    life.take_out("r13", "r24")
    life.journal.close()

    def said() -> str:
        return "\n".join(f"{problem.where}: {problem.what}" for problem in verify(tmp_path, None).problems)

    assert "computed" not in said()
    connection = sqlite3.connect(tmp_path / "journal.sqlite")
    with connection:
        connection.execute(statement)
    connection.close()
    assert words in said()
