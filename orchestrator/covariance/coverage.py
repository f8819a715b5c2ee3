"""How much of what a domain uses each covariance protects (MOIR, figure 7)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from errata.editing.covariance import KeyCovariance
from errata.editing.errors import UserError
from errata.editing.estimation.diagnostics import energy_basis, energy_outside


@dataclass(frozen=True)
class Covered:
    """One domain inside one covariance at one layer."""

    covariance: str
    domain: str
    layer: int
    directions: int
    """The fewest leading directions of C that hold the wanted share of its own energy."""
    share: float
    """Of the domain's key energy that lies in them, ``tr(V^T M V) / tr(M)``."""


def coverage(
    covariances: Mapping[str, KeyCovariance],
    domains: Mapping[str, KeyCovariance],
    *,
    energy: float = 0.95,
    layers: Sequence[int] | None = None,
) -> list[Covered]:
    """Every domain inside every covariance, at the layers that all of them have.

    Args:
        domains: key second moments of texts, each estimated like a covariance of its own.
        energy: share of C's energy whose directions count as protected.

    Raises:
        UserError: no layer in common, or one asked for that is missing, or maps of different widths.
    """
    everything = {**covariances, **domains}
    common = sorted(set.intersection(*(set(item.layers) for item in everything.values())))
    wanted = list(common if layers is None else layers)
    if not wanted or set(wanted) - set(common):
        raise UserError(f"layers {wanted or 'none'} are not in all of {', '.join(everything)}; in common: {common}")
    rows = []
    for layer in wanted:
        widths = {int(item.sums[layer].shape[0]) for item in everything.values()}
        if len(widths) > 1:
            raise UserError(f"layer {layer} has maps of different widths: {sorted(widths)}")
        for name, held in covariances.items():
            basis = energy_basis(held.mean(layer), energy)
            for domain, keys in domains.items():
                share = 1.0 - energy_outside(basis, keys.mean(layer))
                rows.append(Covered(name, domain, layer, basis.shape[1], share))
    return rows


def coverage_lines(rows: Sequence[Covered], energy: float) -> Iterator[str]:
    """A block a layer, a line a covariance, a column a domain."""
    domains = list(dict.fromkeys(item.domain for item in rows))
    names = list(dict.fromkeys(item.covariance for item in rows))
    wide = max(len(name) for name in names)
    for layer in dict.fromkeys(item.layer for item in rows):
        yield f"layer {layer}: share of a domain's key energy in the directions that hold {energy:g} of C's"
        yield " " * (wide + 13) + "".join(f"{domain:>16}" for domain in domains)
        for name in names:
            row = [item for item in rows if item.layer == layer and item.covariance == name]
            shares = "".join(f"{item.share:>16.4f}" for item in row)
            yield f"{name:<{wide}}{row[0].directions:>7} dirs {shares}"
