"""What the tests of this room share."""

from __future__ import annotations

from tests.helpers.editing import llama, requests, spread_covariance, tiny

__all__ = ["llama", "requests", "spread_covariance", "tiny"]
