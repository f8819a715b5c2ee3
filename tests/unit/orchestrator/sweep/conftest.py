"""A sweep over four runs of a model that nobody loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from errata.orchestrator.experiments.config import Sweep, load_sweep

RUN: dict[str, Any] = {
    "model": {"name": "nowhere"},
    "editor": {"type": "memit", "layers": [1, 2]},
    "stream": {"path": "facts.jsonl"},
    "covariance": {"tokens": 100},
    "evaluation": {"held_out": None},
}
AXES: dict[str, Any] = {
    "method": {
        "MEMIT": {"editor.type": "memit"},
        "AlphaEdit": {"editor": {"type": "alphaedit", "tau": 0.5}},
    },
    "seed": [0, 1],
}


def write_sweep(directory: Path, **changes: Any) -> Path:
    """A sweep's file with some keys changed; None leaves one out."""
    data = {"name": "demo", "run": RUN, "axes": AXES, **changes}
    path = directory / "sweep.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in data.items() if v is not None}, sort_keys=False))
    return path


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Two methods, two seeds."""
    return load_sweep(str(write_sweep(tmp_path)))
