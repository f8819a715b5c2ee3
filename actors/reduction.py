"""The sums of finished blocks, added by pairs where they lie, in an order that depends on their number alone.

A sum of outer products is symmetric, so it travels as its lower half: stripes of rows, each as far as the diagonal.
Wide ones are cut into pieces, each with a tree of its own. Otherwise the last additions, of which there are few, would
be the work of few cores while all others wait; with 64 workers that was a third of the papers' budget
(`benchmarks/scaling_simulation.py`). An element is added in the same order however it is cut.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import ray
import ray.exceptions

from errata.actors.workers.covariance import Array, Sums

logger = logging.getLogger(__name__)

Piece = dict[tuple[int, int], Array]
"""By layer and first row: the rows (n, first + n) of that layer's sum from there on, up to the diagonal."""

Pieces = tuple[Any, ...]
"""References to the pieces of one sum."""

MOST_PIECES = 24
"""A block is handed over in no more pieces than this."""
PIECE_BYTES = 64 * 2**20
"""A smaller piece is not worth a task of its own."""
_STRIPES = 16
"""Stripes of a wide layer: 1/32 more than its half is kept."""
_NARROWEST = 128
"""Stripes have no fewer rows than this, or the layer is one."""


def cut(sums: Sums, most: int = MOST_PIECES, piece_bytes: int = PIECE_BYTES) -> list[Piece]:
    """The lower halves of symmetric sums in pieces of like size: as many as are worth it, ``most`` at most."""
    stripes = [(layer, *rows) for layer, total in sums.items() for rows in _stripes(total.shape[0])]
    sizes = [8 * (stop - first) * stop for _, first, stop in stripes]
    size_of_all, before = max(sum(sizes), 1), 0  # the ranks of a group that gather nothing have sums of no rows
    count = max(1, min(most, len(stripes), size_of_all // piece_bytes))
    pieces: list[Piece] = [{} for _ in range(count)]
    for (layer, first, stop), size in zip(stripes, sizes, strict=True):
        pieces[count * before // size_of_all][layer, first] = np.ascontiguousarray(sums[layer][first:stop, :stop])
        before += size
    return [piece for piece in pieces if piece]


def _stripes(size: int) -> list[tuple[int, int]]:
    """(first, stop) of the rows of a (size, size) sum."""
    count = max(1, min(_STRIPES, size // _NARROWEST))
    return list(pairwise([size * k // count for k in range(count + 1)]))


def joined(pieces: Sequence[Piece]) -> Sums:
    """The sums that `cut` gave, whole, in arrays of their own, by ascending layer."""
    widths: dict[int, int] = {}
    for piece in pieces:
        for (layer, _), rows in piece.items():
            widths[layer] = max(widths.get(layer, 0), rows.shape[1])
    sums = {layer: np.empty((width, width)) for layer, width in sorted(widths.items())}
    for piece in pieces:
        for (layer, first), rows in piece.items():
            stop = rows.shape[1]
            sums[layer][first:stop, :stop] = rows
            sums[layer][:first, first:stop] = rows[:, :first].T
    return sums


def add_pieces(left: Piece, right: Piece) -> Piece:
    """One node of a tree."""
    return {place: left[place] + right[place] for place in left}


def _is_there(piece: Piece) -> bool:
    return bool(piece)


_add_remote: Any = ray.remote(num_cpus=0)(add_pieces)
_is_there_remote: Any = ray.remote(num_cpus=0)(_is_there)


def _add_all(left: Pieces, right: Pieces) -> Pieces:
    return tuple(_add_remote.remote(one, other) for one, other in zip(left, right, strict=True))


@dataclass(frozen=True)
class Subtree:
    """The sum of ``count`` consecutive blocks, a power of two."""

    first: int
    count: int
    sums: Pieces

    @property
    def blocks(self) -> range:
        """Numbers of its blocks."""
        return range(self.first, self.first + self.count)


class BlockTree:
    """Binary-counter tree over blocks that come in order. Nodes are references, the adding is done by Ray tasks.

    At most one node per power of two is kept, so what a cluster holds grows with the logarithm of the number of blocks.
    """

    def __init__(self, first: int = 0) -> None:
        self._next = first
        self._nodes: dict[int, Subtree] = {}

    def push(self, sums: Pieces) -> None:
        """Take the next block's sum; all blocks are cut alike."""
        node = Subtree(self._next, 1, sums)
        self._next += 1
        while (left := self._nodes.pop(node.count, None)) is not None:
            node = Subtree(left.first, 2 * node.count, _add_all(left.sums, node.sums))
        self._nodes[node.count] = node

    def root(self) -> Pieces:
        """The sum of all, larger subtrees first."""
        nodes = [self._nodes[count].sums for count in sorted(self._nodes, reverse=True)]
        total = nodes[0]
        for node in nodes[1:]:
            total = _add_all(total, node)
        return total

    def fetch(self) -> Sums | None:
        """The sum of all, or None if a part of it went with a machine: see ``lost``."""
        try:
            pieces: list[Piece] = ray.get(list(self.root()))
        except (ray.exceptions.ObjectLostError, ray.exceptions.WorkerCrashedError) as error:
            logger.warning("a sum of finished blocks was lost (%s)", type(error).__name__)
            return None
        except ray.exceptions.RayTaskError as error:
            if not isinstance(error.cause, ray.exceptions.ObjectLostError):
                raise
            logger.warning("a sum of finished blocks was lost (%s)", type(error.cause).__name__)
            return None
        return joined(pieces)

    def lost(self) -> list[Subtree]:
        """The subtrees whose sums can be had no more; asked where they lie, nothing large is moved here."""
        asked = [(node, [_is_there_remote.remote(one) for one in node.sums]) for node in self._nodes.values()]
        gone = []
        for node, answers in asked:
            try:
                ray.get(answers)
            except (ray.exceptions.RayError, ray.exceptions.RayTaskError):
                gone.append(node)
        return sorted(gone, key=lambda node: node.first)

    def repair(self, node: Subtree, blocks: Sequence[Pieces]) -> None:
        """Put a lost subtree together again from its blocks, done anew, in their order."""
        if len(blocks) != node.count:
            raise ValueError(f"subtree of {node.count} blocks: got {len(blocks)}")
        again = BlockTree(node.first)
        for sums in blocks:
            again.push(sums)
        self._nodes[node.count] = again._nodes[node.count]


def fetch_repairing(tree: BlockTree, redo: Callable[[Sequence[int]], Sequence[Pieces]], attempts: int) -> Sums | None:
    """The sum of all blocks; those whose sums went with a machine are done again by ``redo``, in the order given.

    Returns:
        None when parts are gone after as many attempts.
    """
    for _ in range(attempts):
        sums = tree.fetch()
        if sums is not None:
            return sums
        for node in tree.lost():
            logger.warning("repeating blocks %d to %d", node.first, node.first + node.count - 1)
            tree.repair(node, redo(list(node.blocks)))
    return tree.fetch()
