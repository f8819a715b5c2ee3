"""Target values of real facts in SmolLM2: a batch against one by one, and against the plain form."""

from __future__ import annotations

from pathlib import Path

import pytest

from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditRequest
from errata.editing.values import TargetValue, ValueConfig, optimize_values
from errata.evaluation.datasets import ValidRecord, open_dataset
from tests.unit.helpers import plain

LAYER = 8
CONTEXTS = ("", "You know, ")
CONFIG = ValueConfig(steps=12, stop_loss=0.8)


@pytest.fixture(scope="module")
def facts(shared_data: Path) -> list[EditRequest]:
    records = open_dataset(shared_data / "counterfact" / "counterfact.json", limit=3)
    return [record.request for record in records if isinstance(record, ValidRecord)]


@pytest.fixture(scope="module")
def together(model: EditableModel, facts: list[EditRequest]) -> list[TargetValue]:
    return optimize_values(model, facts, layer=LAYER, contexts=CONTEXTS, config=CONFIG)


def test_a_batch_equals_one_by_one(model: EditableModel, facts: list[EditRequest], together: list[TargetValue]) -> None:
    assert len({value.steps for value in together}) > 1, "each stops by itself"
    for fact, got in zip(facts, together, strict=True):
        (alone,) = optimize_values(model, [fact], layer=LAYER, contexts=CONTEXTS, config=CONFIG)
        assert got.loss == pytest.approx(alone.loss, abs=1e-4)
        assert got.steps == alone.steps or abs(got.loss - CONFIG.stop_loss) < 1e-3
        assert (got.converged, got.clamped) == (alone.converged, alone.clamped)


def test_the_batch_equals_the_plain_form(
    model: EditableModel, facts: list[EditRequest], together: list[TargetValue]
) -> None:
    want = plain.optimize(model, facts[0], layer=LAYER, contexts=CONTEXTS, config=CONFIG)
    want = want.stopped_at(CONFIG.stop_loss) if min(want.losses) < CONFIG.stop_loss else want
    assert together[0].loss == pytest.approx(want.loss, abs=1e-4)
    assert together[0].steps == want.steps or abs(want.loss - CONFIG.stop_loss) < 1e-3
    assert float((together[0].delta - want.delta).norm()) <= 1e-3 * float(want.delta.norm())
