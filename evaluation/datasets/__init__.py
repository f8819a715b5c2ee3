"""Data sets of factual updates as one stream of `EditRequest`s; a record that does not fit is reported, not
fatal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, islice
from pathlib import Path

from errata.editing.errors import UserError
from errata.evaluation.datasets.at_scale import ULTRAEDITBENCH, WIKIBIGEDIT
from errata.evaluation.datasets.conceptedit import CONCEPTEDIT_INTER, CONCEPTEDIT_INTRA
from errata.evaluation.datasets.counterfact import COUNTERFACT, COUNTERFACT_DISTRACTING, COUNTERFACT_EASYEDIT
from errata.evaluation.datasets.elken import ELKEN
from errata.evaluation.datasets.knowedit import (
    KNOWEDIT_WIKI_COUNTERFACT,
    KNOWEDIT_WIKI_RECENT,
    KNOWEDIT_WIKIBIO,
    KNOWEDIT_ZSRE,
)
from errata.evaluation.datasets.multi_edit import CONFLICTEDIT, MQUAKE
from errata.evaluation.datasets.own import OWN
from errata.evaluation.datasets.reading import read_records
from errata.evaluation.datasets.record import AnyRecord, BadRecord, Loader, RetractingRecord, ValidRecord, build
from errata.evaluation.datasets.same_subject import LOCOMO, S2RKE
from errata.evaluation.datasets.zsre import ZSRE

__all__ = [
    "DATASETS",
    "AnyRecord",
    "BadRecord",
    "Loader",
    "RetractingRecord",
    "ValidRecord",
    "detect_schema",
    "open_dataset",
]

DATASETS: Mapping[str, Loader] = {
    loader.name: loader
    for loader in (
        COUNTERFACT,
        COUNTERFACT_DISTRACTING,
        COUNTERFACT_EASYEDIT,
        MQUAKE,
        ZSRE,
        KNOWEDIT_ZSRE,
        KNOWEDIT_WIKI_COUNTERFACT,
        KNOWEDIT_WIKI_RECENT,
        KNOWEDIT_WIKIBIO,
        CONCEPTEDIT_INTRA,
        CONCEPTEDIT_INTER,
        ELKEN,
        S2RKE,
        LOCOMO,
        CONFLICTEDIT,
        WIKIBIGEDIT,
        ULTRAEDITBENCH,
        OWN,  # last: its two required fields occur in other schemas too
    )
}
"""Name -> loader, in the order in which a schema is detected."""

_LOOK_AT = 20


def detect_schema(records: list[object], source: str) -> Loader:
    """The loader of the first record that any schema recognizes.

    Raises:
        UserError: none does.
    """
    for record in records:
        if isinstance(record, Mapping):
            for loader in DATASETS.values():
                if loader.detect(record):
                    return loader
    if any(isinstance(record, Mapping) and "retracts" in record for record in records):
        return OWN  # what takes requests back is of no layout
    first = records[0] if records else None
    shown = sorted(map(str, first)) if isinstance(first, Mapping) else type(first).__name__
    raise UserError(f"no schema fits {source!r} (first record: {shown}); name one of: {', '.join(DATASETS)}")


def open_dataset(
    path: str | Path,
    schema: str = "auto",
    *,
    target: str = "default",
    limit: int | None = None,
    skip: int = 0,
) -> Iterator[AnyRecord]:
    """The edits of a data set, in file order.

    Args:
        path: a JSON array or JSON Lines file (``.gz`` accepted), or ``hub:NAME[:SPLIT]`` (split ``train``
        by default).
        schema: a name in `DATASETS`, or ``auto``: told from the fields of the first records.
        target: what is written where tools differ, e.g. ZsRE ``answers0`` or ``alt``; ``default`` is the
        loader's first.
        limit: at most this many edits, good and bad ones alike; None for all.
        skip: edits passed over at the beginning.

    Raises:
        UserError: at the call, before the first record: missing file, malformed JSON (file and line), unknown
            schema or target, a negative ``limit`` or ``skip``.
    """
    if schema != "auto" and schema not in DATASETS:
        raise UserError(f"schema {schema!r} is unknown; allowed: auto, {', '.join(DATASETS)}")
    if skip < 0 or (limit is not None and limit < 0):
        raise UserError(f"skip and limit must not be negative, got skip={skip}, limit={limit}")
    records = read_records(path)
    head = list(islice(records, _LOOK_AT))
    loader = DATASETS[schema] if schema != "auto" else detect_schema([raw for _, raw in head], str(path))
    try:
        wanted = loader.target(target)
    except ValueError as error:
        raise UserError(str(error)) from error
    edits = (edit for position, raw in chain(head, records) for edit in build(loader, raw, wanted, position))
    return islice(edits, skip, None if limit is None else skip + limit)
