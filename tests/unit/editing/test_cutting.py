"""Who is at fault in a batch is found by cutting it in halves."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errata.editing.cutting import cut_out_culprits


class Poisoned(Exception):
    pass


class Trial:
    """Fails with any of the bad items in it, or with more than so many of any."""

    def __init__(self, bad: Sequence[int], most: int = 1000) -> None:
        self.bad, self.most, self.calls = set(bad), most, 0

    def __call__(self, items: Sequence[int]) -> tuple[int, ...]:
        self.calls += 1
        found = self.bad & set(items)
        if found or len(items) > self.most:
            raise Poisoned(f"{sorted(found)} of {len(items)}")
        return tuple(items)


def test_a_clean_batch_costs_one_attempt() -> None:
    trial = Trial([])
    cut = cut_out_culprits([3, 1, 2], trial)
    assert (cut.kept, cut.result, cut.culprits, cut.left) == ((3, 1, 2), (3, 1, 2), (), ())
    assert trial.calls == 1
    assert cut_out_culprits([], trial).result is None and trial.calls == 1


@pytest.mark.parametrize("bad", range(8))
def test_one_culprit_is_found_wherever_it_stands(bad: int) -> None:
    trial = Trial([bad])
    cut = cut_out_culprits(range(8), trial)
    assert [item for item, _ in cut.culprits] == [bad]
    assert str(cut.culprits[0][1]) == f"[{bad}] of 1", "the error is that of the culprit alone"
    assert cut.kept == cut.result == tuple(i for i in range(8) if i != bad) and not cut.left
    assert trial.calls <= 1 + 2 * 3 + 1


@given(st.integers(1, 40), st.data())
def test_every_item_ends_in_one_place_and_the_rest_goes_together(size: int, data: st.DataObject) -> None:
    bad = data.draw(st.sets(st.integers(0, size - 1)))
    trial = Trial(sorted(bad))
    cut = cut_out_culprits(range(size), trial)
    assert [item for item, _ in cut.culprits] == sorted(bad)
    assert cut.kept == tuple(i for i in range(size) if i not in bad) and not cut.left
    assert cut.result == (cut.kept or None)
    assert trial.calls <= 2 + 2 * len(bad) * max(1, ceil(log2(size)))


@given(st.integers(2, 40), st.integers(1, 40))
def test_where_nobody_is_at_fault_a_part_is_kept_and_the_others_wait(size: int, most: int) -> None:
    cut = cut_out_culprits(range(size), Trial([], most))
    assert not cut.culprits
    assert sorted([*cut.kept, *cut.left]) == list(range(size))
    assert cut.result == cut.kept and 1 <= len(cut.kept) <= max(most, 1)
    assert len(cut.kept) == size if size <= most else len(cut.kept) > most // 3


def test_a_culprit_among_too_many() -> None:
    cut = cut_out_culprits(range(8), Trial([6], most=3))
    assert [item for item, _ in cut.culprits] == [6]
    assert cut.kept == (0, 1) and cut.left == (2, 3, 4, 5, 7)


def test_other_errors_are_raised() -> None:
    def attempt(items: Sequence[int]) -> None:
        raise KeyError("not what was asked about")

    with pytest.raises(KeyError):
        cut_out_culprits([1, 2], attempt, Poisoned)
