"""Old facts are asked again, and what the model no longer says is written again."""

from __future__ import annotations

from pydantic import Field

from errata.editing.closed import Closed


class RepairConfig(Closed):
    """Repair: retention as a setting instead of a fate."""

    every: int | None = Field(None, ge=1)
    """Edits between two looks at what was written before; null for none."""
    sample: int = Field(100, ge=1)
    """Facts that are asked at once, drawn evenly from all that hold. Asking costs one short forward pass each."""
    target: float = Field(0.95, gt=0, le=1)
    """Share of a sample that the model has to say. Below it, what it does not say is written again and another sample
    is asked, until one reaches the target, every fact was asked, or ``most`` is used up."""
    most: float = Field(0.2, gt=0, le=10)
    """Edits that a look may write again, as a share of ``every``: what bounds the cost."""
