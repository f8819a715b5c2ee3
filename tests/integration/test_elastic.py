"""An estimate while machines come and go."""

from __future__ import annotations

from pathlib import Path

import pytest

from errata.actors.settings import ModelSpec, RayConfig
from tests.helpers.tiny import save_tiny
from tests.integration.harness import PlainEstimator, scenario
from tests.integration.scenarios.elastic import job


@pytest.mark.slow
def test_a_late_machine_is_given_blocks_and_a_lost_ones_go_to_it(tmp_path: Path) -> None:
    # 160 keys wide: sums below 100 KB travel with the answer and never lie on the machine that is lost
    checkpoint = save_tiny(tmp_path / "model", layers=4, inner=160)
    found = scenario("elastic", checkpoint)
    undisturbed = PlainEstimator(RayConfig(), ModelSpec(name=str(checkpoint))).estimate(job(), {})
    # one worked, the other and the further one waited for a machine, as an autoscaler sees it
    assert found["before"] == ["ALIVE", "PENDING_CREATION", "PENDING_CREATION"]
    assert found["came_at"] < found["gone_at"] < 1
    assert found["blocks"]["first"] >= 4
    # the last six at least, and the one that the first machine took with it
    assert found["blocks"]["late"] >= 7 and found["repeated"] >= 1
    assert found["digest"] == undisturbed.covariance.digest
    assert found["tokens"] == undisturbed.covariance.tokens
    assert [tuple(pair) for pair in found["documents"]] == list(undisturbed.documents)
