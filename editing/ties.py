"""TIES: several copies of one weight merged so that what they disagree about does not cancel what they learned.

Yadav et al. 2023, arXiv:2306.01708, sec. 4: of each copy's difference from the base the largest entries stay (trim),
of every entry the sign with the larger sum wins (elect), and the mean is taken over the copies that agree with it
(disjoint merge).

Letters: c copies.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def ties(base: Tensor, copies: Sequence[Tensor], density: float) -> Tensor:
    """The merged weight, with the shape of ``base`` and of each of the c copies.

    Args:
        density: share of each difference's entries that stays, the largest by magnitude; 0 < density <= 1.
    """
    trimmed = torch.stack([trim(copy - base, density) for copy in copies])
    sign = trimmed.sum(dim=0).sign()
    agrees = (trimmed.sign() == sign) & (trimmed != 0)
    total = (trimmed * agrees).sum(dim=0)
    return base + total / agrees.sum(dim=0).clamp_min(1)


def trim(difference: Tensor, density: float) -> Tensor:
    """The difference with all entries zero but the ``density`` share of largest magnitude."""
    keep = max(1, round(density * difference.numel()))
    least = difference.abs().flatten().topk(keep).values[-1]
    return torch.where(difference.abs() >= least, difference, 0.0)
