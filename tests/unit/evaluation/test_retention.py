"""Right after the edit and at the end, by hand."""

from __future__ import annotations

import pytest

from errata.evaluation.metrics import forgetting, retained, retention


def test_by_hand() -> None:
    after, end = [1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 1.0]
    assert retained(after, end) == pytest.approx(2 / 3)
    assert forgetting(after, end) == pytest.approx(0.0)  # one lost, one gained: why `retained` is reported beside it
    assert retained([0.0, 0.0], [1.0, 0.0]) is None
    assert forgetting([1.0, 0.5], [0.0, 0.5]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="at least one edit"):
        forgetting([], [])


def test_both_ends_of_the_edits_measured_at_both() -> None:
    found = retention({"a": 1.0, "b": 1.0, "c": 0.0, "gone": 1.0}, {"a": 1.0, "b": 0.0, "c": 0.0, "late": 1.0})
    assert found is not None
    assert (found.right_after, found.at_end, found.edits) == (pytest.approx(2 / 3), pytest.approx(1 / 3), 3)
    assert found.kept == pytest.approx(0.5) and found.gained == 0.0
    half = retention({"a": 0.5}, {"a": 0.5})
    assert half is not None and half.kept == 1.0 and half.gained == 0.0
    assert retention({"a": 1.0}, {"b": 1.0}) is None
    whole = retention({"a": 1.0}, {"a": 1.0})
    assert whole is not None and whole.gained is None
