"""Edits that come as CloudEvents (https://cloudevents.io): one event is one edit, or carries a list of them.

The data of an event is what `POST /v1/edits` takes. Its source and id name it: they become the id of a single edit that
has none of its own, so that an event which is delivered twice is one edit; its source and time become the provenance.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Final

from errata.orchestrator.service.bodies import ID_PATTERN
from errata.orchestrator.service.errors import ServiceError, printable

STRUCTURED: Final = "application/cloudevents+json"
BATCH: Final = "application/cloudevents-batch+json"


def is_event(headers: Mapping[str, str]) -> bool:
    """Whether a call is an event: structured or batched by its content type, binary by its headers."""
    return _media_type(headers) in (STRUCTURED, BATCH) or "ce-specversion" in headers


def edits_of(headers: Mapping[str, str], body: bytes) -> bytes:
    """The edits that events carry, as a body of `POST /v1/edits`.

    Args:
        headers: by names in lower case.

    Raises:
        ServiceError: 400 where it is no event, or its data is no JSON.
    """
    from cloudevents.core.bindings.http import HTTPMessage, from_http_event
    from cloudevents.core.exceptions import BaseCloudEventException
    from cloudevents.core.formats.json import JSONFormat

    try:
        if _media_type(headers) == BATCH:
            listed = json.loads(body)
            if not isinstance(listed, list) or not listed:
                raise ServiceError(400, "bad_event", "a batch of events is a list of at least one")
            events = [JSONFormat().read(None, json.dumps(item)) for item in listed]
        else:
            events = [from_http_event(HTTPMessage(headers=dict(headers), body=body))]
    except BaseCloudEventException as error:
        raise ServiceError(400, "bad_event", f"no CloudEvent: {printable(str(error))[:300]}") from None
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ServiceError(400, "bad_event", f"no CloudEvent: {printable(str(error))[:300]}") from None
    edits: list[Any] = []
    for event in events:
        edits += _edits(event)
    return json.dumps(edits[0] if len(edits) == 1 else edits).encode()


def _edits(event: Any) -> list[Any]:
    data = event.get_data()
    if isinstance(data, bytes | str):
        try:
            data = json.loads(data)
        except ValueError:
            raise ServiceError(400, "bad_event", "the data of the event is no JSON") from None
    if isinstance(data, dict) and set(data) == {"edits"}:
        data = data["edits"]
    items = data if isinstance(data, list) else [data]
    single = len(items) == 1
    return [_named(item, event, single) for item in items]


def _named(item: Any, event: Any, single: bool) -> Any:
    if not isinstance(item, dict):
        return item  # the parser of edits says what is wrong with it
    item = dict(item)
    if single and "id" not in item:
        item["id"] = event_id(str(event.get_source()), str(event.get_id()))
    if "provenance" not in item:
        time = event.get_time()
        said = {"source": printable(str(event.get_source()))[:300], "when": None if time is None else time.isoformat()}
        item["provenance"] = {key: value for key, value in said.items() if value}
    return item


def event_id(source: str, identifier: str) -> str:
    """The id of the edit of an event: source and id where they make one that clients may give, else their digest."""
    plain = f"{source}:{identifier}"
    if re.fullmatch(ID_PATTERN, plain):
        return plain
    return "ce-" + hashlib.sha256(f"{source}\n{identifier}".encode()).hexdigest()[:32]


def _media_type(headers: Mapping[str, str]) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()
