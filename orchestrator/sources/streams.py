"""Where updates come from: a file of records, read in order, each with its position."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from errata.editing.errors import UserError
from errata.editing.request import EditRequest
from errata.evaluation.datasets import ValidRecord, open_dataset


@dataclass(frozen=True, slots=True)
class StreamRecord:
    """One record of a stream: a request, or why it is none. Exactly one of the two is set."""

    position: str
    """``file:line`` (JSON Lines) or ``file#number`` (JSON array), counted from 1, without the directory, so
    that a run resumed from elsewhere meets the same record."""
    request: EditRequest | None = None
    problem: str | None = None


def open_stream(
    path: str | Path,
    schema: str = "auto",
    *,
    target: str = "default",
    limit: int | None = None,
    skip: int = 0,
    probes: int | None = None,
) -> Iterator[StreamRecord]:
    """The records of a file or data set, in order. Nothing is read twice and nothing is kept.

    Args:
        path: JSON Lines or a JSON array, in the project's own schema, CounterFact's or another known one; or
            ``hub:NAME[:SPLIT]``.
        schema: name of a schema, or ``auto``: told from the first records.
        target: which answer is written where a schema offers several.
        limit: at most this many records, good and bad ones alike; None for all.
        skip: records passed over at the beginning.
        probes: keep at most this many questions of each kind of a record; None for all.

    Raises:
        UserError: at the call, before anything has started: no such file, malformed JSON (file and line),
            no record at all, unknown schema, or ``skip`` beyond the last record.
    """
    records = open_dataset(path, schema, target=target, limit=limit, skip=skip)
    first = next(records, None)
    if first is None:
        raise UserError(f"stream {str(path)!r} holds no record with limit={limit} and skip={skip}")

    def all_records() -> Iterator[StreamRecord]:
        yield _convert(first, str(path), probes)
        for record in records:
            yield _convert(record, str(path), probes)

    return all_records()


def _convert(record: object, source: str, probes: int | None) -> StreamRecord:
    position = str(getattr(record, "position", ""))
    if position.startswith(source):
        position = Path(source).name + position[len(source) :]
    if isinstance(record, ValidRecord):
        return StreamRecord(position, request=_with_fewer(record.request, probes))
    return StreamRecord(position, problem=str(getattr(record, "reason", "not a record")))


def _with_fewer(request: EditRequest, probes: int | None) -> EditRequest:
    """The first questions of each kind; CounterFact's ten on the neighbourhood take most of an evaluation's time."""
    if probes is None:
        return request
    kinds = ("paraphrases", "neighborhood", "portability")
    return request.model_copy(update={kind: getattr(request, kind)[:probes] for kind in kinds})
