"""What every test run has: markers from the directory, one thread a process, no network, shared fixtures."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

TESTS = Path(__file__).parent
ROOT = TESTS.parent

# Before any test module imports torch, transformers, mlflow or ray; processes they start inherit it.
os.environ.update(
    {
        "OMP_NUM_THREADS": "1",  # on few cores more threads are slower, and sums would depend on their number
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "NO_COLOR": "1",
        "COLUMNS": "200",  # messages are compared as text: keep them on one line
    }
)
# A developer's own servers are never the ones under test.
for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID", "RAY_ADDRESS", "FORCE_COLOR"):
    os.environ.pop(name, None)

# no test fails for how long an example took: the machine may be busy
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

TIERS = ("unit", "integration", "model")
ROOMS = ("editing", "retrieval", "evaluation", "actors", "orchestrator")


def bare_rooms() -> list[str]:
    """Modules of this process that were imported by a bare room name: there are two copies of their classes."""
    return sorted(name for name in sys.modules if name.split(".")[0] in ROOMS)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Whatever the tests imported, none of it was imported by a bare room name."""
    if bare := bare_rooms():
        raise pytest.UsageError(f"imported by bare room names, which makes two copies of every class: {bare}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test its tier's marker, and skip `gpu` tests where there is none."""
    for item in items:
        if item.path.is_relative_to(TESTS):
            tier = item.path.relative_to(TESTS).parts[0]
            if tier in TIERS:
                item.add_marker(tier)
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if wanting:
        import torch

        if not torch.cuda.is_available():
            for item in wanting:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The directory of the papers' data; skips where it is absent."""
    given = os.environ.get("ERRATA_SHARED_DATA")
    directory = Path(given) if given else ROOT.parent / "shared" / "data"
    if not directory.is_dir():
        pytest.skip(f"the papers' data are not at {directory} (set ERRATA_SHARED_DATA)")
    return directory


def _fetched(name: str) -> Path:
    from errata.editing.checkpoint.fetch import fetch
    from errata.editing.errors import UserError

    try:
        return fetch(name)
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Directory of SmolLM2-135M-Instruct in float32; skips where it is neither cached nor obtainable."""
    return _fetched("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Directory of the embedder all-MiniLM-L6-v2; skips where it is neither cached nor obtainable."""
    return _fetched("all-minilm-l6-v2")
