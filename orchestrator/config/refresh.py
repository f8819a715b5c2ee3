"""When the covariance of a run is estimated again, and how the new one takes over."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from errata.editing.closed import Closed


class RefreshConfig(Closed):
    """When the covariance is estimated again, and how the new one takes over."""

    every: int | None = Field(None, ge=1)
    """Edits between two refreshes; null for none."""
    seconds: float | None = Field(None, gt=0)
    """A refresh also begins when the last one is that long ago and edits have come since; needs ``schedule: asap``."""
    drift: DriftConfig | None = None
    """A refresh also begins where a small probe of the edited model shows that it has moved; null never looks."""
    lag: int = Field(10, ge=0)
    """The new covariance takes effect this many edits after its refresh was triggered, waiting if it is late."""
    model: Literal["live", "base"] = "live"
    """Whose generations: the edited model's as it is then, or the unedited one's."""
    mode: Literal["replace", "ema", "mixture"] = "replace"
    """The new estimate replaces the old one, is averaged into it (``ema``), or is weighed with the run's first one
    (``mixture``)."""
    ema_weight: float = Field(0.5, gt=0, le=1)
    """Weight of the new estimate under ``ema``; the rest is the covariance in force."""
    mixture_weight: float = Field(0.5, gt=0, le=1)
    """Weight of the new estimate under ``mixture``; the rest is the first one, of the unedited model."""
    max_jsd: float | None = Field(0.2, gt=0)
    """A refresh is refused where the per-document NLL has moved further than this from the first estimate's
    (Jensen-Shannon divergence, nats, at most 0.69); null accepts any. 0.2 is a shift by one and a half standard
    deviations; two samples of one distribution of 50 documents differ by less than 0.06."""


class DriftConfig(Closed):
    """When the edited model is looked at for drift, and how far it may have moved before a refresh follows."""

    every: int = Field(ge=1)
    """Edits between two looks."""
    sequences: int = Field(32, ge=1)
    """Sequences of the probe, or documents of the covariance's text."""
    energy: float | None = Field(0.25, gt=0, lt=1)
    """A refresh follows where, at any layer, more than this share of the energy of the probe's keys lies outside the
    leading subspace of the covariance in force; null leaves it out."""
    leading: float = Field(0.95, gt=0, lt=1)
    """Share of the energy of the covariance in force that its leading subspace holds."""
    nll: float | None = Field(1.0, gt=0)
    """A refresh follows where the mean NLL of the probe's documents lies further than this many standard deviations
    from that of the documents of the covariance in force; null leaves it out."""

    @model_validator(mode="after")
    def _looks_at_something(self) -> DriftConfig:
        if self.energy is None and self.nll is None:
            raise ValueError("drift looks at nothing: give energy, nll or both")
        return self
