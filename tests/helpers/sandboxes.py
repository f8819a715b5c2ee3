"""Sandboxes of both strengths, where this machine can have them."""

from __future__ import annotations

import pytest

from errata.editing.errors import UserError
from errata.evaluation.preservation.sandbox import Sandbox, SandboxConfig, Strength


def sandbox_of(limits: SandboxConfig, strength: Strength) -> Sandbox:
    """A sandbox of that strength; the test is skipped with the reason where there is none."""
    try:
        return Sandbox(limits.model_copy(update={"strength": strength}))
    except UserError as error:
        pytest.skip(str(error))
