"""Triples from the text of an event, by a chat model: ELKEN's events become edits (see `elken`)."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from errata.evaluation.endpoint import ChatEndpoint

logger = logging.getLogger(__name__)

_INSTRUCTION = (
    "Extract the facts that an event makes true. Reply with a JSON array only; each item is an object with "
    'the keys "subject" (the entity, as it is written in the event), "prompt" (the beginning of a sentence '
    'about it that holds the subject word for word and stops right before the object) and "target" (the '
    'object, a few words). Example: [{"subject": "Marie Curie", "prompt": "Marie Curie was born in", '
    '"target": "Warsaw"}]'
)


def parse_triples(reply: str) -> list[dict[str, str]]:
    """The triples in a model's reply; what is not one, or whose prompt lacks the subject, is left out."""
    start, end = reply.find("["), reply.rfind("]")
    try:
        items = json.loads(reply[start : end + 1]) if 0 <= start < end else []
    except json.JSONDecodeError:
        items = []
    triples = []
    for item in items:
        if not isinstance(item, Mapping):
            continue
        fields = {name: str(item.get(name) or "").strip() for name in ("subject", "prompt", "target")}
        if all(fields.values()) and fields["subject"] in fields["prompt"]:
            triples.append(fields)
    return triples


def with_triples(records: Iterable[Mapping[str, Any]], endpoint: ChatEndpoint) -> Iterator[dict[str, Any]]:
    """ELKEN records with their extracted `triples` added; records that have them already pass unchanged.

    A record from whose event nothing could be extracted keeps no `triples` and is read by its questions.

    Raises:
        EndpointError: the endpoint failed after its retries.
    """
    rows = [dict(record) for record in records]
    wanted = [row for row in rows if not row.get("triples") and isinstance(row.get("event"), str)]
    replies = endpoint.ask_many(
        [[{"role": "system", "content": _INSTRUCTION}, {"role": "user", "content": row["event"]}] for row in wanted]
    )
    for row, reply in zip(wanted, replies, strict=True):
        triples = parse_triples(reply)
        if triples:
            row["triples"] = triples
        else:
            logger.warning("no triple extracted from the event %r", row["event"][:80])
    yield from rows
