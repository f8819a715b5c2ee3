"""Where metrics go."""

from __future__ import annotations

from errata.editing.closed import Closed


class TrackingConfig(Closed):
    """MLflow."""

    uri: str | None = None
    """Server or database; null for a SQLite file in the output directory."""
    experiment: str = "errata"
    """MLflow experiment that the run belongs to."""
    parent: str | None = None
    """MLflow id of the run that this one belongs under; a sweep sets it for its cells."""
