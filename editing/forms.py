"""The two forms of A_0 + K_p K_p^T: a capacitance matrix while keys are few, a Gram matrix from then on.

Both are values, and both take keys in and out by updates of the rank of the change. When one is computed afresh is
decided by counts alone, never by a comparison of floats, so that a replay takes the same way.

Letters: d width, p past keys, g keys that have left and are still part of a factor, m new keys, n columns of a change.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from errata.editing.bases import REMEMBERED, Base, cholesky
from errata.editing.columns import HIGH, Columns, Grid, Panels
from errata.editing.errors import NumericalError

_FEW_GONE = 64
"""A factor is not computed afresh for fewer removals than this."""
_GONE_SHARE = 4
"""... nor for fewer than one in so many of its columns: the work is then O(d p) for each key that left."""
_BESIDE_SHARE, _FEW_BESIDE = 16, 8
"""Columns of change that stand beside a dense factor before it is computed afresh: one in so many of d, or the few."""


class _Reach:
    """What a form found on the way to its last solution: a batch's keys are solved for twice, for the update and when
    they join. Of a value only a memory; whoever does not find its right side here computes the same bits."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, Tensor] | None = None

    def keep(self, right: Tensor, half: Tensor) -> None:
        """Remember L^-1 K^T A_0^-1 right (p, m) of right (d, m)."""
        self._last = (right.clone(), half) if right.shape[1] <= REMEMBERED else None

    def found(self, right: Tensor) -> Tensor | None:
        """It, where it is that of these columns, laid out alike."""
        if self._last is None or self._last[0].stride() != right.stride() or not torch.equal(self._last[0], right):
            return None
        return self._last[1]


@dataclass(frozen=True)
class CapacitanceForm:
    """S = I + K^T A_0^-1 K of all keys that were appended, and a projection for those that have left.

    With S = L L^T and Y = L^-1 E for the unit vectors E of the keys that have left, the system without them solves
    S t = b on the span that t_E = 0 leaves: ``t = L^-T (I - Y (Y^T Y)^-1 Y^T) L^-1 b``. Taking a key out is one column
    more of Y, O(p^2); appending keys adds rows to L and Y.
    """

    base: Base
    past: Columns
    """All keys (d, p), restricted, float64; what has left is struck out."""
    solved: Columns
    """A_0^-1 of them (d, p)."""
    factor: Panels
    """L (p, p)."""
    gone: Grid
    """Y (p, g)."""
    cross: Tensor
    """Y^T Y (g, g) of high keys, as computing it takes O(p g^2); (0, 0) below, where every solve computes it."""
    _reach: _Reach = field(default_factory=_Reach, init=False, repr=False, compare=False)

    @classmethod
    def start(cls, base: Base, like: Tensor) -> CapacitanceForm:
        """No keys; ``like`` is any float64 tensor (d, 0)."""
        columns = Columns.of(like)
        none = like.new_zeros(0, 0)
        return cls(base, columns, columns, Panels.empty(like), Grid.of(none), none)

    @property
    def changed(self) -> bool:
        """Whether keys have left since it was computed afresh."""
        return self.gone.shape[1] > 0

    @property
    def size(self) -> int:
        """Columns of the factor, those of keys that have left included."""
        return self.past.total

    def append(self, new: Tensor) -> CapacitanceForm:
        """With restricted keys (d, m)."""
        form, at = self, 0
        while at < new.shape[1]:
            take = min(form.factor.room, new.shape[1] - at)
            # whole as it came where it fits: its answer is remembered by the base
            form = form._append(new if take == new.shape[1] else new[:, at : at + take])
            at += take
        return form

    def _append(self, new: Tensor) -> CapacitanceForm:
        solved = self.base.solve(new)
        corner = torch.eye(new.shape[1], dtype=torch.float64, device=new.device) + new.T @ solved
        side = new.new_zeros(0, new.shape[1])
        if self.size:
            known = self._reach.found(new)
            side = self.factor.forward(self.past.tdot(solved)) if known is None else known
            corner = corner - side.T @ side
        corner = cholesky(corner, "capacitance of the past keys")
        gone = self.gone
        if self.changed:
            rows = -torch.linalg.solve_triangular(corner, side.T @ gone.view(), upper=False)
        else:
            rows = new.new_zeros(new.shape[1], 0)
        return replace(
            self,
            past=self.past.append(new),
            solved=self.solved.append(solved),
            factor=self.factor.append(side.T, corner),
            gone=gone.rows(rows),
            cross=torch.addmm(self.cross, rows.T, rows) if self._keeps_cross and self.changed else self.cross,
        )

    def without(self, columns: list[int]) -> CapacitanceForm:
        """Without the keys at these places, counted among those that are held."""
        places = self.past.places(columns)
        struck = self.past.struck.union(places)
        if len(struck) > max(_FEW_GONE, self.size // _GONE_SHARE):
            return replace(self, past=_struck(self.past, struck)).afresh()
        unit = torch.zeros(self.size, len(places), dtype=torch.float64, device=self.gone.view().device)
        unit[places, range(len(places))] = 1.0
        more, cross = self.factor.forward(unit), self.cross
        if self._keeps_cross:
            beside, corner = self.gone.view().T @ more, more.T @ more
            cross = torch.cat([torch.cat([cross, beside], dim=1), torch.cat([beside.T, corner], dim=1)])
        return replace(self, past=_struck(self.past, struck), gone=self.gone.columns(more), cross=cross)

    @property
    def _keeps_cross(self) -> bool:
        return self.past.height > HIGH

    def afresh(self) -> CapacitanceForm:
        """The same system with nothing but the keys that are held."""
        form = CapacitanceForm.start(self.base, self.past.at([]))
        for block in self.past.blocks():
            form = form.append(block)
        return form

    def solve(self, right: Tensor) -> Tensor:
        """One solve, unrefined."""
        first = self.base.solve(right)
        if not self.size:
            return first
        inner = self.past.tdot(first)
        if not self.changed and self.factor.whole:
            return first - self.solved.dot(self.factor.solve(inner))
        half, y = self.factor.forward(inner), self.gone.view()
        self._reach.keep(right, half)
        if not self.changed:
            return first - self.solved.dot(self.factor.backward(half))
        cross = self.cross if self._keeps_cross else y.T @ y
        share = torch.cholesky_solve(y.T @ half, cholesky(cross, "inverse capacitance of the keys that left"))
        answer = self.factor.backward(half - y @ share)
        answer[sorted(self.past.struck)] = 0.0
        return first - self.solved.dot(answer)

    def multiply(self, x: Tensor) -> Tensor:
        """(A_0 + K_p K_p^T) x."""
        inner = self.past.tdot(x)
        if self.past.struck:
            inner[sorted(self.past.struck)] = 0.0
        return self.base.multiply(x) + self.past.dot(inner)

    def tensors(self) -> dict[str, Tensor]:
        """By name, for a file."""
        named = {"past": self.past.whole(), "solved": self.solved.whole()}
        named |= {f"factor.{i}": panel for i, panel in enumerate(self.factor.tensors())}
        if self.changed:
            named["struck"] = torch.tensor(sorted(self.past.struck), dtype=torch.int64)
            named["gone"] = self.gone.view().clone()
            if self._keeps_cross:
                named["cross"] = self.cross.clone()
        return named

    @classmethod
    def restored(cls, base: Base, tensors: dict[str, Tensor]) -> CapacitanceForm:
        """What ``tensors`` gave, or what releases before 0.2 gave: one whole factor, and no key that has left."""
        past, struck = tensors["past"], tensors.get("struck")
        if "factor" in tensors:
            factor = Panels.split(tensors["factor"])
        else:
            names = sorted((name for name in tensors if name.startswith("factor.")), key=lambda n: int(n[7:]))
            factor = Panels.of([tensors[name] for name in names], past[:0, :0])
        gone = tensors.get("gone", past.new_zeros(past.shape[1], 0))
        columns = Columns.of(past, [] if struck is None else struck.tolist())
        high = columns.height > HIGH
        cross = tensors.get("cross", gone.T @ gone) if high else past.new_zeros(0, 0)
        return cls(base, columns, Columns.of(tensors["solved"]), factor, Grid.of(gone), cross)


def _struck(columns: Columns, struck: frozenset[int]) -> Columns:
    """The columns with others struck out; they stay where they are, as the factor needs them there."""
    return Columns(columns._blocks, columns.total, columns._like, struck)


@dataclass(frozen=True)
class GramForm:
    """A Cholesky factor of A_0 + K K^T, and the Gram matrix K K^T; nothing here grows with the number of edits.

    The newest changes stand beside both as W D W^T with D = +-1, (d, n), and count by the Woodbury identity. When they
    are a sixteenth of d columns they are added to the Gram matrix, and the factor is computed afresh from it: 5 d^2
    operations for each column, and no error is handed on. (An inverse that is changed by rank-m updates costs as much
    and gathers errors: with a ridge of .01 and strong keys it is worthless after some tens of removals.)
    """

    base: Base
    gram: Tensor
    """K K^T (d, d) of the keys as they came, unrestricted: another A_0 may restrict them to another subspace."""
    factor: Tensor
    """Lower Cholesky factor (d, d) of A_0 + P K K^T P, with A_0 completed outside the subspace."""
    keys: Columns
    """W (d, n), as they came."""
    signs: Tensor
    """D (n,): 1 for a key that came, -1 for one that left."""
    inside: Columns
    """W restricted."""
    half: Columns
    """factor^-1 W restricted."""
    core: Tensor
    """D + W^T (A_0 + P K K^T P)^-1 W, (n, n)."""

    @classmethod
    def start(cls, base: Base, gram: Tensor) -> GramForm:
        """From the Gram matrix (d, d) of the keys as they came."""
        none = Columns.of(gram[:, :0])
        return cls(base, gram, _factor(base, gram), none, gram.new_zeros(0), none, none, gram.new_zeros(0, 0))

    @property
    def fold_at(self) -> int:
        """Columns of change that stand beside the factor, at most."""
        return max(_FEW_BESIDE, self.gram.shape[0] // _BESIDE_SHARE)

    def append(self, keys: Tensor) -> GramForm:
        """With keys (d, m), as they came."""
        form, size = self, self.fold_at
        for at in range(0, keys.shape[1], size):
            form = form._beside(keys[:, at : at + size], 1.0)
        return form

    def without(self, keys: Tensor) -> GramForm:
        """Without keys (d, m) that are among the held ones."""
        left: list[int] = []
        drop: set[int] = set()
        for i, key in enumerate(keys.T):
            # what has come since the factor was computed goes without a trace
            same = [j for j in self.keys.find(key) if j not in drop and float(self.signs[j]) > 0]
            if same:
                drop.add(same[0])
            else:
                left.append(i)
        form = self._only([j for j in range(self.keys.total) if j not in drop]) if drop else self
        gone, size = keys[:, left], self.fold_at
        for at in range(0, gone.shape[1], size):
            form = form._beside(gone[:, at : at + size], -1.0)
        return form

    def _only(self, keep: list[int]) -> GramForm:
        return replace(
            self,
            keys=Columns.of(self.keys.at(keep)),
            signs=self.signs[keep],
            inside=Columns.of(self.inside.at(keep)),
            half=Columns.of(self.half.at(keep)),
            core=self.core[keep][:, keep],
        )

    def _beside(self, keys: Tensor, sign: float) -> GramForm:
        form = self if self.keys.total + keys.shape[1] <= self.fold_at else self.folded()
        inside = self.base.restrict(keys)
        half = torch.linalg.solve_triangular(form.factor, inside, upper=False)
        size, extra = form.keys.total, keys.shape[1]
        core = form.core.new_zeros(size + extra, size + extra)
        core[:size, :size] = form.core
        if size:
            core[:size, size:] = form.half.tdot(half)
            core[size:, :size] = core[:size, size:].T
        core[size:, size:] = half.T @ half
        core.diagonal()[size:] += sign
        return replace(
            form,
            keys=form.keys.append(keys),
            signs=torch.cat([form.signs, form.signs.new_full((extra,), sign)]),
            inside=form.inside.append(inside),
            half=form.half.append(half),
            core=core,
        )

    def folded(self) -> GramForm:
        """The same system with nothing beside its factor."""
        return GramForm.start(self.base, self.current_gram())

    def current_gram(self) -> Tensor:
        """K K^T (d, d) of all keys that are held, as they came."""
        keys = self.keys.whole()
        return torch.addmm(self.gram, keys * self.signs, keys.T)

    def solve(self, right: Tensor) -> Tensor:
        """One solve, unrefined."""
        half = torch.linalg.solve_triangular(self.factor, right, upper=False)
        if self.keys.total:
            half = half - self.half.dot(torch.linalg.solve(self.core, self.half.tdot(half)))
        # outside the subspace there is nothing but rounding, and nothing that would correct it
        return self.base.restrict(torch.linalg.solve_triangular(self.factor.mT, half, upper=True))

    def multiply(self, x: Tensor) -> Tensor:
        """(A_0 + K_p K_p^T) x for restricted x."""
        product = self.base.multiply(x) + self.base.restrict(self.gram @ x)
        if not self.keys.total:
            return product
        return product + self.inside.dot(self.signs[:, None] * self.inside.tdot(x))

    def tensors(self) -> dict[str, Tensor]:
        """By name, for a file."""
        return {
            "gram": self.gram.clone(),
            "dense_factor": self.factor.clone(),
            "beside": self.keys.whole(),
            "inside": self.inside.whole(),
            "signs": self.signs.clone(),
            "half": self.half.whole(),
            "core": self.core.clone(),
        }

    @classmethod
    def restored(cls, base: Base, tensors: dict[str, Tensor]) -> GramForm:
        """What ``tensors`` gave."""
        gram, factor, signs, core = (tensors[name] for name in ("gram", "dense_factor", "signs", "core"))
        keys, inside, half = (Columns.of(tensors[name]) for name in ("beside", "inside", "half"))
        return cls(base, gram, factor, keys, signs, inside, half, core)


def gram_of(keys: Columns) -> Tensor:
    """K K^T (d, d) float64 of the columns (d, p) that are held."""
    gram = torch.zeros(keys.height, keys.height, dtype=torch.float64, device=keys.at([]).device)
    for block in keys.blocks():
        part = block.double()
        gram.addmm_(part, part.T)
    return gram


def _factor(base: Base, gram: Tensor) -> Tensor:
    full = base.completed(gram.shape[0])
    # of a symmetric matrix only the lower half is read
    if gram.shape[0] > HIGH:
        base.add_restricted(full, gram)
    else:
        full += base.restrict(base.restrict(gram).T)
    factor, info = torch.linalg.cholesky_ex(full)
    if int(info) or not bool(torch.isfinite(factor).all()):
        raise NumericalError(f"A_0 + K K^T could not be factored: leading minor {int(info)} of {gram.shape[0]}")
    return factor
