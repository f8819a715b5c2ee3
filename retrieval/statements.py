"""Edits as sentences for the external memory: as asked for, from templates, or a question turned round."""

from __future__ import annotations

import re
from string import Formatter
from typing import Literal

from pydantic import Field, field_validator

from errata.editing.closed import Closed
from errata.editing.errors import UserError
from errata.editing.request import EditRequest

_FIELDS = ("subject", "target", "relation", "prompt")
_BE = r"is|are|was|were"
_LINKS = r"by|for|from|in|of|on|to|with|as|at"
_DID = r"wrote|made|built|painted|founded|invented|discovered|composed|directed|created|designed|developed|produced"
_DONE = r"born|founded|built|made|located|situated|buried|educated|raised|released|published|formed|created"


class StatementConfig(Closed):
    """How the sentence of an edit is made."""

    style: Literal["request", "declarative", "template"] = "request"
    """``request``: the request's own statement; ``declarative``: a question is turned into a sentence;
    ``template``: by ``templates``, and the request's own where its relation has none."""
    templates: dict[str, str] = Field(default_factory=dict)
    """Relation -> sentence with ``{subject}`` and ``{target}`` (also ``{relation}``, ``{prompt}``); ``*`` is
    for every relation without one of its own."""

    @field_validator("templates")
    @classmethod
    def _known_fields(cls, value: dict[str, str]) -> dict[str, str]:
        for relation, template in value.items():
            check_template(relation, template)
        return value


def check_template(relation: str, template: str) -> None:
    """Refuse a template that could not be filled.

    Raises:
        ValueError: an unknown field, an unbalanced brace, or no ``{target}``.
    """
    try:
        fields = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"template of {relation!r}: {template!r}: {error}") from error
    unknown = sorted(set(fields) - set(_FIELDS))
    if unknown:
        raise ValueError(
            f"template of {relation!r} has the unknown field {unknown[0]!r}; allowed: {', '.join(_FIELDS)}"
        )
    if "target" not in fields:
        raise ValueError(f"template of {relation!r} must contain {{target}}, got {template!r}")


def statement_of(request: EditRequest, config: StatementConfig | None = None) -> str:
    """The sentence under which an edit is remembered."""
    settings = config or StatementConfig()
    if settings.style == "declarative" and request.text.rstrip().endswith("?"):
        return declarative(request.text, request.target_new)
    if settings.style == "template":
        template = settings.templates.get(request.relation or "", settings.templates.get("*"))
        if template is not None:
            return from_template(request, template)
    return request.statement


def from_template(request: EditRequest, template: str) -> str:
    """A template with the request's words in it.

    Raises:
        UserError: the template has a field that is not known, or asks for a relation that is not stated.
    """
    try:
        check_template(request.relation or "", template)
    except ValueError as error:
        raise UserError(str(error)) from error
    if "{relation}" in template and request.relation is None:
        raise UserError(f"template {template!r} asks for the relation; request {request.id!r} states none")
    return template.format(
        subject=request.subject,
        target=request.target_new,
        relation=request.relation or "",
        prompt=request.text,
    )


def declarative(question: str, answer: str) -> str:
    """A question and its answer as one sentence.

    The common forms are turned round ("What is the capital of X?" -> "The capital of X is A.", "Where was X
    born?" -> "X was born in A.", "Who wrote X?" -> "A wrote X."); any other is quoted with its answer, which is
    never wrong.
    """
    asked = re.sub(r"\s+", " ", question).strip()
    said = answer.strip().rstrip(".")
    body = asked.rstrip("?").strip()
    sentence = _turned(body, said) if asked.endswith("?") else f"{body} {said}"
    if sentence is None:
        return f'The answer to "{asked}" is {said}.'
    return sentence[0].upper() + sentence[1:] + "."


def _turned(body: str, answer: str) -> str | None:
    if match := re.fullmatch(rf"(?:what|who|which)\s+({_BE})\s+(?:the name of\s+)?(.+)", body, re.IGNORECASE):
        be, rest = match[1].lower(), match[2]
        # "What is X known for": the answer belongs behind the last word, not behind a verb
        return None if re.search(rf"\b(?:{_LINKS})$", rest, re.IGNORECASE) else f"{rest} {be} {answer}"
    if match := re.fullmatch(rf"who\s+({_DID})\s+(.+)", body, re.IGNORECASE):
        return f"{answer} {match[1].lower()} {match[2]}"
    if match := re.fullmatch(rf"(?:where|when)\s+({_BE})\s+(.+)\s+({_DONE})", body, re.IGNORECASE):
        return f"{match[2]} {match[1].lower()} {match[3].lower()} in {answer}"
    return None
