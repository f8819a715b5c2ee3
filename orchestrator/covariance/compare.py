"""Several covariances side by side: spectra, null spaces, overlaps, and how likely their documents are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from errata.editing.covariance import KeyCovariance
from errata.editing.errors import UserError
from errata.editing.estimation.diagnostics import (
    WordShare,
    decompose,
    effective_rank,
    jensen_shannon,
    null_space_dimension,
    of_equal_length,
    opening_shares,
    subspace_overlap,
)

TAUS = (2e-2, 5e-3, 1e-3, 5e-4)
"""AlphaEdit's thresholds in the papers' grid."""
PLACES = 3


@dataclass(frozen=True)
class LayerView:
    """One layer of one covariance; eigenvalues descending (I,)."""

    trace: float
    effective_rank: float
    null_space: Mapping[float, int]
    eigenvalues: Tensor


@dataclass(frozen=True)
class Side:
    """One covariance of a comparison."""

    name: str
    digest: str
    tokens: int
    source: Mapping[str, Any]
    layers: Mapping[int, LayerView]
    documents: int
    """Documents whose likelihood is known."""
    mean_nll: float | None
    """Mean per-document NLL of the documents compared, nats per token."""
    openings: tuple[tuple[WordShare, ...], ...]
    """The commonest first, second and third words, where the text was generated."""


@dataclass(frozen=True)
class CovarianceComparison:
    """All sides, and what holds between each two; matrices in the order of the sides."""

    sides: tuple[Side, ...]
    layers: tuple[int, ...]
    taus: tuple[float, ...]
    k: int
    overlaps: Mapping[int, tuple[tuple[float, ...], ...]]
    jsd: tuple[tuple[float | None, ...], ...]
    nll: Mapping[str, Tensor]
    """Per-document NLL (n,) by side, where known."""
    equal_length: bool
    """Whether the documents compared are of equal length; else their NLLs differ for that reason too."""


def compare(
    named: Mapping[str, KeyCovariance],
    *,
    taus: Sequence[float] = TAUS,
    k: int = 50,
    layers: Sequence[int] | None = None,
) -> CovarianceComparison:
    """Compare covariances on the layers that all of them cover (or those of them that are asked for).

    Args:
        taus: thresholds at which null spaces are counted.
        k: leading directions whose overlap is taken; fewer where the map is narrower.

    Raises:
        UserError: no layer in common, one asked for that is missing, or maps of different widths.
    """
    common = _common_layers(named, layers)
    width = min(int(c.sums[layer].shape[0]) for c in named.values() for layer in common)
    k = min(k, width)
    views: dict[str, dict[int, LayerView]] = {name: {} for name in named}
    overlaps: dict[int, tuple[tuple[float, ...], ...]] = {}
    for layer in common:
        bases = []
        for name, covariance in named.items():
            eigenvalues, basis = decompose(covariance.mean(layer), k)
            bases.append(basis)
            views[name][layer] = LayerView(
                float(eigenvalues.sum()),
                effective_rank(eigenvalues),
                {tau: null_space_dimension(eigenvalues, tau) for tau in taus},
                eigenvalues,
            )
        overlaps[layer] = tuple(tuple(subspace_overlap(a, b) for b in bases) for a in bases)
    known = {name: c.record.documents for name, c in named.items() if c.record is not None and c.record.documents}
    chosen = of_equal_length(known)
    nll = {name: sample for name, sample in chosen.samples.items() if sample.numel()}
    sides = tuple(
        Side(
            name=name,
            digest=covariance.digest,
            tokens=covariance.tokens,
            source=covariance.source,
            layers=views[name],
            documents=len(known.get(name, ())),
            mean_nll=float(nll[name].mean()) if name in nll else None,
            openings=_openings(covariance),
        )
        for name, covariance in named.items()
    )
    names = list(named)
    jsd = tuple(tuple(jensen_shannon(nll[a], nll[b]) if a in nll and b in nll else None for b in names) for a in names)
    return CovarianceComparison(sides, common, tuple(taus), k, overlaps, jsd, nll, chosen.equal_length)


def _common_layers(named: Mapping[str, KeyCovariance], wanted: Sequence[int] | None) -> tuple[int, ...]:
    common = set.intersection(*(set(c.layers) for c in named.values()))
    listed = "; ".join(f"{name}: {list(c.layers)}" for name, c in named.items())
    if wanted is not None:
        missing = sorted(set(wanted) - common)
        if missing:
            raise UserError(f"layers {missing} are not covered by all: {listed}")
        common = set(wanted)
    if not common:
        raise UserError(f"the covariances have no layer in common: {listed}")
    for layer in common:
        widths = {name: int(c.sums[layer].shape[0]) for name, c in named.items()}
        if len(set(widths.values())) > 1:
            raise UserError(f"maps of different widths at layer {layer}: {widths}; compare covariances of one model")
    return tuple(sorted(common))


def _openings(covariance: KeyCovariance) -> tuple[tuple[WordShare, ...], ...]:
    openings = covariance.record.openings if covariance.record is not None else ()
    if not openings:
        return ()
    return tuple(tuple(opening_shares(openings, place)) for place in range(PLACES))
