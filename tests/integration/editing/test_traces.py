"""Thirty seeded edits by every editor give the numbers that are stored."""

from __future__ import annotations

import math

import pytest

from tests.unit.editing.editors.common import NAMES
from tests.unit.editing.editors.traces import EDITS, FOLDER, read, seeded_edits, trace


def test_there_is_one_trace_per_editor() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.txt")) == [f"tiny_llama_{name}" for name in NAMES]
    facts = [request.fact_key for request in seeded_edits()]
    assert len(set(facts)) < len(facts) == EDITS, "some facts are edited again"


@pytest.mark.parametrize("name", NAMES)
def test_trace(name: str) -> None:
    stored, found = read(name), trace(name)
    assert [line.step for line in stored] == list(range(1, EDITS + 1))
    for want, got in zip(stored, found, strict=True):
        # other processors round differently, and thirty edits carry that on
        assert got.norm == pytest.approx(want.norm, rel=1e-3), got.step
        assert got.logprob == pytest.approx(want.logprob, rel=1e-3), got.step
        assert got.drift == pytest.approx(want.drift, rel=1e-3, abs=1e-5), got.step
        assert math.isfinite(got.norm) and got.norm > 0
        assert got.applied == want.applied, got.step
