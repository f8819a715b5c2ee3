"""Which snapshots a run deletes by itself."""

from __future__ import annotations

from itertools import pairwise

import pytest

from errata.orchestrator.history.snapshots import SnapshotRow, outlived, spacing


def test_old_snapshots_thin_out_with_age_and_the_newest_stay() -> None:
    rows: list[SnapshotRow] = []
    for sequence in range(200, 100_001, 200):
        rows.append(SnapshotRow(sequence, "v", f"{sequence:064x}"))
        gone = outlived(rows, 2)
        assert not {row.sequence for row in gone} & {row.sequence for row in rows[-2:]}
        rows = [row for row in rows if row not in gone]
    ages = [100_000 - row.sequence for row in rows]
    assert ages[-2:] == [200, 0] and len(rows) <= 12
    assert all(older <= 4 * newer + 400 for older, newer in pairwise(ages)), ages


def test_a_few_snapshots_all_stay() -> None:
    rows = [SnapshotRow(n, "v", "d") for n in (5, 10)]
    assert outlived(rows, 2) == [] == outlived([], 1)


@pytest.mark.parametrize(("every", "most", "worth"), [(50, 64, 10.0), (50, 8, 0.0), (200, 64, 3000.0), (3, 5, 7.5)])
def test_old_snapshots_are_spread_so_that_none_is_far_and_there_are_not_many(
    every: int, most: int, worth: float
) -> None:
    rows: list[SnapshotRow] = []
    for head in range(every, 300 * every + 1, every):
        rows.append(SnapshotRow(head, "v", f"{head:064x}"))
        apart = spacing(every, head, most, worth)
        assert apart is not None and apart % every == 0
        gone = outlived(rows, 2, apart)
        rows = [row for row in rows if row not in gone]
        kept = [row.sequence for row in rows]
        # what the settings promise: n / most commits, or a snapshot's room in commits, and twice as much at the worst
        farthest = 2 * max(every, head / most, worth)
        assert max(b - a for a, b in pairwise([0, *kept])) <= farthest
        logarithm = (head // every).bit_length() + 1
        assert len(kept) <= 2 + logarithm + min(most + 1, 1 + head / max(worth, 1))
        assert not {row.sequence for row in gone} & set(kept[-2:])


def test_a_run_may_keep_old_snapshots_by_their_age_alone() -> None:
    assert spacing(50, 10_000, 0, 1.0) is None
    rows = [SnapshotRow(n, "v", f"{n:064x}") for n in range(50, 1001, 50)]
    assert outlived(rows, 2, None) == outlived(rows, 2)
