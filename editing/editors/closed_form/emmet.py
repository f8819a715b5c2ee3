"""EMMET: every new association of a batch holds exactly, and the preserved second moment changes the least.

``R (K^T A^-1 K + e I)^-1 K^T A^-1`` with ``A = w C + ridge I``. Gupta et al. 2024, arXiv:2403.14236; MOIR,
proposition 1. With damping e it is MEMIT with lambda = e on the same A.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from errata.editing.covariance import KeyCovariance
from errata.editing.editors.base import LocateConfig
from errata.editing.editors.closed_form.locate import LocateEditor
from errata.editing.linalg import Base, DenseBase, equality_factor
from errata.editing.state import LifelongState


class EmmetConfig(LocateConfig):
    """Settings of EMMET."""

    retrievable: ClassVar[bool] = True
    type: Literal["emmet"] = "emmet"
    cov_weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    """w: weight of the second moment in A; without damping, ridge and past keys it has no effect."""
    ridge: float = Field(0.0, ge=0)
    """Added to the diagonal of A."""
    damping: float = Field(0.0, ge=0)
    """e: 0 hits every target exactly, and refuses requests whose keys depend on others of their batch. The published
    code has .1 for batches."""
    units: Literal["absolute", "relative"] = "absolute"
    """``relative``: ``ridge`` counts in the mean eigenvalue of ``w C``, ``damping`` in that of ``k^T (w C)^-1 k`` over
    what is preserved. ``absolute``: as published."""
    past_keys: bool = False
    """Add the keys of earlier edits to A (a lifelong form; the published method has none)."""


class Emmet(LocateEditor):
    """Equality-constrained least squares."""

    config: EmmetConfig

    @property
    def keeps_past_keys(self) -> bool:
        return self.config.past_keys

    def base_of(self, covariance: KeyCovariance, layer: int) -> Base:
        moment = self.config.cov_weight * covariance.mean(layer)
        unit = float(moment.trace()) / moment.shape[0] if self.config.units == "relative" else 1.0
        ridge = unit * self.config.ridge * torch.eye(moment.shape[0], dtype=torch.float64)
        return DenseBase(moment + ridge, what=f"w * C + ridge of layer {layer} ({covariance.tokens} tokens)")

    def right_factor(self, layer: int, keys: Tensor, state: LifelongState, ridge: Tensor | None = None) -> Tensor:
        unit = keys.shape[0] / self.config.cov_weight if self.config.units == "relative" else 1.0
        return equality_factor(state.systems[layer], keys.cpu(), unit * self.config.damping, ridge)
