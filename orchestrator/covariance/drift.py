"""Whether the edited model has moved away from what its covariance was made from: a small probe and two signs.

The probe is the beginning of what a refresh would take in: a few sequences that the frozen version says by itself, or
the first documents of the text. It runs where a refresh runs, so editing goes on meanwhile, and it is drawn with a seed
that follows from the number of edits, so a run that is repeated comes to the same decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from errata.actors.workers.covariance import Estimate, EstimateJob
from errata.editing.covariance import KeyCovariance
from errata.editing.estimation.diagnostics import energy_basis, energy_outside, nll_shift
from errata.orchestrator.config.refresh import DriftConfig

NOT_NEEDED = "refresh_not_needed"
"""Kind of the journal's event for a look that found no drift."""


@dataclass(frozen=True)
class Drift:
    """What a look has found."""

    energy: Mapping[int, float]
    """Share of key energy outside the leading subspace, by layer; empty where it was not looked at."""
    nll: float | None
    """Shift of the mean per-document NLL in standard deviations, signed; None where it was not looked at."""
    reasons: tuple[str, ...]
    """Which bounds it is beyond; none where the covariance in force still fits."""

    @property
    def text(self) -> str:
        """In words: the reasons, or the figures that are within their bounds."""
        if self.reasons:
            return "; ".join(self.reasons)
        parts = [f"{max(self.energy.values()):.3f} of the key energy outside"] if self.energy else []
        parts += [] if self.nll is None else [f"NLL moved by {self.nll:+.2f} standard deviations"]
        return "no drift: " + ", ".join(parts)


@dataclass(frozen=True)
class Look:
    """A probe that decides whether the estimate after it is made."""

    job: EstimateJob
    judge: Callable[[Estimate], Drift]


@dataclass(frozen=True)
class Looked:
    """What came of an estimate that a probe went before; None where it was not needed."""

    drift: Drift
    estimate: Estimate | None
    seconds: float


class DriftWatch:
    """Judges probes; keeps the leading subspaces of the covariance in force, whose decomposition is the costly part."""

    def __init__(self, config: DriftConfig) -> None:
        self._config = config
        self._bases: tuple[str, dict[int, Tensor]] | None = None

    def look(self, job: EstimateJob, digest: str, load: Callable[[], KeyCovariance]) -> Look:
        """The probe of a refresh.

        Args:
            job: of the refresh.
            digest: of the covariance in force at its trigger.
            load: reads that covariance; called in the background.
        """
        probe = job.model_copy(update={"tokens": None, "sequences": self._config.sequences})
        return Look(probe, lambda estimate: self._judge(digest, load(), estimate))

    def _judge(self, digest: str, current: KeyCovariance, probe: Estimate) -> Drift:
        if self._bases is None or self._bases[0] != digest:
            wanted = current.layers if self._config.energy is not None else ()
            self._bases = digest, {i: energy_basis(current.mean(i), self._config.leading) for i in wanted}
        return drift(self._config, self._bases[1], current, probe)


def drift(config: DriftConfig, bases: Mapping[int, Tensor], current: KeyCovariance, probe: Estimate) -> Drift:
    """Both signs against their bounds.

    A covariance that is kept without its documents' likelihoods has no NLL to compare with; the energy decides alone.

    Args:
        bases: leading subspace (I, k) of ``current`` by layer.
    """
    outside = {layer: energy_outside(basis, probe.covariance.sums[layer]) for layer, basis in bases.items()}
    known = current.record.documents if current.record is not None else ()
    shift = nll_shift(known, probe.documents) if config.nll is not None and known and probe.documents else None
    reasons = []
    if config.energy is not None and outside:
        layer = max(outside, key=lambda i: outside[i])
        if not outside[layer] <= config.energy:  # what is no number is drift too
            reasons.append(
                f"drift: {outside[layer]:.3f} of the key energy of layer {layer} outside, allowed {config.energy:g}"
            )
    if shift is not None and config.nll is not None and not abs(shift) <= config.nll:
        reasons.append(f"drift: NLL moved by {shift:+.2f} standard deviations, allowed {config.nll:g}")
    return Drift(outside, shift, tuple(reasons))
