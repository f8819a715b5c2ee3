"""Bodies into models: strictly, from the bytes, with errors that name the place and repeat nothing dangerous."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json

from errata.editing.request import EditRequest
from errata.editing.wording import counted
from errata.orchestrator.service.errors import ServiceError, printable
from errata.orchestrator.service.models import ID_PATTERN, EditIn, EditsIn

M = TypeVar("M", bound=BaseModel)
_MOST_DETAILS = 50
_AT_ONCE = 16_384
"""Bytes that are parsed in a fraction of a millisecond."""


def parse(model: type[M], body: bytes) -> M:
    """A body as a model; an empty one as the empty object.

    Raises:
        ServiceError: 400 where it is not JSON, 422 where it does not fit.
    """
    try:
        return model.model_validate_json(body or b"{}", strict=True)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_input=False)) from None


async def body_as(model: type[M], request: Request) -> M:
    """A request's body as `parse` reads it; a large one in a thread, so that nobody else waits for it."""
    body = await request.body()
    return parse(model, body) if len(body) <= _AT_ONCE else await run_in_threadpool(parse, model, body)


def invalid(errors: Sequence[ErrorDetails | dict[str, Any]], at: str = "") -> ServiceError:
    """The answer to a body that is no JSON or does not fit."""
    if errors and errors[0]["type"] == "json_invalid":
        return ServiceError(400, "not_json", f"the body is no JSON: {_message(errors[0])}")
    details = [{"at": place(error["loc"], at), "message": _message(error)} for error in errors[:_MOST_DETAILS]]
    first = details[0] if details else {"at": at, "message": "does not fit"}
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    where = f"{first['at']}: " if first["at"] else ""
    return ServiceError(422, "invalid", f"{where}{first['message']}{more}", details=details)


def place(location: Sequence[int | str], at: str = "") -> str:
    """A location such as ``edits.3.prompt``, printable and of bounded length."""
    parts = [part for part in (at, *map(str, location)) if part]
    return printable(".".join(parts))[:200]


def _message(error: ErrorDetails | dict[str, Any]) -> str:
    if error["type"] == "string_pattern_mismatch":
        if (error.get("ctx") or {}).get("pattern") == ID_PATTERN:
            return "an id is made of letters, digits and . _ : @ + = ~ -, begins with one of the first two, at most 128"
        return "must be visible text without control characters"
    return printable(str(error["msg"]))[:300]


@dataclass(frozen=True)
class Submission:
    """The edits of one body, in order: those that fit, and what is wrong with the others."""

    requests: dict[int, EditRequest]
    problems: dict[int, dict[str, Any]]
    single: bool
    """The body was one edit and no list."""


def parse_edits(
    body: bytes, *, most: int, key: str | None = None, by: str | None = None, now: datetime | None = None
) -> Submission:
    """One edit, a list of edits, or ``{"edits": [...]}``; every edit is judged by itself.

    Args:
        most: edits in one body.
        key: idempotency key of the call; for a single edit without an id.
        by, now: who and when, where an edit does not say.

    Raises:
        ServiceError: 400, 413, 422: the body as a whole cannot be read.
    """
    try:
        data = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ServiceError(400, "not_json", f"the body is no JSON: {printable(str(error))[:200]}") from None
    if isinstance(data, dict) and "edits" in data:
        extra = sorted(set(data) - set(EditsIn.model_fields))
        if extra:
            raise ServiceError(422, "invalid", f"unknown key {printable(extra[0])[:100]!r} beside 'edits'")
        data = data["edits"]
        if not isinstance(data, list):
            raise ServiceError(422, "invalid", "edits: must be a list")
    single = isinstance(data, dict)
    items = [data] if single else data
    if not isinstance(items, list) or not items:
        raise ServiceError(422, "invalid", "the body is an edit, or a list of at least one")
    if len(items) > most:
        raise ServiceError(413, "too_many_edits", f"a body holds at most {counted(most, 'edit')}, got {len(items)}")
    if key is not None and not single:
        raise ServiceError(400, "bad_request", "Idempotency-Key goes with a single edit; give each of several its id")
    if key is not None and not re.fullmatch(ID_PATTERN, key):
        raise ServiceError(400, "bad_request", "Idempotency-Key: " + _message(_BAD_ID))
    requests: dict[int, EditRequest] = {}
    problems: dict[int, dict[str, Any]] = {}
    for number, item in enumerate(items):
        try:
            requests[number] = _edit(item).request(key=key, by=by, now=now)
        except ValidationError as error:
            wrong = invalid(error.errors(include_url=False, include_input=False, include_context=True))
            named = item.get("id") if isinstance(item, dict) else None
            known = named if isinstance(named, str) and re.fullmatch(ID_PATTERN, named) else None
            problems[number] = {"index": number, "id": known, "status": "invalid", "error": wrong.message}
    return Submission(requests, problems, single)


_BAD_ID: dict[str, Any] = {"type": "string_pattern_mismatch", "ctx": {"pattern": ID_PATTERN}}


def _edit(item: Any) -> EditIn:
    """Through JSON, whose strict mode takes times from text and lists as they come."""
    return EditIn.model_validate_json(json.dumps(item), strict=True)
