"""The project's own schema: one `EditRequest` a record (see docs/datasets.md)."""

from __future__ import annotations

from collections.abc import Iterator

from errata.evaluation.datasets.record import Draft, Loader, Raw


def convert(raw: Raw, target: str) -> Iterator[Draft]:
    """The record is the request."""
    yield dict(raw)


OWN = Loader(name="own", detect=lambda raw: {"subject", "prompt"} <= raw.keys(), convert=convert)
