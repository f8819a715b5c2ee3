"""Linear systems that grow with a lifetime: (A_0 + K_p K_p^T) X = Y, without a d x d solve per edit.

``A_0`` is fixed for one covariance version; past keys K_p arrive in small batches and now and then one leaves.
While there are fewer past keys than dimensions the p x p capacitance matrix S = I + K_p^T A_0^-1 K_p is kept as a
Cholesky factor that grows by rows (Woodbury identity); from then on the d x d inverse is kept and changed by
rank-m updates. Everything is float64.

Letters: d width, p past keys, m new keys.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from errata.editing.errors import NumericalError

MAX_DRIFT = 1e-9
"""An inverse that answers its newest keys with a larger relative error is computed afresh."""
_REMEMBERED = 256
"""Right sides of at most so many columns are kept with their answer."""
_DEPENDENT = 1e-6
"""Keys whose part outside the span of earlier ones has less than this share of their squared length depend on them."""


class Base(ABC):
    """A fixed positive definite A_0, or one restricted to a subspace, and how to solve with it."""

    @abstractmethod
    def solve(self, right: Tensor) -> Tensor:
        """A_0^-1 right for right (d, m) float64."""

    @abstractmethod
    def multiply(self, x: Tensor) -> Tensor:
        """A_0 x for x (d, m) float64."""

    def restrict(self, keys: Tensor) -> Tensor:
        """Keys (d, m) as the system sees them; a projection where the system lives in a subspace."""
        return keys


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
        self._last: tuple[Tensor, Tensor] | None = None

    def solve(self, right: Tensor) -> Tensor:
        # a batch's keys are solved for twice, for its update and when they join the system
        if self._last is not None and torch.equal(self._last[0], right):
            return self._last[1]
        # two triangular solves read the factor where it lies; cholesky_solve copies all of it first
        half = torch.linalg.solve_triangular(self._factor, right, upper=False)
        answer = torch.linalg.solve_triangular(self._factor.mT, half, upper=True)
        if right.shape[1] <= _REMEMBERED:
            self._last = (right.clone(), answer)
        return answer

    def multiply(self, x: Tensor) -> Tensor:
        return self.matrix @ x


class ProjectedIdentity(Base):
    """A_0 = c I on the span left by an orthogonal projector P, held by the thinner of its two bases.

    ``P = U U^T`` or ``P = I - V V^T``; solving gives ``P right / c``.
    """

    def __init__(self, scale: float, basis: Tensor, *, complement: bool) -> None:
        self.scale, self.basis, self.complement = scale, basis.double(), complement

    def restrict(self, keys: Tensor) -> Tensor:
        inside = self.basis @ (self.basis.T @ keys)
        return keys - inside if self.complement else inside

    def solve(self, right: Tensor) -> Tensor:
        return self.restrict(right) / self.scale

    def multiply(self, x: Tensor) -> Tensor:
        return self.restrict(x) * self.scale


class ScaledIdentity(Base):
    """A_0 = c I."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def solve(self, right: Tensor) -> Tensor:
        return right / self.scale

    def multiply(self, x: Tensor) -> Tensor:
        return x * self.scale


@dataclass(frozen=True)
class GrowingSystem:
    """A_0 + K_p K_p^T as a value: each change gives a new system that shares what has not changed."""

    base: Base
    past: Tensor
    """K_p (d, p), restricted, float64."""
    solved: Tensor
    """A_0^-1 K_p (d, p)."""
    factor: Tensor | None
    """Lower Cholesky factor of S (p, p), or None once the inverse is kept."""
    inverse: Tensor | None = None
    """(A_0 + K_p K_p^T)^-1 (d, d), kept when p has reached d."""

    @classmethod
    def start(cls, base: Base, past: Tensor, width: int) -> GrowingSystem:
        """The system with all ``past`` keys (d, p) at once."""
        empty = torch.zeros(width, 0, dtype=torch.float64, device=past.device)
        system = cls(base, empty, empty, torch.zeros(0, 0, dtype=torch.float64, device=past.device))
        return system.append(past) if past.shape[1] else system

    def solve(self, right: Tensor) -> Tensor:
        """(A_0 + K_p K_p^T)^-1 right for right (d, m)."""
        right = right.double()
        if self.inverse is not None:
            return self.inverse @ right
        first = self.base.solve(right)
        if not self.past.shape[1]:
            return first
        assert self.factor is not None
        return first - self.solved @ torch.cholesky_solve(self.past.T @ first, self.factor)

    def append(self, keys: Tensor) -> GrowingSystem:
        """The system with new past keys (d, m)."""
        new = self.base.restrict(keys.double())
        if self.inverse is not None:
            reach = self.inverse @ new
            core = torch.eye(new.shape[1], dtype=torch.float64, device=new.device) + new.T @ reach
            inverse = self.inverse - reach @ torch.cholesky_solve(reach.T, _cholesky(core, "I + K^T A^-1 K"))
            past = torch.cat([self.past, new], dim=1)
            grown = replace(self, past=past, inverse=0.5 * (inverse + inverse.T))
            # rank-m updates of an inverse gather rounding errors; the newest keys show them at no great cost
            return grown if grown.drift(keys) <= MAX_DRIFT else self._dense(past)
        solved = self.base.solve(new)
        past = torch.cat([self.past, new], dim=1)
        if past.shape[1] >= past.shape[0]:
            return self._dense(past)
        assert self.factor is not None
        size, extra = self.past.shape[1], new.shape[1]
        corner = torch.eye(extra, dtype=torch.float64, device=new.device) + new.T @ solved
        factor = torch.zeros(size + extra, size + extra, dtype=torch.float64, device=new.device)
        factor[:size, :size] = self.factor
        if size:
            side = torch.linalg.solve_triangular(self.factor, self.past.T @ solved, upper=False)
            factor[size:, :size] = side.T
            corner = corner - side.T @ side
        factor[size:, size:] = _cholesky(corner, "capacitance of the past keys")
        return replace(self, past=past, solved=torch.cat([self.solved, solved], dim=1), factor=factor)

    def without(self, columns: list[int]) -> GrowingSystem:
        """The system without the past keys at ``columns``; computed afresh, as this is rare."""
        gone = set(columns)
        keep = [i for i in range(self.past.shape[1]) if i not in gone]
        return GrowingSystem.start(self.base, self.past[:, keep], self.past.shape[0])

    def _dense(self, past: Tensor) -> GrowingSystem:
        width = past.shape[0]
        eye = torch.eye(width, dtype=torch.float64, device=past.device)
        first, solved = self.base.solve(eye), self.base.solve(past)
        core = torch.eye(past.shape[1], dtype=torch.float64, device=past.device) + past.T @ solved
        inverse = first - solved @ torch.cholesky_solve(solved.T, _cholesky(core, "capacitance of the past keys"))
        return GrowingSystem(self.base, past, past[:, :0], None, 0.5 * (inverse + inverse.T))

    def drift(self, probe: Tensor) -> float:
        """Relative error |A A^-1 x - x| / |x| on restricted probe columns x (d, m)."""
        x = self.base.restrict(probe.double())
        answer = self.solve(x)
        back = self.base.multiply(answer) + self.past @ (self.past.T @ answer)
        return float((back - x).norm() / x.norm().clamp_min(1e-300))


def update_factor(system: GrowingSystem, keys: Tensor, ridge: Tensor | None = None) -> Tensor:
    """Right factor (m, d) of R E^-1 K^T (A_0 + K_p K_p^T + K E^-1 K^T)^-1, for new keys K (d, m), E = diag(ridge).

    By the push-through identity it is (E + K^T A^-1 K)^-1 (A^-1 K)^T with A the system as it stands. With a ridge (m,)
    below 1 (the default) what is kept weighs less against that edit, so that more of its residual is stored.
    """
    restricted = system.base.restrict(keys.double())
    reach = system.solve(restricted)
    core = torch.eye(keys.shape[1], dtype=torch.float64, device=keys.device)
    if ridge is not None:
        core = torch.diag(ridge.to(core))
    return torch.cholesky_solve(reach.T, _cholesky(core + restricted.T @ reach, "I + K^T A^-1 K"))


def equality_factor(system: GrowingSystem, keys: Tensor, damping: float = 0.0, ridge: Tensor | None = None) -> Tensor:
    """Right factor (m, d) of R (K^T A^-1 K + e I)^-1 K^T A^-1 with A the system as it stands and e the damping.

    With a ridge (m,) each edit's damping is multiplied by its own. Undamped it maps key i exactly to unit vector i.

    Raises:
        DependentColumnsError: undamped, and keys depend linearly on each other.
    """
    restricted = system.base.restrict(keys.double())
    reach = system.solve(restricted)
    core = restricted.T @ reach
    if damping:
        eye = torch.eye(core.shape[0], dtype=torch.float64, device=core.device)
        core = core + damping * (eye if ridge is None else torch.diag(ridge.to(eye)))
    elif dependent := dependent_columns(core):
        raise DependentColumnsError(dependent)
    return torch.cholesky_solve(reach.T, _cholesky(core, "K^T A^-1 K"))


class DependentColumnsError(NumericalError):
    """Columns that depend linearly on others; ``columns`` names for each those it depends on."""

    def __init__(self, columns: dict[int, list[int]]) -> None:
        super().__init__(f"linearly dependent columns: {columns}")
        self.columns = columns


def dependent_columns(gram: Tensor) -> dict[int, list[int]]:
    """Columns, by their Gram matrix (m, m), that depend on earlier independent ones; and on which."""
    sizes = gram.diagonal().clamp_min(0).sqrt()
    scale = torch.where(sizes > 0, sizes, torch.ones_like(sizes))
    cosines = gram / scale[:, None] / scale[None, :]
    independent: list[int] = []
    dependent: dict[int, list[int]] = {}
    factor = torch.zeros_like(cosines)
    for j in range(cosines.shape[0]):
        n = len(independent)
        side = torch.linalg.solve_triangular(factor[:n, :n], cosines[independent, j][:, None], upper=False)
        rest = float(cosines[j, j] - side.square().sum())
        if rest >= _DEPENDENT:
            factor[n, :n], factor[n, n] = side.squeeze(1), rest**0.5
            independent.append(j)
        else:
            shares = torch.linalg.solve_triangular(factor[:n, :n].T, side, upper=True).squeeze(1).abs()
            dependent[j] = [i for i, share in zip(independent, shares.tolist(), strict=True) if share > 1e-2]
    return dependent


def nearest_orthogonal(matrix: Tensor) -> Tensor:
    """The orthogonal Q (d, d) with the largest trace of Q^T M: U V^T of the singular value decomposition of M."""
    left, _, right = torch.linalg.svd(matrix.double())
    nearest: Tensor = left @ right
    return nearest


def _cholesky(matrix: Tensor, what: str) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(0.5 * (matrix + matrix.T))
    if int(info) or not bool(torch.isfinite(factor).all()):
        raise NumericalError(f"{what} could not be factored: leading minor {int(info)} of {matrix.shape[0]}")
    return factor


def null_space(matrix: Tensor, threshold: float) -> tuple[Tensor, bool, int]:
    """Span of the eigenvectors of a symmetric matrix (d, d) with eigenvalues below ``threshold``.

    Returns:
        Orthonormal columns, whether they span the complement instead, and the dimension of the null space. Of the
        two bases the thinner is returned.
    """
    values, vectors = torch.linalg.eigh(matrix.double())
    free = int((values < threshold).sum())
    # eigenvalues ascend: the first `free` columns are the null space
    if free <= matrix.shape[0] - free:
        return vectors[:, :free].contiguous(), False, free
    return vectors[:, free:].contiguous(), True, free
