"""Settings of the guard."""

from __future__ import annotations

from typing import Final

from pydantic import Field, model_validator

from errata.editing.closed import Closed

WEBHOOK: Final = "ERRATA_GUARD_WEBHOOK"
"""Environment variable with the address for alerts: it often carries a secret."""


class GuardConfig(Closed):
    """When the model is compared with its base, and what happens when it has changed too much."""

    every: int | None = Field(None, ge=1)
    """Batches between two checks; null for no guard."""
    sentinels: str | None = None
    """JSON Lines of probes that no edit should change: ``prompt``, and ``expected`` or ``expected_not``; with
    neither, the base's own answer is expected."""
    held_out: str | None = None
    """Text on which perplexity is measured; null for that of ``evaluation.held_out``."""
    max_sentinel_loss: float = Field(0.1, ge=0, le=1, allow_inf_nan=False)
    """Share that may fail of the probes that hold on the base."""
    max_perplexity_ratio: float | None = Field(1.2, gt=0, allow_inf_nan=False)
    """Perplexity over that of the base; null to leave it unmeasured."""
    wait: bool = True
    """The next batch waits for the verdict, so that every run over the same stream decides alike; false goes on
    editing and acts when the verdict is there."""
    pause: bool = True
    """A breach pauses the stream until somebody resumes it."""
    revert: bool = False
    """A breach reverts every edit since the last version that was good, by a commit of its own."""
    webhook: str | None = None
    """Address that alerts are posted to; one with a secret belongs into the environment, as ERRATA_GUARD_WEBHOOK."""
    webhook_timeout_seconds: float = Field(5.0, gt=0, allow_inf_nan=False)
    """For connecting, and for the answer to begin."""
    webhook_retries: int = Field(3, ge=0)
    """Attempts after the first, with growing pauses, in the background."""

    @model_validator(mode="after")
    def _measures_something(self) -> GuardConfig:
        if self.every is not None and self.sentinels is None and self.max_perplexity_ratio is None:
            raise ValueError("the guard measures nothing: give guard.sentinels or guard.max_perplexity_ratio")
        return self
