"""The sums of finished blocks, added by pairs where they lie, in an order that depends on their number alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import ray.exceptions

logger = logging.getLogger(__name__)

Sums = dict[int, np.ndarray[Any, np.dtype[np.float64]]]
"""By layer, float64 (d_in, d_in)."""


def add_sums(left: Sums, right: Sums) -> Sums:
    """One node of the tree."""
    return {layer: left[layer] + right[layer] for layer in left}


def _is_there(sums: Sums) -> bool:
    return bool(sums)


_add_remote: Any = ray.remote(num_cpus=0)(add_sums)
_is_there_remote: Any = ray.remote(num_cpus=0)(_is_there)


@dataclass(frozen=True)
class Subtree:
    """The sum of ``count`` consecutive blocks, a power of two; ``sums`` is a reference."""

    first: int
    count: int
    sums: Any

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

    def push(self, sums: Any) -> None:
        """Take the next block's sum."""
        node = Subtree(self._next, 1, sums)
        self._next += 1
        while (left := self._nodes.pop(node.count, None)) is not None:
            node = Subtree(left.first, 2 * node.count, _add_remote.remote(left.sums, node.sums))
        self._nodes[node.count] = node

    def root(self) -> Any:
        """A reference to the sum of all, larger subtrees first."""
        nodes = [self._nodes[count].sums for count in sorted(self._nodes, reverse=True)]
        total = nodes[0]
        for node in nodes[1:]:
            total = _add_remote.remote(total, node)
        return total

    def fetch(self) -> Sums | None:
        """The sum of all, or None if a part of it went with a machine: see ``lost``."""
        try:
            sums: Sums = ray.get(self.root())
        except (ray.exceptions.ObjectLostError, ray.exceptions.WorkerCrashedError) as error:
            logger.warning("a sum of finished blocks is gone (%s)", type(error).__name__)
            return None
        except ray.exceptions.RayTaskError as error:
            if not isinstance(error.cause, ray.exceptions.ObjectLostError):
                raise
            logger.warning("a sum of finished blocks is gone (%s)", type(error.cause).__name__)
            return None
        return sums

    def lost(self) -> list[Subtree]:
        """The subtrees whose sums can be had no more; asked where they lie, nothing large is moved here."""
        asked = [(node, _is_there_remote.remote(node.sums)) for node in self._nodes.values()]
        gone = []
        for node, answer in asked:
            try:
                ray.get(answer)
            except (ray.exceptions.RayError, ray.exceptions.RayTaskError):
                gone.append(node)
        return sorted(gone, key=lambda node: node.first)

    def mend(self, node: Subtree, blocks: Sequence[Any]) -> None:
        """Put a lost subtree together again from its blocks, done anew, in their order."""
        if len(blocks) != node.count:
            raise ValueError(f"subtree of {node.count} blocks: got {len(blocks)}")
        again = BlockTree(node.first)
        for sums in blocks:
            again.push(sums)
        self._nodes[node.count] = again._nodes[node.count]


def fetch_mending(tree: BlockTree, redo: Callable[[Sequence[int]], Sequence[Any]], attempts: int) -> Sums | None:
    """The sum of all blocks; those whose sums went with a machine are done again by ``redo``, in the order given.

    Returns:
        None when parts are gone after as many attempts.
    """
    for _ in range(attempts):
        sums = tree.fetch()
        if sums is not None:
            return sums
        for node in tree.lost():
            logger.warning("blocks %d to %d are done again", node.first, node.first + node.count - 1)
            tree.mend(node, redo(list(node.blocks)))
    return tree.fetch()
