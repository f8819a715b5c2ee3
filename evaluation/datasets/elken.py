"""ELKEN (Peng et al. 2024, "Event-Level Knowledge Editing"): events, and the facts that change with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from errata.evaluation.datasets.record import (
    Draft,
    Loader,
    Raw,
    RecordError,
    items_of,
    optional_text,
    raw_id,
    text_of,
    texts,
)

UNKNOWN = "NA"


def convert(raw: Raw, target: str) -> Iterator[Draft]:
    """Each factual question of the event is an edit; the event's text is the statement that memory keeps.

    ``target``: ``known`` (questions whose answer the event makes unknowable are left out) or ``all`` (their
    target is the data set's own word, `unknown`). A record with a field `triples`, a list of ``{"subject",
    "prompt", "target"}`` (see `errata.evaluation.datasets.extraction`), is edited by these instead and its factual
    questions become portability probes. Events with tendency questions only hold no edit.
    """
    event, triples = text_of(raw, "event"), items_of(raw, "triples", required=False)
    local = tuple(_neighborhood(items_of(raw, "fact", "local_qas", required=False)))
    asked = items_of(raw, "fact", "qas", required=False)
    questions = [item for item in asked if target == "all" or _is_known(item)]
    if triples:
        probes = tuple(
            {"prompt": text_of(item, "question"), "answers": _answers(item), "kind": "event"} for item in questions
        )
        for part, triple in enumerate(triples):
            yield {
                "id": raw_id("elken", raw, target, part),
                "subject": text_of(triple, "subject"),
                "prompt": text_of(triple, "prompt"),
                "target_new": text_of(triple, "target"),
                "relation": optional_text(triple, "relation"),
                "statement": event,
                # the questions hold once all triples are written: they are asked with the last one
                "portability": probes if part == len(triples) - 1 else (),
                "neighborhood": local if part == 0 else (),
            }
        return
    if not questions:
        raise RecordError(f"the event has no factual question under the target setting {target!r}")
    for part, item in enumerate(questions):
        question = text_of(item, "question")
        yield {
            "id": raw_id("elken", raw, target, part),
            "subject": _subject(item, question),
            "prompt": question,
            "target_new": _answers(item)[0],
            "relation": optional_text(item, "rel_id"),
            "statement": event,
            "neighborhood": local if part == 0 else (),
        }


def _is_known(item: Raw) -> bool:
    return optional_text(item, "answer", "id") != UNKNOWN


def _answers(item: Raw) -> tuple[str, ...]:
    return tuple(texts([text_of(item, "answer", "name"), item["answer"].get("alias") or []]))


def _subject(item: Raw, question: str) -> str:
    """The name or alias of the subject that the question spells out, the longest first."""
    subject: Any = item.get("subject")
    known = dict(subject) if isinstance(subject, Mapping) else {}
    other = known.get("ent2name")
    names = texts([known.get("name"), list(other.values()) if isinstance(other, Mapping) else other, item.get("alias")])
    for name in sorted(names, key=len, reverse=True):
        if name in question:
            return name
    raise RecordError(f"none of the subject's names {names} is in the question {question!r}")


def _neighborhood(items: list[Raw]) -> Iterator[dict[str, str]]:
    for item in items:
        question, answer = optional_text(item, "question"), optional_text(item, "answer", "name")
        if question and answer and _is_known(item):
            yield {"prompt": question, "answer": answer}


ELKEN = Loader(
    "elken",
    detect=lambda raw: {"event", "event_type"} <= raw.keys(),
    convert=convert,
    targets=("known", "all"),
)
