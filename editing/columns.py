"""Matrices that grow at their end and are values all the same: what is there is shared, only what comes is written.

A lifetime appends a few columns per batch to matrices of gigabytes. Each class here keeps its numbers in blocks of
a fixed size; a value is how far it reaches into them. Appending writes behind the last column where no other value
has written yet, and copies at most one block where one has. Where blocks begin depends on the number of columns
alone, so that a value read from a file computes the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

BLOCK = 512
"""Columns of a block, and rows of a panel of a triangular factor."""
_FIRST = 16
"""Columns that a new block has room for at first; it grows by doubling."""
HIGH = 2048
"""Above this height products are taken in another order than below, where recorded runs keep their last digits: the
transposed one the other way round, which the CPU reads 1.5 to 2.2 times as fast (2 to 15 columns, height 14 336)."""


class _Block:
    """Room for columns of one height, and how far it has been written by any value."""

    def __init__(self, height: int, room: int, like: Tensor) -> None:
        self.room = torch.empty(height, room, dtype=like.dtype, device=like.device)
        self.written = 0

    def extended(self, used: int, new: Tensor) -> _Block:
        """The block with ``new`` columns behind the first ``used`` ones: itself where that hurts no other value."""
        need = used + new.shape[1]
        block = self
        if self.written != used or need > self.room.shape[1]:
            room = min(BLOCK, max(_FIRST, 2 * need)) if need > self.room.shape[1] else self.room.shape[1]
            block = _Block(self.room.shape[0], max(room, need), self.room)
            block.room[:, :used] = self.room[:, :used]
        block.room[:, used:need] = new
        block.written = need
        return block


class Columns:
    """A matrix (d, n) to which columns are appended and of which columns are struck out.

    Struck-out columns stay in place until they are a quarter of all; ``tdot`` and ``dot`` see them, ``dense`` and the
    numbers of columns that ``without`` is given do not.
    """

    def __init__(self, blocks: tuple[_Block, ...], total: int, like: Tensor, struck: frozenset[int]) -> None:
        self._blocks, self.total, self._like, self.struck = blocks, total, like, struck

    @classmethod
    def of(cls, matrix: Tensor, struck: Sequence[int] = ()) -> Columns:
        """The columns of a matrix (d, n); those numbered in ``struck`` are struck out."""
        like = matrix[:, :0].clone()
        columns = cls((), 0, like, frozenset()).append(matrix)
        return Columns(columns._blocks, columns.total, like, frozenset(struck))

    @property
    def height(self) -> int:
        return int(self._like.shape[0])

    @property
    def count(self) -> int:
        """Columns that are not struck out."""
        return self.total - len(self.struck)

    @property
    def dtype(self) -> torch.dtype:
        return self._like.dtype

    def append(self, new: Tensor) -> Columns:
        """With new columns (d, m)."""
        blocks, total, at = list(self._blocks), self.total, 0
        while at < new.shape[1]:
            used = total % BLOCK
            if used == 0:
                blocks.append(_Block(self.height, 0, self._like))
            take = min(BLOCK - used, new.shape[1] - at)
            blocks[-1] = blocks[-1].extended(used, new[:, at : at + take])
            total, at = total + take, at + take
        return Columns(tuple(blocks), total, self._like, self.struck)

    def without(self, columns: Sequence[int]) -> Columns:
        """Without the columns at these places, counted among those that are not struck out."""
        places = self.places(columns)
        left = Columns(self._blocks, self.total, self._like, self.struck.union(places))
        return left if 4 * len(left.struck) <= left.total else left.compact()

    def compact(self) -> Columns:
        """The same matrix with nothing struck out in it."""
        if not self.struck:
            return self
        kept = Columns((), 0, self._like, frozenset())
        for start, view in self._views():
            keep = [i for i in range(view.shape[1]) if start + i not in self.struck]
            kept = kept.append(view[:, keep])
        return kept

    def places(self, columns: Sequence[int]) -> list[int]:
        """Where columns, counted among those that are not struck out, stand among all."""
        if not self.struck:
            return list(columns)
        alive = [i for i in range(self.total) if i not in self.struck]
        return [alive[i] for i in columns]

    def at(self, places: Sequence[int]) -> Tensor:
        """Columns (d, len(places)) by their place among all."""
        if not places:
            return self._like.clone()
        return torch.stack([self._blocks[i // BLOCK].room[:, i % BLOCK] for i in places], dim=1)

    def find(self, key: Tensor) -> list[int]:
        """Places among all columns, struck out or not, that hold exactly this key (d,)."""
        return [
            start + i
            for start, view in self._views()
            # one number tells nearly all of them apart
            for i in (view[0] == key[0]).nonzero().flatten().tolist()
            if torch.equal(view[:, i], key)
        ]

    def dense(self) -> Tensor:
        """A copy (d, n) without what is struck out."""
        return self.compact().whole()

    def whole(self) -> Tensor:
        """A copy (d, n) with what is struck out."""
        return torch.cat([self._like, *(view for _, view in self._views())], dim=1)

    def tdot(self, x: Tensor) -> Tensor:
        """Transposed times x: (total, m) for x (d, m)."""
        high = self.height > HIGH
        parts = [(x.T @ view).T if high else view.T @ x for _, view in self._views()]
        return parts[0] if len(parts) == 1 else torch.cat([self._like.new_zeros(0, x.shape[1]), *parts])

    def dot(self, t: Tensor) -> Tensor:
        """Times t: (d, m) for t (total, m)."""
        views = list(self._views())
        if len(views) == 1:
            return views[0][1] @ t
        products = self._like.new_zeros(self.height, t.shape[1])
        for start, view in views:
            products.addmm_(view, t[start : start + view.shape[1]])
        return products

    def blocks(self) -> Iterator[Tensor]:
        """What is not struck out, block by block; not to be written to."""
        for start, view in self._views():
            keep = [i for i in range(view.shape[1]) if start + i not in self.struck]
            yield view if len(keep) == view.shape[1] else view[:, keep]

    def _views(self) -> list[tuple[int, Tensor]]:
        return [
            (start, self._blocks[start // BLOCK].room[:, : min(BLOCK, self.total - start)])
            for start in range(0, self.total, BLOCK)
        ]


class Panels:
    """A lower triangular factor L (n, n) in panels of rows; each stops at its diagonal block.

    Rows are appended in portions that do not cross the end of a panel; see ``room``.
    """

    def __init__(self, sides: tuple[Columns, ...], corners: tuple[Tensor, ...], like: Tensor) -> None:
        self._sides, self._corners, self._like = sides, corners, like

    @classmethod
    def empty(cls, like: Tensor) -> Panels:
        return cls((), (), like.new_zeros(0, 0))

    @classmethod
    def of(cls, panels: Sequence[Tensor], like: Tensor) -> Panels:
        """From panels as ``tensors`` gives them."""
        sides, corners = [], []
        for panel in panels:
            start = panel.shape[1] - panel.shape[0]
            sides.append(Columns.of(panel[:, :start].T))
            corners.append(panel[:, start:].contiguous())
        return cls(tuple(sides), tuple(corners), like.new_zeros(0, 0))

    @classmethod
    def split(cls, factor: Tensor) -> Panels:
        """From a whole factor (n, n)."""
        starts = range(0, factor.shape[0], BLOCK)
        return cls.of([factor[s : s + BLOCK, : min(s + BLOCK, factor.shape[0])] for s in starts], factor)

    @property
    def size(self) -> int:
        return sum(corner.shape[0] for corner in self._corners)

    @property
    def room(self) -> int:
        """How many rows the next portion may have."""
        return BLOCK if not self._corners else (BLOCK - self._corners[-1].shape[0]) or BLOCK

    def tensors(self) -> list[Tensor]:
        """Copies of the panels, each (rows, columns up to its diagonal block and with it)."""
        return [
            torch.cat([side.dense().T, corner], dim=1) for side, corner in zip(self._sides, self._corners, strict=True)
        ]

    def append(self, left: Tensor, corner: Tensor) -> Panels:
        """With rows [left (m, n), corner (m, m) lower triangular]; m is at most ``room``."""
        sides, corners = list(self._sides), list(self._corners)
        if not corners or corners[-1].shape[0] == BLOCK:
            sides.append(Columns.of(left.T))
            corners.append(corner)
            return Panels(tuple(sides), tuple(corners), self._like)
        old = corners[-1]
        size, extra = old.shape[0], corner.shape[0]
        start = left.shape[1] - size
        sides[-1] = sides[-1].append(left[:, :start].T)
        grown = old.new_zeros(size + extra, size + extra)
        grown[:size, :size], grown[size:, :size], grown[size:, size:] = old, left[:, start:], corner
        corners[-1] = grown
        return Panels(tuple(sides), tuple(corners), self._like)

    def forward(self, right: Tensor) -> Tensor:
        """L^-1 right for right (n, m)."""
        if not self._corners:
            return right
        parts: list[Tensor] = []
        start = 0
        for side, corner in zip(self._sides, self._corners, strict=True):
            part = right[start : start + corner.shape[0]]
            if start:
                part = part - side.tdot(torch.cat(parts))
            parts.append(torch.linalg.solve_triangular(corner, part, upper=False))
            start += corner.shape[0]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def backward(self, right: Tensor) -> Tensor:
        """L^-T right for right (n, m)."""
        if not self._corners:
            return right
        rest, parts = right.clone(), []
        end = self.size
        for side, corner in zip(reversed(self._sides), reversed(self._corners), strict=True):
            start = end - corner.shape[0]
            part = torch.linalg.solve_triangular(corner.mT, rest[start:end], upper=True)
            parts.append(part)
            if start:
                rest[:start] -= side.dot(part)
            end = start
        return parts[0] if len(parts) == 1 else torch.cat(parts[::-1])

    @property
    def whole(self) -> bool:
        """Whether it is one panel, which is solved with in one call."""
        return len(self._corners) == 1

    def solve(self, right: Tensor) -> Tensor:
        """(L L^T)^-1 right for right (n, m)."""
        if self.whole:
            return torch.cholesky_solve(right, self._corners[0])
        return self.backward(self.forward(right))


class Grid:
    """A matrix (n, k) to which rows and columns are appended."""

    def __init__(self, room: Tensor, shape: tuple[int, int], written: list[int]) -> None:
        self._room, self.shape, self._written = room, shape, written

    @classmethod
    def of(cls, matrix: Tensor) -> Grid:
        return cls(matrix.clone(), (int(matrix.shape[0]), int(matrix.shape[1])), list(matrix.shape))

    def view(self) -> Tensor:
        """The matrix; not to be written to."""
        return self._room[: self.shape[0], : self.shape[1]]

    def rows(self, new: Tensor) -> Grid:
        """With new rows (m, k) below."""
        return self._extended(self.shape[0] + new.shape[0], self.shape[1], new, slice(self.shape[0], None), slice(None))

    def columns(self, new: Tensor) -> Grid:
        """With new columns (n, m) at the right."""
        return self._extended(self.shape[0], self.shape[1] + new.shape[1], new, slice(None), slice(self.shape[1], None))

    def _extended(self, rows: int, columns: int, new: Tensor, at: slice, beside: slice) -> Grid:
        room, written = self._room, self._written
        if tuple(written) != self.shape or rows > room.shape[0] or columns > room.shape[1]:
            height = room.shape[0] if rows <= room.shape[0] else rows + rows // 4
            width = room.shape[1] if columns <= room.shape[1] else 2 * columns
            room = self._room.new_zeros(height, width)
            room[: self.shape[0], : self.shape[1]] = self.view()
            written = list(self.shape)
        room[:rows, :columns][at, beside] = new
        written[:] = [rows, columns]
        return Grid(room, (rows, columns), written)
