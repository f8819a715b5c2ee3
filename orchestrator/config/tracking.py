"""Where metrics go."""

from __future__ import annotations

from pydantic import Field

from errata.editing.closed import Closed


class TrackingConfig(Closed):
    """MLflow."""

    uri: str | None = None
    """Server or database; null for a SQLite file in the output directory."""
    experiment: str = "errata"
    """MLflow experiment that the run belongs to."""
    parent: str | None = None
    """MLflow id of the run that this one belongs under; a sweep sets it for its cells."""
    description: str = ""
    """What MLflow's page says of the run, above what it says by itself; Markdown."""
    tags: dict[str, str] = {}
    """Tags of the MLflow run, to find it by."""
    system_seconds: float | None = Field(30.0, gt=0)
    """How often the machine's load is written down: processor, memory, disk, network, cards. Null: never."""
    trace_share: float = Field(0.0, ge=0, le=1)
    """Share of the calls of ``/v1/query`` that become traces, with question and answers; 0: none leaves the service."""
