"""AlphaEdit: updates confined to directions that preserved keys hardly use.

``R K^T P (K_p K_p^T P + K K^T P + l2 I)^-1`` with P the projector on the eigenvectors of C whose eigenvalue is
below ``tau``. Fang et al. 2025, arXiv:2410.02355; MOIR, eq. 8. With ``Kt = P K`` this is
``R Kt^T (Kt_p Kt_p^T + Kt Kt^T + l2 I)^-1``, symmetric positive definite, and starts from ``I / l2``: no d x d matrix
is kept, only the thinner basis of P and the past keys.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from errata.editing.covariance import KeyCovariance
from errata.editing.editors.base import LocateConfig
from errata.editing.editors.closed_form.locate import LocateEditor
from errata.editing.errors import UserError
from errata.editing.linalg import Base, ProjectedIdentity, null_space, update_factor
from errata.editing.state import LifelongState


class AlphaEditConfig(LocateConfig):
    """Settings of AlphaEdit."""

    retrievable: ClassVar[bool] = True
    type: Literal["alphaedit"] = "alphaedit"
    tau: float = Field(2e-2, gt=0)
    """Eigenvalues of C below this span the space that may change. The papers' grid: 2e-2, 5e-3, 1e-3, 5e-4."""
    l2: float = Field(10.0, gt=0)
    """Ridge: 10 in the authors' code, 1 in the MOIR paper; 10 is better for sequences, 1 for single edits."""
    units: Literal["absolute", "relative"] = "absolute"
    """``relative``: ``tau`` counts in the mean eigenvalue of C, and ``l2`` in the mean energy ``|P k|^2`` of the
    preserved keys in the space that may change: both mean the same on every model. ``absolute``: as published."""


class AlphaEdit(LocateEditor):
    """Least squares on new associations within the null space of the preserved keys."""

    config: AlphaEditConfig

    def base_of(self, covariance: KeyCovariance, layer: int) -> Base:
        moment = covariance.mean(layer)
        relative = self.config.units == "relative"
        tau = self.config.tau * (float(moment.trace()) / moment.shape[0] if relative else 1.0)
        basis, complement, free = null_space(moment, tau)
        if free == 0:
            raise UserError(
                f"editor.tau {self.config.tau} leaves no direction free at layer {layer}; "
                "it must be above the smallest eigenvalue of the covariance"
            )
        l2 = self.config.l2
        if relative:
            inside = float((basis * (moment @ basis)).sum())
            l2 *= float(moment.trace()) - inside if complement else inside
        return ProjectedIdentity(l2, basis, complement=complement)

    def right_factor(self, layer: int, keys: Tensor, state: LifelongState, ridge: Tensor | None = None) -> Tensor:
        return update_factor(state.systems[layer], keys.cpu(), ridge)
