"""MEMIT in its lifelong form: ``R K^T (lambda C + K_p K_p^T + K K^T)^-1``.

Meng et al. 2023, arXiv:2210.07229, eq. 14; with the keys of all earlier edits K_p as in MOIR, eq. 7.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from errata.editing.covariance import KeyCovariance
from errata.editing.editors.closed_form.locate import LeastSquaresConfig, LocateEditor
from errata.editing.linalg import Base, DenseBase, update_factor
from errata.editing.state import LifelongState


class MemitConfig(LeastSquaresConfig):
    """Settings of MEMIT."""

    retrievable: ClassVar[bool] = True
    type: Literal["memit"] = "memit"


class Memit(LocateEditor):
    """Least squares between new associations and the preserved second moment."""

    config: LeastSquaresConfig

    def base_of(self, covariance: KeyCovariance, layer: int) -> Base:
        moment = covariance.mean(layer)
        unit = moment.shape[0] if self.config.units == "relative" else 1
        matrix = unit * self.config.cov_weight * moment
        return DenseBase(matrix, what=f"lambda * C of layer {layer} ({covariance.tokens} tokens)")

    def right_factor(self, layer: int, keys: Tensor, state: LifelongState, ridge: Tensor | None = None) -> Tensor:
        system = state.systems[layer]
        if not self.config.past_keys:
            width = state.held[layer].height
            system = type(system).start(system.base, torch.zeros(width, 0, dtype=torch.float64), width)
        return update_factor(system, keys.cpu(), ridge)
