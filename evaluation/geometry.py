"""What edits do to the space of hidden states: spectra, amplification by direction, drift of principal subspaces.

"Revisiting", section 4 and appendix B. The states are outputs of an edited map, one vector a document (its tokens'
mean), centered over the documents.

Letters: n documents, d = d_out of the map, r <= min(n, d) principal directions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

CEILINGS: Final = (10, 100, 200, 2000)
"""Sizes of principal subspaces that are compared (tables 13-18)."""


@dataclass(frozen=True)
class Principal:
    """Principal directions of centered states: ``directions`` (d, r), singular values (r,) descending, float64."""

    directions: Tensor
    values: Tensor
    documents: int
    mean: Tensor

    @property
    def effective_rank(self) -> float:
        """``exp`` of the entropy of the singular values divided by their sum: the authors' form, not squared."""
        share = self.values[self.values > 0] / self.values.sum()
        return float(torch.exp(-(share * share.log()).sum())) if share.numel() else 0.0

    @property
    def condition(self) -> float:
        """Largest over smallest singular value that is not zero."""
        return float(self.values[0] / self.values[-1]) if self.values.numel() else math.nan


def principal(states: Tensor) -> Principal:
    """Principal directions of states (n, d), those whose singular value is above rounding.

    The tail that centering and rounding leave (below ``n eps`` of the largest) is no direction: it would dominate every
    maximum of `change_rates`.

    Raises:
        ValueError: fewer than two documents.
    """
    if states.shape[0] < 2:
        raise ValueError(f"principal directions need at least two documents, got {states.shape[0]}")
    double = states.double()
    mean = double.mean(dim=0)
    _, values, rows = torch.linalg.svd(double - mean, full_matrices=False)
    kept = values > max(states.shape) * torch.finfo(states.dtype).eps * values[0]
    return Principal(rows[kept].T.contiguous(), values[kept], states.shape[0], mean)


def change_rates(base: Principal, before: Tensor, after: Tensor) -> Tensor:
    """R_k (r,): ``sqrt(n) mean_i |u_k^T dh_i| / sigma_k``, dh the change of a document's state (eq. 11, B.5).

    Args:
        base: of the unedited states.
        before, after: states (n, d) of the same documents.
    """
    moved = (after.double() - before.double()) @ base.directions
    return math.sqrt(base.documents) * moved.abs().mean(dim=0) / base.values


@dataclass(frozen=True)
class Rates:
    """R_k of one layer in a few numbers."""

    mean: float
    median: float
    q90: float
    q95: float
    trimmed_mean: float
    """Without the lowest and the highest tenth."""
    largest: float
    above_one: float
    """Share of the directions in which the change is larger than the state's own scale."""


def summary_of(rates: Tensor) -> Rates:
    """`Rates` of R_k (r,)."""
    ordered = rates.double().sort().values
    cut = ordered.numel() // 10
    inner = ordered[cut : ordered.numel() - cut]
    quantiles = torch.quantile(ordered, torch.tensor([0.5, 0.9, 0.95], dtype=torch.float64))
    return Rates(
        mean=float(ordered.mean()),
        median=float(quantiles[0]),
        q90=float(quantiles[1]),
        q95=float(quantiles[2]),
        trimmed_mean=float(inner.mean()),
        largest=float(ordered[-1]),
        above_one=float((ordered > 1).double().mean()),
    )


def subspace_cosine(first: Principal, second: Principal, k: int) -> float:
    """Smallest cosine of the principal angles between the ``k`` leading directions of both, 0..1.

    The paper calls it ``cos theta_min``; the literal smallest angle has cosine 1 as soon as 2 k exceeds d.

    Raises:
        ValueError: one of them has fewer directions.
    """
    have = min(first.values.numel(), second.values.numel())
    if not 1 <= k <= have:
        raise ValueError(f"k must be within 1..{have}, got {k}")
    cosines = torch.linalg.svdvals(first.directions[:, :k].T @ second.directions[:, :k])
    return float(cosines[-1].clamp(0.0, 1.0))


def change_norms(before: Tensor, after: Tensor) -> tuple[float, float, float, float]:
    """Mean, standard deviation (n - 1), smallest and largest ``|dh|`` over documents (tables 9-12)."""
    norms = (after.double() - before.double()).norm(dim=1)
    return float(norms.mean()), float(norms.std()), float(norms.min()), float(norms.max())


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation, equal values with their mean rank; None where one of them does not vary.

    Raises:
        ValueError: different numbers of values, or fewer than two.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"as many values of both, at least two; got {len(first)} and {len(second)}")
    a, b = (torch.tensor(_ranks(values), dtype=torch.float64) for values in (first, second))
    a, b = a - a.mean(), b - b.mean()
    spread = float(a.norm() * b.norm())
    return float(a @ b) / spread if spread else None


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=lambda at: values[at])
    ranks, at = [0.0] * len(values), 0
    while at < len(order):
        end = at
        while end + 1 < len(order) and values[order[end + 1]] == values[order[at]]:
            end += 1
        for place in order[at : end + 1]:
            ranks[place] = (at + end) / 2
        at = end + 1
    return ranks


def aggregated(by_layer: Mapping[int, Rates], summary: str, how: str) -> float:
    """One number of a step: ``summary`` (a field of `Rates`) of each layer, then ``how`` over the layers."""
    values = torch.tensor([getattr(rates, summary) for rates in by_layer.values()], dtype=torch.float64)
    if how == "median":
        return float(torch.quantile(values, 0.5))
    return float(values.mean() if how == "mean" else values.max())
