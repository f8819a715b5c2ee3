"""The sweep of the unit tests."""

from __future__ import annotations

from tests.unit.orchestrator.experiments.conftest import sweep

__all__ = ["sweep"]
