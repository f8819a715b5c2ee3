"""The large matrices of the closed forms, each on one rank only; the others are sent the answers.

For d_in = 28 672 a matrix in float64 is 6.6 GB: five edited layers on eight ranks put at most one on each. What is sent
is as wide as the batch of keys: 23 MB for a hundred.
"""

from __future__ import annotations

import torch
from torch import Tensor

from errata.actors.sharded.rank import Group
from errata.editing.covariance import KeyCovariance
from errata.editing.errors import ErrataError
from errata.editing.linalg import Base
from errata.editing.state import MakeBase


class HeldBase(Base):
    """A base that one rank has and every rank can use; collective."""

    def __init__(self, group: Group, owner: int, base: Base | None) -> None:
        self.group, self.owner, self.base = group, owner, base

    def restrict(self, keys: Tensor) -> Tensor:
        return self._sent(self.base.restrict(keys) if self.base is not None else keys.clone())

    def solve(self, right: Tensor) -> Tensor:
        return self._sent(self.base.solve(right) if self.base is not None else right.clone())

    def multiply(self, x: Tensor) -> Tensor:
        return self._sent(self.base.multiply(x) if self.base is not None else x.clone())

    def completed(self, width: int) -> Tensor:
        empty = torch.empty(width, width, dtype=torch.float64)
        return self._sent(self.base.completed(width) if self.base is not None else empty)

    def _sent(self, mine: Tensor) -> Tensor:
        return self.group.send(mine.contiguous(), self.owner)


def held(make_base: MakeBase, group: Group) -> MakeBase:
    """The same bases, each made and kept by one rank; the edited layers go round."""
    order: dict[int, int] = {}

    def make(covariance: KeyCovariance, layer: int) -> Base:
        owner = order.setdefault(layer, len(order) % group.size)
        base: Base | None = None
        problem: ErrataError | None = None
        if group.rank == owner:
            try:
                base = make_base(covariance, layer)
            except ErrataError as error:
                problem = error
        # all ranks fail together, or those that wait for the answer would wait for ever
        problem = group.send_object(problem, owner)
        if problem is not None:
            raise problem
        return HeldBase(group, owner, base)

    return make
