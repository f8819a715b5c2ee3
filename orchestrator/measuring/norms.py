"""Norms over a run: of the target values that its edits were written with, and of the matrices that they went into.

"Uncertainty", table 5 and figures 3 and 7 (its right vector is the optimized change of a hidden state, delta here);
MOSE, figure 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from errata.editing.delta import WeightDelta
from errata.editing.wording import counted
from errata.evaluation.stability import (
    Spread,
    ValueDrift,
    condition_number,
    random_orthogonal,
    spread_of,
    value_drift,
)


@dataclass(frozen=True)
class RequestNorms:
    """The target value of one request, as its editor found it."""

    request_id: str
    sequence: int
    """Of the commit that wrote it."""
    delta: float
    state: float
    """|h|; the clamp bounds ``delta / state``."""
    steps: int
    loss: float
    converged: bool
    clamped: bool
    kp_loss: float | None = None
    """L_kp of the change, where entities are protected."""


@dataclass(frozen=True)
class MatrixNorms:
    """One edited map in one version."""

    sequence: int
    edits: int
    layer: int
    frobenius: float
    condition: float
    turned_frobenius: float | None
    turned_condition: float | None
    """Of the unedited map, multiplied once for each commit by another random orthogonal matrix; None if not asked."""
    right: Spread | None
    """Norms of the rows of the commit's right factor, where its change has low rank."""


@dataclass(frozen=True)
class NormsReport:
    """What `errata norms` found."""

    delta: Spread | None
    """Over all requests (uncertainty, table 5)."""
    ratio: Spread | None
    """Of ``delta / state``."""
    requests: tuple[RequestNorms, ...]
    matrices: tuple[MatrixNorms, ...]
    values: tuple[ValueDrift, ...] = ()
    """By layer, where it was asked for."""


def request_norms(rows: Sequence[tuple[str, int | None, Mapping[str, Any]]]) -> tuple[RequestNorms, ...]:
    """Of (request, commit, the editor's figures) those that tell norms, in the order of their commits."""
    found = [
        RequestNorms(
            name,
            sequence,
            float(figures["delta_norm"]),
            float(figures["state_norm"]),
            int(figures["steps"]),
            float("nan") if figures["loss"] is None else float(figures["loss"]),
            bool(figures["converged"]),
            bool(figures["clamped"]),
            figures.get("kp_loss"),
        )
        for name, sequence, figures in rows
        if sequence is not None and "delta_norm" in figures
    ]
    return tuple(sorted(found, key=lambda one: one.sequence))


def matrix_norms(
    base: Mapping[int, Tensor],
    versions: Sequence[tuple[int, int, Callable[[], Mapping[int, Tensor]], Callable[[], WeightDelta | None]]],
    *,
    control: int | None = 0,
) -> Iterator[MatrixNorms]:
    """Of every version and layer, in ascending order; the unedited maps are version 0.

    Args:
        base: the unedited maps (O, I) by layer.
        versions: (sequence number, edits, gives the maps, gives the commit's change), ascending.
        control: seed of the random orthogonal matrices; None for no control.
    """
    generators = {layer: torch.Generator().manual_seed((control or 0) * 1000003 + layer) for layer in base}
    turns = {layer: torch.eye(weight.shape[0], dtype=torch.float64) for layer, weight in base.items()}
    turned_to = 0
    for sequence, edits, weights, change in versions:
        maps, delta = weights(), change()
        for layer, weight in sorted(maps.items()):
            if layer not in base:
                continue
            frobenius = condition = None
            if control is not None:
                for _ in range(turned_to, sequence):
                    turns[layer] = random_orthogonal(weight.shape[0], generators[layer]) @ turns[layer]
                turned = turns[layer] @ base[layer].double()
                frobenius, condition = float(turned.norm()), condition_number(turned)
            own = None if delta is None else delta.layers.get(layer)
            right = None if own is None or own.right is None else spread_of(own.right.double().norm(dim=1).tolist())
            yield MatrixNorms(
                sequence,
                edits,
                layer,
                float(weight.double().norm()),
                condition_number(weight),
                frobenius,
                condition,
                right,
            )
        turned_to = max(turned_to, sequence)


def values_over(
    commits: Iterable[tuple[Mapping[int, Tensor], Mapping[int, Tensor]]], last: Mapping[int, Tensor], count: int
) -> tuple[ValueDrift, ...]:
    """What became of the first ``count`` values that were written, by layer; of layers with fewer than three, nothing.

    Args:
        commits: of each commit in order the keys (I, m) that it wrote at, by layer, and the maps (O, I) right after it.
        last: the maps at the end.
    """
    then: dict[int, list[Tensor]] = {}
    now: dict[int, list[Tensor]] = {}
    for keys, maps in commits:
        for layer, columns in keys.items():
            room = count - sum(len(part) for part in then.get(layer, ()))
            if room > 0 and layer in maps and layer in last:
                taken = columns[:, :room].double()
                then.setdefault(layer, []).append((maps[layer].double() @ taken).T)
                now.setdefault(layer, []).append((last[layer].double() @ taken).T)
    found = [(layer, torch.cat(parts), torch.cat(now[layer])) for layer, parts in sorted(then.items())]
    return tuple(value_drift(layer, before, after) for layer, before, after in found if len(before) > 2)


def report_of(
    requests: Sequence[RequestNorms], matrices: Sequence[MatrixNorms], values: Sequence[ValueDrift] = ()
) -> NormsReport:
    """Both, with the spread over the requests."""
    return NormsReport(
        spread_of(one.delta for one in requests),
        spread_of(one.delta / one.state for one in requests if one.state),
        tuple(requests),
        tuple(matrices),
        tuple(values),
    )


def norms_lines(report: NormsReport, *, each: bool = False) -> Iterator[str]:
    """Target values first, then one line a version and layer."""
    if report.delta is None:
        yield "no request tells the norm of a target value: the method has none, or the run is of an older release"
    else:
        count, mean = len(report.requests), sum(one.steps for one in report.requests) / len(report.requests)
        clamped = sum(one.clamped for one in report.requests)
        converged = sum(one.converged for one in report.requests)
        yield (
            f"target values of {counted(count, 'request')}: {mean:.1f} steps each, {converged} converged, "
            f"{clamped} at the clamp"
        )
        protected = spread_of(one.kp_loss for one in report.requests if one.kp_loss is not None)
        for name, spread in (("|delta|", report.delta), ("|delta| / |h|", report.ratio), ("L_kp", protected)):
            if spread is not None:
                lowest = f"smallest {spread.smallest:.4g}"
                yield f"  {name:<15}mean {spread.mean:.4g}  largest {spread.largest:.4g}  {lowest}"
    if each:
        yield f"{'version':<9}{'|delta|':>9}{'|h|':>9}{'steps':>6}{'loss':>9}  request"
        for one in report.requests:
            marks = ("  at the clamp" if one.clamped else "") + ("" if one.converged else "  not converged")
            yield (
                f"v{one.sequence:<8}{one.delta:>9.4g}{one.state:>9.4g}{one.steps:>6}{one.loss:>9.3g}"
                f"  {one.request_id}{marks}"
            )
    yield f"{'version':<9}{'edits':>6}{'layer':>6}{'|W|':>10}{'cond':>10}{'turned':>10}{'cond':>10}{'right':>10}"
    for row in report.matrices:
        turned, other = (
            "" if value is None else f"{value:.5g}" for value in (row.turned_frobenius, row.turned_condition)
        )
        right = "" if row.right is None else f"{row.right.mean:.3g}"
        yield (
            f"v{row.sequence:<8}{row.edits:>6}{row.layer:>6}{row.frobenius:>10.5g}{row.condition:>10.5g}"
            f"{turned:>10}{other:>10}{right:>10}"
        )
    for drift in report.values:
        moved = f"{counted(drift.values, 'value')} moved by {drift.change:.3g} of their length since they were written"
        yield f"layer {drift.layer}: {moved} (cosine {drift.cosine:.3f}, centroids {drift.separation:.3g} apart)"
