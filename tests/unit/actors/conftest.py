"""A tiny checkpoint on the disk, as an actor loads it."""

from __future__ import annotations

import pytest

from errata.actors.settings import ModelSpec, RoleConfig
from tests.helpers.tiny import save_tiny


@pytest.fixture(scope="session")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """A random three-layer model."""
    return ModelSpec(name=str(save_tiny(tmp_path_factory.mktemp("model") / "tiny", layers=3)))


@pytest.fixture
def role() -> RoleConfig:
    return RoleConfig()
