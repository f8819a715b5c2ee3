"""Linear systems that grow with a lifetime: (A_0 + K_p K_p^T) X = Y, without a d x d solve per edit.

``A_0`` is fixed for one covariance version; past keys K_p arrive in small batches, and leave as their facts are
overwritten. While there are fewer past keys than dimensions the p x p capacitance matrix S = I + K_p^T A_0^-1 K_p is
kept as a Cholesky factor that grows by rows (Woodbury identity); from then on the d x d Gram matrix and a factor
are kept. Either way m keys come or go by a change of rank m. Everything is float64.

Letters: d width, p past keys, m new keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from errata.editing.bases import Base, DenseBase, ProjectedIdentity, ScaledIdentity, cholesky
from errata.editing.columns import Columns
from errata.editing.errors import ErrataError, NumericalError
from errata.editing.forms import CapacitanceForm, GramForm, gram_of

__all__ = [
    "Base",
    "DenseBase",
    "DependentColumnsError",
    "GrowingSystem",
    "ProjectedIdentity",
    "ScaledIdentity",
    "dependent_columns",
    "equality_factor",
    "nearest_orthogonal",
    "null_space",
    "update_factor",
]

_DEPENDENT = 1e-6
"""Keys whose part outside the span of earlier ones has less than this share of their squared length depend on them."""
_WORTH_CLEARING = 8
"""A factor that has reached d columns is cleared of keys that left if they are one in so many or more."""


@dataclass(frozen=True)
class GrowingSystem:
    """A_0 + K_p K_p^T as a value: each change gives a new system that shares what has not changed."""

    form: CapacitanceForm | GramForm
    held: Columns | None
    """K_p (d, p) as the keys came. None: whoever takes one out says what it was, and nothing here grows past d."""

    @classmethod
    def start(cls, base: Base, past: Tensor, width: int) -> GrowingSystem:
        """The system with all ``past`` keys (d, p) at once; it keeps them, so that they can be taken out by number."""
        empty = torch.zeros(width, 0, dtype=torch.float64, device=past.device)
        system = cls(CapacitanceForm.start(base, empty), Columns.of(empty))
        return system.append(past) if past.shape[1] else system

    @classmethod
    def over(cls, base: Base, held: Columns, *, keep: bool) -> GrowingSystem:
        """The system over keys (d, p) that somebody else holds.

        Args:
            keep: hold them here as well when there are d or more.
        """
        empty = torch.zeros(held.height, 0, dtype=torch.float64, device=held.at([]).device)
        system = cls(CapacitanceForm.start(base, empty), held if keep else None)
        if held.count >= held.height:
            return cls(GramForm.start(base, gram_of(held)), system.held)
        form = system.form
        for block in held.blocks():
            form = form.append(base.restrict(block.double()))
        return cls(form, system.held)

    @property
    def base(self) -> Base:
        """A_0."""
        return self.form.base

    @property
    def count(self) -> int:
        """Past keys, where the system holds them."""
        if isinstance(self.form, CapacitanceForm):
            return self.form.past.count
        return self._held().count

    @property
    def past(self) -> Tensor:
        """A copy of K_p (d, p), restricted, float64; of a system that holds its keys."""
        if isinstance(self.form, CapacitanceForm):
            return self.form.past.dense()
        return self.base.restrict(self._held().dense().double())

    @property
    def dense(self) -> bool:
        """Whether a d x d factor is kept: there were d past keys or more."""
        return isinstance(self.form, GramForm)

    def solve(self, right: Tensor) -> Tensor:
        """(A_0 + K_p K_p^T)^-1 right for restricted right (d, m).

        With d keys or more the answer is refined once against A_0 + K_p K_p^T, as changes beside a factor count with
        both signs. A capacitance needs none: what left it is projected out, and is as exact as if it had never come.
        """
        right = right.double()
        first = self.form.solve(right)
        if isinstance(self.form, CapacitanceForm):
            return first
        return first + self.form.solve(right - self.form.multiply(first))

    def append(self, keys: Tensor, held: Columns | None = None) -> GrowingSystem:
        """The system with new past keys (d, m).

        Args:
            held: all past keys before these as they came, of a system that does not keep them.
        """
        new = keys.double()
        form, mine = self.form, self.held
        if isinstance(form, CapacitanceForm):
            width = form.past.height
            if form.size + new.shape[1] >= width and len(form.past.struck) * _WORTH_CLEARING >= width:
                form = form.afresh()
            if form.size + new.shape[1] < width:
                form = form.append(form.base.restrict(new))
            else:
                before = held if held is not None else mine if mine is not None else form.past.compact()
                form = GramForm.start(form.base, gram_of(before.append(keys.to(before.dtype))))
        else:
            form = form.append(new)
        return GrowingSystem(form, None if mine is None else mine.append(keys.to(mine.dtype)))

    def without(self, gone: Sequence[int] | Tensor) -> GrowingSystem:
        """The system without some past keys: their numbers, or the keys (d, m) themselves as they came.

        Raises:
            ErrataError: a key is not among the held ones, or numbers are given where no keys are held.
        """
        if isinstance(self.form, GramForm) and self.held is None:
            if not isinstance(gone, Tensor):
                raise ErrataError("a system of d or more keys does not hold them: give the keys that are to leave")
            return GrowingSystem(self.form.without(gone.double()), None)
        columns = self._columns(gone) if isinstance(gone, Tensor) else list(gone)
        if not columns:
            return self
        held = None if self.held is None else self.held.without(columns)
        if isinstance(self.form, CapacitanceForm):
            return GrowingSystem(self.form.without(columns), held)
        leaving = self._held().at(self._held().places(columns)).double()
        return GrowingSystem(self.form.without(leaving), held)

    def _held(self) -> Columns:
        if self.held is None:
            raise ErrataError("this system holds no past keys: there were d or more, and their Gram matrix says all")
        return self.held

    def _columns(self, keys: Tensor) -> list[int]:
        """Numbers of the held columns that are these keys, each taken once."""
        among = self.held
        if among is None and isinstance(self.form, CapacitanceForm):
            among, keys = self.form.past, self.base.restrict(keys.double())
        among = self._held() if among is None else among
        alive = {place: number for number, place in enumerate(among.places(range(among.count)))}
        taken: list[int] = []
        for number, key in enumerate(keys.to(among.dtype).T):
            numbers = [alive[place] for place in among.find(key) if place in alive]
            free = next((i for i in numbers if i not in taken), None)
            if free is None:
                raise ErrataError(f"key {number} of those to leave is not among the {among.count} past keys")
            taken.append(free)
        return taken

    def drift(self, probe: Tensor) -> float:
        """Relative error |A A^-1 x - x| / |x| on restricted probe columns x (d, m)."""
        x = self.base.restrict(probe.double())
        back = self.form.multiply(self.solve(x))
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
    return torch.cholesky_solve(reach.T, cholesky(core + restricted.T @ reach, "I + K^T A^-1 K"))


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
    return torch.cholesky_solve(reach.T, cholesky(core, "K^T A^-1 K"))


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
