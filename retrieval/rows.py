"""Vectors by row: those of a file, mapped into memory, and behind them those that came since."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


class RowStore:
    """Float32 rows of one length that grow at the end and shrink by the last row taking a free place.

    What is mapped is read from the file when it is needed, and a row written there is a private copy of its page: the
    file is never changed.
    """

    def __init__(self, dim: int, mapped: Vectors | None = None) -> None:
        """``mapped`` (n, dim): the first rows, writable without changing the file (a map of mode ``c``)."""
        self._mapped: Vectors = np.zeros((0, dim), dtype=np.float32) if mapped is None else mapped
        self._own: Vectors = np.zeros((0, dim), dtype=np.float32)
        self._count = len(self._mapped)

    def __len__(self) -> int:
        return self._count

    def at(self, rows: Sequence[int]) -> Vectors:
        """Copies (n, dim) of some rows, in that order."""
        wanted = np.asarray(rows, dtype=np.int64)
        border = len(self._mapped)
        copies = np.empty((len(wanted), self._own.shape[1]), dtype=np.float32)
        early = wanted < border
        copies[early] = self._mapped[wanted[early]]
        copies[~early] = self._own[wanted[~early] - border]
        return copies

    def append(self, vectors: Vectors) -> None:
        """More rows (n, dim) at the end."""
        for start in range(0, len(vectors)):
            if self._count >= len(self._mapped):
                break
            self._mapped[self._count] = vectors[start]  # places of the file that were given up
            self._count += 1
        else:
            return
        rest = vectors[start:] if len(vectors) else vectors
        begin = self._count - len(self._mapped)
        end = begin + len(rest)
        if end > len(self._own):  # grown by half: adding one at a time copies each row a few times only
            grown = np.empty((max(end, len(self._own) * 3 // 2, 64), self._own.shape[1]), dtype=np.float32)
            grown[:begin] = self._own[:begin]
            self._own = grown
        self._own[begin:end] = rest
        self._count += len(rest)

    def drop(self, row: int) -> None:
        """The last row takes the place of this one."""
        last = self._count - 1
        if row != last:
            (value,) = self.at([last])
            border = len(self._mapped)
            if row < border:
                self._mapped[row] = value
            else:
                self._own[row - border] = value
        self._count = last
