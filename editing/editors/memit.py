"""MEMIT in its lifelong form: ``R K^T (lambda C + K_p K_p^T + K K^T)^-1``.

Meng et al. 2023, arXiv:2210.07229, eq. 14; with the keys of all earlier edits K_p as in MOIR, eq. 7.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from editing.covariance import KeyCovariance
from editing.editors.base import EditorConfig
from editing.editors.locate import LocateEditor
from editing.linalg import Base, DenseBase, update_factor
from editing.state import LifelongState


class MemitConfig(EditorConfig):
    """Settings of MEMIT."""

    type: Literal["memit"] = "memit"
    cov_weight: float = Field(15_000.0, gt=0, allow_inf_nan=False)
    """lambda: how strongly old keys are kept; unitless. The papers' grid: 500, 1500, 5000, 15 000, 30 000."""
    past_keys: bool = True
    """Keep the keys of earlier edits (the lifelong form); false is the method as first published."""


class Memit(LocateEditor):
    """Least squares between new associations and the preserved second moment."""

    config: MemitConfig

    def base_of(self, covariance: KeyCovariance, layer: int) -> Base:
        matrix = self.config.cov_weight * covariance.mean(layer)
        return DenseBase(matrix, what=f"lambda * C of layer {layer} ({covariance.tokens} tokens)")

    def right_factor(self, layer: int, keys: Tensor, state: LifelongState) -> Tensor:
        system = state.systems[layer]
        if not self.config.past_keys:
            width = system.past.shape[0]
            system = type(system).start(system.base, torch.zeros(width, 0, dtype=torch.float64), width)
        return update_factor(system, keys.cpu())
