"""The geometry of hidden states over the versions of a run ("Revisiting", section 4 and appendix B)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from errata.editing.errors import UserError
from errata.editing.model.adapter import EditableModel
from errata.editing.model.decoder import layer_of
from errata.editing.wording import counted
from errata.evaluation.geometry import (
    CEILINGS,
    Principal,
    Rates,
    aggregated,
    change_norms,
    change_rates,
    principal,
    spearman,
    subspace_cosine,
    summary_of,
)

SUMMARIES = ("median", "q90", "q95", "trimmed_mean")
ACROSS = ("mean", "max", "median")
METRICS = ("reliability", "generalization_gen", "locality_true", "portability")
"""With which the amplification is correlated: the paper's four."""
_BATCH_TOKENS = 4096


@dataclass(frozen=True)
class LayerGeometry:
    """One layer of one version beside the unedited one."""

    layer: int
    width: int
    directions: int
    """Principal directions above rounding, of the unedited states."""
    effective_rank: float
    largest: float
    condition: float
    """Of the unedited states: largest singular value, and over the smallest."""
    effective_rank_now: float
    norm: tuple[float, float, float, float]
    """Mean, standard deviation, smallest and largest change of a document's state."""
    rates: Rates
    cosines: Mapping[int, float]
    """By the number of leading directions: the smallest cosine between the two subspaces."""


@dataclass(frozen=True)
class VersionGeometry:
    """All layers of one version."""

    sequence: int
    edits: int
    layers: tuple[LayerGeometry, ...]

    def amplification(self, summary: str, how: str) -> float:
        """One number of the version: a summary of each layer's R_k, then mean, max or median over the layers."""
        return aggregated({item.layer: item.rates for item in self.layers}, summary, how)


@dataclass(frozen=True)
class Correlation:
    """Spearman's rho between amplification and a metric over versions."""

    metric: str
    summary: str
    across: str
    rho: float
    versions: int


@torch.no_grad()
def pooled_outputs(
    model: EditableModel, documents: Sequence[Sequence[int]], layers: Sequence[int]
) -> dict[int, Tensor]:
    """Output of the edited maps of ``layers``, the mean over each document's tokens: float32 (n, d) by layer."""
    outputs: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    at = 0
    while at < len(documents):
        longest, stop = 0, at
        while stop < len(documents):
            longest = max(longest, len(documents[stop]))
            if stop > at and longest * (stop + 1 - at) > _BATCH_TOKENS:
                break
            stop += 1
        rows = model.rows(documents[at:stop])
        with model.map_outputs(list(layers)) as caught:
            model.run(model.embed(rows), 0, max(map(layer_of, layers)) + 1, model.positional(rows.layout))
        inside = torch.arange(rows.ids.shape[1], device=rows.ids.device)[None] < rows.lengths[:, None]
        for layer in layers:
            states = caught[layer].float() * inside[..., None]
            outputs[layer].append((states.sum(dim=1) / rows.lengths[:, None]).cpu())
        at = stop
    return {layer: torch.cat(parts) for layer, parts in outputs.items()}


def geometry(
    model: EditableModel,
    documents: Sequence[Sequence[int]],
    layers: Sequence[int],
    versions: Sequence[tuple[int, int, Callable[[], Mapping[int, Tensor]]]],
) -> Iterator[VersionGeometry]:
    """Every version beside the unedited model, on the same documents; the model's weights are left as they were.

    Args:
        documents: tokens of each, at least two.
        layers: whose maps' outputs are looked at, edited or not.
        versions: (sequence number, edits, gives the edited maps by layer).

    Raises:
        UserError: the documents are all alike.
    """
    before = pooled_outputs(model, documents, layers)
    bases = {layer: principal(states) for layer, states in before.items()}
    for layer, base in bases.items():
        if not base.values.numel():
            raise UserError(
                f"the {len(documents)} documents give no direction at layer {layer}: their states are all the same; "
                "give texts that differ"
            )
    for sequence, edits, weights in versions:
        maps = weights()
        with model.patched(sorted(maps)):
            model.set_weights(maps)
            after = pooled_outputs(model, documents, layers)
        yield VersionGeometry(
            sequence, edits, tuple(_layer(layer, bases[layer], before[layer], after[layer]) for layer in layers)
        )


def _layer(layer: int, base: Principal, before: Tensor, after: Tensor) -> LayerGeometry:
    now = principal(after)
    sizes = [k for k in CEILINGS if k <= min(base.values.numel(), now.values.numel())]
    return LayerGeometry(
        layer,
        before.shape[1],
        base.values.numel(),
        base.effective_rank,
        float(base.values[0]),
        base.condition,
        now.effective_rank,
        change_norms(before, after),
        summary_of(change_rates(base, before, after)),
        {k: subspace_cosine(base, now, k) for k in sizes},
    )


def correlations(
    versions: Sequence[VersionGeometry], metrics: Mapping[int, Mapping[str, float | None]]
) -> list[Correlation]:
    """Amplification against the metrics of the same numbers of edits, where at least three versions have both."""
    rows = []
    for metric in METRICS:
        known = [v for v in versions if metrics.get(v.edits, {}).get(metric) is not None]
        if len(known) < 3:
            continue
        values = [float(metrics[v.edits][metric] or 0.0) for v in known]
        for summary in SUMMARIES:
            for across in ACROSS:
                rho = spearman([v.amplification(summary, across) for v in known], values)
                if rho is not None:
                    rows.append(Correlation(metric, summary, across, rho, len(known)))
    return rows


def geometry_lines(versions: Sequence[VersionGeometry], rows: Sequence[Correlation]) -> Iterator[str]:
    """One line a version and layer, then one a correlation (of the default: median of R_k, mean over layers)."""
    yield (
        f"{'version':<9}{'edits':>6}{'layer':>6}{'rank':>8}{'now':>8}{'cond':>10}{'|dh|':>9}{'R median':>10}"
        f"{'R q95':>9}{'R>1':>7}  cosines"
    )
    for version in versions:
        for item in version.layers:
            cosines = " ".join(f"{k}:{value:.3f}" for k, value in item.cosines.items())
            yield (
                f"v{version.sequence:<8}{version.edits:>6}{item.layer:>6}{item.effective_rank:>8.1f}"
                f"{item.effective_rank_now:>8.1f}{item.condition:>10.2e}{item.norm[0]:>9.3g}{item.rates.median:>10.3g}"
                f"{item.rates.q95:>9.3g}{item.rates.above_one:>7.3f}  {cosines}"
            )
    for row in rows:
        if (row.summary, row.across) == ("median", "mean"):
            what = f"Spearman of the median R_k (mean over layers) with {row.metric}"
            yield f"{what}: {row.rho:+.3f}, {counted(row.versions, 'version')}"
