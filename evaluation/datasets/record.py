"""What a loader gives and what it is made of: records, drafts of requests, checked access to raw fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from errata.editing.digest import digest_json
from errata.editing.request import EditRequest, Retraction
from errata.editing.texts import clean_all

Raw = Mapping[str, Any]
Draft = dict[str, Any]
"""Fields of one `EditRequest`, not validated yet."""


@dataclass(frozen=True)
class ValidRecord:
    """One edit of a data set."""

    request: EditRequest
    position: str
    """``file:line`` (JSONL) or ``file#number`` (JSON array), from 1; ``/k`` is the k-th edit of a record."""


@dataclass(frozen=True)
class RetractingRecord:
    """A record that takes a request of a stream back; data sets to be learned from have none."""

    retraction: Retraction
    position: str


@dataclass(frozen=True)
class BadRecord:
    """One edit that does not fit, and why; the others go on."""

    position: str
    reason: str


AnyRecord = ValidRecord | RetractingRecord | BadRecord


class RecordError(ValueError):
    """A raw record lacks something its schema promises."""


@dataclass(frozen=True)
class Loader:
    """One data set: how its records are told apart and how they become edits."""

    name: str
    detect: Callable[[Raw], bool]
    """True when the fields of a record are those of this schema."""
    convert: Callable[[Raw, str], Iterator[Draft]]
    """(record, target setting) -> the drafts of its edits, in the order in which they are to be applied."""
    targets: tuple[str, ...] = ("target_new",)
    """The settings of what is written into the model; the first is the default."""

    def target(self, setting: str) -> str:
        """Resolve ``default``; ValueError names what is allowed."""
        if setting == "default":
            return self.targets[0]
        if setting not in self.targets:
            raise ValueError(
                f"target {setting!r} is unknown to {self.name}; allowed: default, {', '.join(self.targets)}"
            )
        return setting


def text_of(raw: Raw, *names: str) -> str:
    """The string under a path of field names; numbers are accepted as text.

    Raises:
        RecordError: the field is absent, blank or of another type.
    """
    value: Any = raw
    for name in names:
        if not isinstance(value, Mapping) or name not in value:
            raise RecordError(f"field {'.'.join(names)!r} is missing")
        value = value[name]
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise RecordError(f"field {'.'.join(names)!r} must be text, got {type(value).__name__}")
    if not value.strip():
        raise RecordError(f"field {'.'.join(names)!r} is empty")
    return value.strip()


def optional_text(raw: Raw, *names: str) -> str | None:
    """Like `text_of`, but None when the field is absent or blank."""
    try:
        return text_of(raw, *names)
    except RecordError:
        return None


def items_of(raw: Raw, *names: str, required: bool = True) -> list[Raw]:
    """The list of objects under a path of field names; an absent one is empty where it is not required.

    Raises:
        RecordError: the field is absent though required, or not a list of objects.
    """
    value: Any = raw
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    if value is None and not required:
        return []
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise RecordError(f"field {'.'.join(names)!r} must be a list of objects, got {type(value).__name__}")
    return value


def texts(value: Any) -> list[str]:
    """Every non-blank string in nested lists, in order, each once (KnowEdit has four answer types)."""
    seen: dict[str, None] = {}

    def walk(item: Any) -> None:
        if isinstance(item, str):
            if item.strip():
                seen.setdefault(item.strip())
        elif isinstance(item, int | float) and not isinstance(item, bool):
            seen.setdefault(str(item))
        elif isinstance(item, Sequence):
            for part in item:
                walk(part)

    walk(value)
    return list(seen)


def raw_id(schema: str, raw: Raw, target: str, part: int | None = None) -> str:
    """An idempotency key for records without a number: the digest of the whole record and the target.

    The same record read twice is one edit; two records that ask the same with other probes stay two.
    """
    key = f"{schema}-{digest_json([raw, target])[:12]}"
    return key if part is None else f"{key}-{part}"


def one_line(error: ValidationError) -> str:
    """A pydantic error as one line that names field, problem and value."""
    parts = []
    for item in error.errors(include_url=False):
        where = ".".join(str(step) for step in item["loc"])
        what = item["msg"].removeprefix("Value error, ")
        parts.append(f"{where}: {what}" if where else what)
    return "; ".join(parts)


def build(loader: Loader, raw: Any, target: str, position: str) -> Iterator[AnyRecord]:
    """All edits of one raw record; never raises for what the record holds."""
    if not isinstance(raw, Mapping):
        yield BadRecord(position, f"a record must be an object, got {type(raw).__name__}")
        return
    if "retracts" in raw:  # of any layout: it names a request and asks for none
        try:
            yield RetractingRecord(Retraction.model_validate(dict(raw)), position)
        except ValidationError as error:
            yield BadRecord(position, one_line(error))
        except ValueError as error:
            yield BadRecord(position, str(error))
        return
    part = 0
    try:
        for draft in loader.convert(raw, target):
            part += 1
            where = position if part == 1 else f"{position}/{part}"
            try:
                clean_all(draft)  # only looked at: what is kept is made where the request is accepted
                yield ValidRecord(EditRequest.model_validate(draft), where)
            except ValidationError as error:
                yield BadRecord(where, one_line(error))
            except ValueError as error:
                yield BadRecord(where, str(error))
    except ValueError as error:
        # RecordError, and what no digest can be made of: NaN, half of a surrogate pair
        yield BadRecord(position if part == 0 else f"{position}/{part + 1}", str(error))
        return
    if part == 0:
        yield BadRecord(position, "the record holds no edit")
