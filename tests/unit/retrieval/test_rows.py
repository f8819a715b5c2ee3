"""Rows that are mapped and rows that came since behave as one plain list."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from errata.retrieval.rows import RowStore


@given(st.integers(0, 12), st.lists(st.integers(-5, 6), max_size=40))
@settings(deadline=None, max_examples=60)
def test_rows_are_those_of_a_list(mapped: int, operations: list[int]) -> None:
    random = np.random.default_rng(0)
    first = random.standard_normal((mapped, 3)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows"
        path.write_bytes(first.tobytes())
        before = path.read_bytes()
        store = RowStore(3, np.memmap(path, dtype="<f4", mode="c", shape=(mapped, 3)) if mapped else None)
        plain = [row.copy() for row in first]
        for operation in operations:
            if operation >= 0:
                rows = random.standard_normal((operation, 3)).astype(np.float32)
                store.append(rows)
                plain += list(rows)
            elif plain:
                place = -operation % len(plain)
                store.drop(place)
                last = plain.pop()
                if place < len(plain):
                    plain[place] = last
            assert len(store) == len(plain)
            assert np.array_equal(store.at(range(len(plain))), np.array(plain, dtype=np.float32).reshape(-1, 3))
        assert path.read_bytes() == before, "a mapped file is never changed"
