"""Numerical stability of edited matrices: norm, condition number, and a control that is turned at random.

MOSE, section 3 (eqs. 2-3, figure 2): additive updates let both grow, a product with orthogonal matrices cannot.

Letters: O = d_out, I = d_in of the edited map.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


def condition_number(weight: Tensor) -> float:
    """``|W|_2 |W^+|_2`` of W (O, I): largest singular value over the smallest above rounding (MOSE, eq. 3)."""
    values = torch.linalg.svdvals(weight.double())
    least = max(weight.shape) * torch.finfo(torch.float64).eps * float(values[0])
    kept = values[values > least]
    return float(kept[0] / kept[-1]) if kept.numel() else float("nan")


def random_orthogonal(size: int, generator: torch.Generator) -> Tensor:
    """An orthogonal matrix (size, size), float64, uniform over all of them (Haar): the Q of a Gaussian matrix's QR
    decomposition, with the signs that make R's diagonal positive."""
    q, r = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))
    signs: Tensor = torch.where(r.diagonal() < 0, -1.0, 1.0)
    return q * signs


@dataclass(frozen=True)
class Spread:
    """Some norms in three numbers, as the papers' tables give them."""

    mean: float
    largest: float
    smallest: float


def spread_of(values: Iterable[float]) -> Spread | None:
    """Mean, largest and smallest; None without a value."""
    known = list(values)
    return Spread(sum(known) / len(known), max(known), min(known)) if known else None
