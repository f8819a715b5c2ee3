"""Shared workers answer whatever workers of their own answer."""

from __future__ import annotations

from typing import Any

from errata.actors.evaluation import EvaluationActor
from errata.actors.shared import SharedActor


def calls_of(shell: Any) -> set[str]:
    return {name for name in vars(shell.__ray_metadata__.modified_class) if not name.startswith("_")}


def test_a_shared_worker_has_every_call_of_an_evaluator() -> None:
    """Where evaluation has no processes of its own, whoever generates is asked the same things."""
    wanted = calls_of(EvaluationActor)
    assert "free_texts" in wanted and "evaluate" in wanted
    assert wanted <= calls_of(SharedActor), f"missing: {sorted(wanted - calls_of(SharedActor))}"
