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


@dataclass(frozen=True)
class ValueDrift:
    """What became of values that were written, ``v = W k`` right after each edit, under the weights at the end."""

    layer: int
    values: int
    change: float
    """Mean of ``|v' - v| / |v|``."""
    cosine: float
    """Mean cosine of v' and v."""
    separation: float
    """Distance of the two sets' centroids over the root mean square distance of v from its centroid."""
    explained: tuple[float, float]
    """Share of the variance of both sets together along the two axes."""
    then: tuple[tuple[float, float], ...]
    now: tuple[tuple[float, float], ...]
    """Coordinates on the two principal axes of both sets together (MOSE, figure 22)."""


def principal_coordinates(points: Tensor, axes: int = 2) -> tuple[Tensor, Tensor]:
    """Coordinates (n, axes) of points (n, d) on their first principal axes, float64, and the variance shares (axes,).

    Each axis points where its largest coefficient is positive, so that the same points give the same picture.
    """
    centered = points.double() - points.double().mean(dim=0)
    _, values, rows = torch.linalg.svd(centered, full_matrices=False)
    rows = rows[:axes]
    signs = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True)).sign()
    total = values.square().sum().clamp_min(1e-300)
    return centered @ (rows * signs).T, values[:axes].square() / total


def value_drift(layer: int, then: Tensor, now: Tensor) -> ValueDrift:
    """Of values (n, d) as they were written and as the same keys give them at the end.

    Raises:
        ValueError: fewer than three values: two axes take more.
    """
    if len(then) < 3 or then.shape != now.shape:
        raise ValueError(f"as many values of both, at least three; got {tuple(then.shape)} and {tuple(now.shape)}")
    v, w = then.double(), now.double()
    sizes = v.norm(dim=1).clamp_min(1e-300)
    coordinates, shares = principal_coordinates(torch.cat([v, w]))
    pairs = [(float(x), float(y)) for x, y in coordinates.tolist()]
    scale = (v - v.mean(dim=0)).square().sum(dim=1).mean().sqrt().clamp_min(1e-300)
    return ValueDrift(
        layer=layer,
        values=len(v),
        change=float(((w - v).norm(dim=1) / sizes).mean()),
        cosine=float(((v * w).sum(dim=1) / (sizes * w.norm(dim=1).clamp_min(1e-300))).mean()),
        separation=float((w.mean(dim=0) - v.mean(dim=0)).norm() / scale),
        explained=(float(shares[0]), float(shares[1])),
        then=tuple(pairs[: len(v)]),
        now=tuple(pairs[len(v) :]),
    )
