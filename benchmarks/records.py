"""Edits and a model for the benchmarks: CounterFact where it is to be had, else edits of the project's own stream."""

from __future__ import annotations

import os
from pathlib import Path

from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditRequest
from errata.evaluation.datasets import ValidRecord, open_dataset

ROOT = Path(__file__).parent.parent
MODEL = "smollm2-135m-instruct"
LAYERS = (4, 5, 6, 7, 8)
CONTEXTS, CONTEXT_LENGTH = 5, 10
"""Prefixes beside the empty context, and tokens of each: the papers' six contexts."""


def counterfact(path: str | None, limit: int) -> list[EditRequest]:
    """The first records of CounterFact; ``path`` or ``ERRATA_SHARED_DATA`` says where it is."""
    given = os.environ.get("ERRATA_SHARED_DATA", str(ROOT.parent / "shared" / "data"))
    records = open_dataset(Path(path) if path else Path(given) / "counterfact" / "counterfact.json", limit=limit)
    return [record.request for record in records if isinstance(record, ValidRecord)]


def smollm2() -> EditableModel:
    """The demo model in float32; ``errata models fetch`` gets it."""
    from errata.editing.checkpoint.load import load_model

    return load_model(MODEL)
