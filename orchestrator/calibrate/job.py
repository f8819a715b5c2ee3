"""What a calibration is asked for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Calibration:
    """What is asked for."""

    model: str
    editor: str = "alphaedit"
    minutes: float = 45.0
    dtype: str = "float32"
    tokens: int = 4096
    """Self-generated tokens behind the covariance that trials preserve."""
    seed: int = 0
