"""A tiny checkpoint, a stream of a dozen facts, one local Ray for all tests of this tier."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.tiny import save_tiny
from tests.integration.harness import Outcome, PlainCluster, Weights, config, facts, go, outcome, write_stream


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a random four-layer model; no test writes into it."""
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny", layers=4)


@pytest.fixture(scope="session")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dozen facts as JSON Lines."""
    return write_stream(tmp_path_factory.mktemp("stream") / "facts.jsonl", facts())


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One Ray on this machine, with room for every actor a test makes. No test ends it."""
    import ray

    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def undisturbed(
    tiny_checkpoint: Path, stream: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Outcome, Weights, str]:
    """What the run comes to when nothing happens to it and nothing is distributed: journal, weights, memory digest."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    weights = go(config(tiny_checkpoint, stream), output)
    memory = PlainCluster.last.memory
    assert memory is not None
    return outcome(output), weights, memory.digest()
