"""Where updates come from: a file of records, read in order, each with its position."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from errata.editing.errors import UserError
from errata.editing.request import EditRequest, PortabilityProbe, Retraction
from errata.evaluation.datasets import RetractingRecord, ValidRecord, open_dataset


@dataclass(frozen=True, slots=True)
class StreamRecord:
    """One record of a stream: a request, or why it is none. Exactly one of the two is set."""

    position: str
    """``file:line`` (JSON Lines) or ``file#number`` (JSON array), counted from 1, without the directory, so
    that a run resumed from elsewhere meets the same record."""
    request: EditRequest | Retraction | None = None
    problem: str | None = None


def open_stream(
    path: str | Path,
    schema: str = "auto",
    *,
    target: str = "default",
    limit: int | None = None,
    skip: int = 0,
    probes: int | None = None,
    portability: str | Path | None = None,
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
        portability: file of the same schema whose records' portability questions are joined to the stream's by id.

    Raises:
        UserError: at the call, before anything has started: no such file, malformed JSON (file and line),
            no record at all, unknown schema, or ``skip`` beyond the last record.
    """
    records = open_dataset(path, schema, target=target, limit=limit, skip=skip)
    first = next(records, None)
    if first is None:
        raise UserError(f"stream {str(path)!r} holds no record with limit={limit} and skip={skip}")

    questions = {} if portability is None else _portability(portability, schema, target)

    def all_records() -> Iterator[StreamRecord]:
        for record in chain([first], records):
            yield _convert(record, str(path), probes, questions)

    return all_records()


def _portability(path: str | Path, schema: str, target: str) -> dict[str, tuple[PortabilityProbe, ...]]:
    """The portability questions of a file, by the id of their edit."""
    records = open_dataset(path, schema, target=target)
    valid = [record.request for record in records if isinstance(record, ValidRecord)]
    questions = {request.id: request.portability for request in valid if request.portability}
    if not questions:
        raise UserError(f"stream.portability {str(path)!r} holds no portability questions")
    return questions


def _convert(
    record: object, source: str, probes: int | None, questions: Mapping[str, tuple[PortabilityProbe, ...]]
) -> StreamRecord:
    position = str(getattr(record, "position", ""))
    if position.startswith(source):
        position = Path(source).name + position[len(source) :]
    if isinstance(record, RetractingRecord):
        return StreamRecord(position, request=record.retraction)
    if isinstance(record, ValidRecord):
        request = record.request
        if (more := questions.get(request.id)) and not request.portability:
            request = request.model_copy(update={"portability": more})
        return StreamRecord(position, request=_with_fewer(request, probes))
    return StreamRecord(position, problem=str(getattr(record, "reason", "not a record")))


def _with_fewer(request: EditRequest, probes: int | None) -> EditRequest:
    """The first questions of each kind; CounterFact's ten on the neighborhood take most of an evaluation's time."""
    if probes is None:
        return request
    kinds = ("paraphrases", "neighborhood", "portability")
    return request.model_copy(update={kind: getattr(request, kind)[:probes] for kind in kinds})
