"""Which snapshots a run deletes by itself."""

from __future__ import annotations

from itertools import pairwise

from errata.orchestrator.history.snapshots import SnapshotRow, outlived


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
