"""Covariances when a whole machine goes, and the sums of finished blocks with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from errata.actors.settings import ModelSpec, RayConfig
from tests.helpers.tiny import save_tiny
from tests.integration.harness import PlainEstimator, scenario
from tests.integration.scenarios.node_loss import job


@pytest.mark.slow
def test_what_was_lost_with_a_machine_is_done_again_and_the_result_is_the_same(tmp_path: Path) -> None:
    # 160 keys wide: sums below 100 KB travel with the answer and never lie on the machine that is lost
    checkpoint = save_tiny(tmp_path / "model", layers=4, inner=160)
    found = scenario("node_loss", checkpoint)
    undisturbed = PlainEstimator(RayConfig(), ModelSpec(name=str(checkpoint))).estimate(job(), {})
    assert found["removed_at"] and found["removed_at"][0] < 1
    # the blocks that the machine held, and not only the ones its workers were at
    assert found["repeated"] >= 6
    assert found["digest"] == undisturbed.covariance.digest
    assert found["tokens"] == undisturbed.covariance.tokens
    assert [tuple(pair) for pair in found["documents"]] == list(undisturbed.documents)
