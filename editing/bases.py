"""The fixed part A_0 of a lifelong linear system: a second moment, or a ridge on a subspace.

Everything is float64. Letters: d width, m right sides, r rank of a basis.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from errata.editing.errors import NumericalError

REMEMBERED = 256
"""Right sides of at most so many columns are kept with their answer."""


class Base(ABC):
    """A fixed positive definite A_0, or one restricted to a subspace, and how to solve with it."""

    @abstractmethod
    def solve(self, right: Tensor) -> Tensor:
        """A_0^-1 right for right (d, m) float64."""

    @abstractmethod
    def multiply(self, x: Tensor) -> Tensor:
        """A_0 x for x (d, m) float64."""

    @abstractmethod
    def completed(self, width: int) -> Tensor:
        """A new positive definite matrix (d, d) float64 that equals A_0 on the subspace and keeps it apart from the
        rest."""

    def restrict(self, keys: Tensor) -> Tensor:
        """Keys (d, m) as the system sees them; a projection where the system lives in a subspace."""
        return keys

    def add_restricted(self, full: Tensor, gram: Tensor) -> None:
        """Add P G P of a symmetric G (d, d) to ``full`` (d, d) in place, without a third matrix of that size."""
        full += gram


class DenseBase(Base):
    """A_0 given as a symmetric positive definite matrix (d, d), factored once."""

    def __init__(self, matrix: Tensor, *, what: str) -> None:
        self.matrix = matrix.double()
        factor, info = torch.linalg.cholesky_ex(self.matrix)
        if int(info) or not bool(torch.isfinite(factor).all()):
            raise NumericalError(
                f"{what} is not positive definite: leading minor {int(info)} of {matrix.shape[0]}; "
                "estimate it from more tokens than it has rows"
            )
        self._factor = factor
        self._last: tuple[tuple[Tensor, Tensor], ...] = ()

    def solve(self, right: Tensor) -> Tensor:
        # a batch's keys are solved for twice, for its update and when they join the system; a residual may lie between
        for known, answer in self._last:
            if torch.equal(known, right):
                return answer
        # two triangular solves read the factor where it lies; cholesky_solve copies all of it first
        half = torch.linalg.solve_triangular(self._factor, right, upper=False)
        answer = torch.linalg.solve_triangular(self._factor.mT, half, upper=True)
        if right.shape[1] <= REMEMBERED:
            self._last = (*self._last[-1:], (right.clone(), answer))
        return answer

    def multiply(self, x: Tensor) -> Tensor:
        return self.matrix @ x

    def completed(self, width: int) -> Tensor:
        return self.matrix.clone()


class ProjectedIdentity(Base):
    """A_0 = c I on the span left by an orthogonal projector P, held by the thinner of its two bases.

    ``P = U U^T`` or ``P = I - V V^T``; solving gives ``P right / c``.
    """

    def __init__(self, scale: float, basis: Tensor, *, complement: bool) -> None:
        self.scale, self.basis, self.complement = scale, basis.double(), complement

    def restrict(self, keys: Tensor) -> Tensor:
        inside = self.basis @ (self.basis.T @ keys)
        return keys - inside if self.complement else inside

    def add_restricted(self, full: Tensor, gram: Tensor) -> None:
        side = self.basis.T @ gram
        core = side @ self.basis
        if not self.complement:
            full.addmm_(self.basis @ core, self.basis.T)
            return
        # (I - V V^T) G (I - V V^T) term by term
        full += gram
        full.addmm_(self.basis, side, alpha=-1.0)
        full.addmm_(side.T, self.basis.T, alpha=-1.0)
        full.addmm_(self.basis @ core, self.basis.T)

    def solve(self, right: Tensor) -> Tensor:
        return self.restrict(right) / self.scale

    def multiply(self, x: Tensor) -> Tensor:
        return self.restrict(x) * self.scale

    def completed(self, width: int) -> Tensor:
        return _scaled_eye(self.scale, width, self.basis.device)


class ScaledIdentity(Base):
    """A_0 = c I."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def solve(self, right: Tensor) -> Tensor:
        return right / self.scale

    def multiply(self, x: Tensor) -> Tensor:
        return x * self.scale

    def completed(self, width: int) -> Tensor:
        return _scaled_eye(self.scale, width, torch.device("cpu"))


def _scaled_eye(scale: float, width: int, device: torch.device) -> Tensor:
    matrix = torch.zeros(width, width, dtype=torch.float64, device=device)
    matrix.diagonal().fill_(scale)
    return matrix


def cholesky(matrix: Tensor, what: str) -> Tensor:
    """Lower Cholesky factor of the symmetric part of a matrix.

    Raises:
        NumericalError: it is not positive definite; ``what`` is named.
    """
    factor, info = torch.linalg.cholesky_ex(0.5 * (matrix + matrix.T))
    if int(info) or not bool(torch.isfinite(factor).all()):
        raise NumericalError(f"{what} could not be factored: leading minor {int(info)} of {matrix.shape[0]}")
    return factor
