"""Bodies, both ways: what clients may send and how it is read, and what they get to see.

What comes in is closed, strict and bounded: what is not described here is refused, with errors that name the place and
repeat nothing dangerous. What goes out are rows of the journal as JSON, cut into pages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, Literal, TypeVar

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails, from_json

from errata.editing.closed import Closed
from errata.editing.request import EditRequest, EventTime
from errata.editing.wording import counted
from errata.evaluation.answering import ArmAnswer
from errata.evaluation.outcomes import ARMS, AskedArm, Retrieved
from errata.orchestrator.history.past import Moment
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.rows import Accepted, EvaluationRow, RefreshRow, RequestRow, Version, shown_state
from errata.orchestrator.service.asking import Answers
from errata.orchestrator.service.errors import ServiceError, printable

# Tabs and line ends are text; the other control characters are not, and end up in logs and terminals.
_TEXT: Final = r"[^\x00-\x08\x0b-\x1f\x7f-\x9f]"
_VISIBLE: Final = r"[^\x00-\x20\x7f-\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
_BODY: Final = rf"^{_TEXT}*{_VISIBLE}{_TEXT}*$"
_LINE: Final = rf"^[^\x00-\x1f\x7f-\x9f]*{_VISIBLE}[^\x00-\x1f\x7f-\x9f]*$"
ID_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._:@+=~-]{0,127}$"
"""Ids that clients may give: no slash, no space, nothing a shell, a path or a log would take for something else."""
RESERVED_PREFIX: Final = "record:"
"""The journal names unreadable records of a stream so."""

Subject = Annotated[str, StringConstraints(min_length=1, max_length=300, pattern=_LINE)]
Target = Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=_BODY)]
Prompt = Annotated[str, StringConstraints(min_length=1, max_length=2000, pattern=_BODY)]
Note = Annotated[str, StringConstraints(min_length=1, max_length=300, pattern=_LINE)]
KnownAt = Annotated[str, Field(min_length=1, max_length=200)]
"""A version by number (`v12`), digits of its digest, or a tag."""
Identifier = Annotated[str, StringConstraints(pattern=ID_PATTERN)]


class StrictIn(Closed):
    model_config = ConfigDict(strict=True)


class ProvenanceIn(StrictIn):
    """Who asked for the update, when and why."""

    who: Note | None = None
    when: datetime | None = None
    why: Note | None = None
    source: Note | None = None


class NeighborhoodIn(StrictIn):
    """A question about another subject whose answer must not change."""

    prompt: Prompt
    answer: Target


class PortabilityIn(StrictIn):
    """A question whose answer follows from the new fact."""

    prompt: Prompt
    answers: Annotated[list[Target], Field(min_length=1, max_length=16)]
    kind: Note = "one_hop"


class EditIn(StrictIn):
    """One factual update."""

    id: Identifier | None = None
    """Idempotency key; when absent, derived from subject, prompt and target."""
    subject: Subject
    prompt: Prompt
    """Holds the slot ``{}`` once, or spells the subject out."""
    target_new: Target
    target_true: Target | None = None
    relation: Note | None = None
    statement: Prompt | None = None
    paraphrases: Annotated[list[Prompt], Field(max_length=32)] = []
    neighborhood: Annotated[list[NeighborhoodIn], Field(max_length=32)] = []
    portability: Annotated[list[PortabilityIn], Field(max_length=32)] = []
    provenance: ProvenanceIn | None = None
    event_at: EventTime | None = None
    """When the fact became true (without a zone UTC); of one fact the newest by this time holds."""

    @field_validator("id")
    @classmethod
    def _not_reserved(cls, value: str | None) -> str | None:
        if value is not None and value.startswith(RESERVED_PREFIX):
            raise ValueError(f"ids that begin with {RESERVED_PREFIX!r} are reserved")
        return value

    def request(self, *, key: str | None = None, by: str | None = None, now: datetime | None = None) -> EditRequest:
        """The request as the journal takes it.

        Args:
            key: the id where the edit has none of its own.
            by, now: who and when, where the client does not say.

        Raises:
            pydantic.ValidationError: the prompt has neither the slot nor the subject, for example.
        """
        plain: dict[str, Any] = self.model_dump(exclude_none=True)
        plain.setdefault("id", key or "")
        given = plain.get("provenance", {})
        plain["provenance"] = {"who": by, "when": now, **given}
        return EditRequest.model_validate(plain)


class EditsIn(StrictIn):
    """Several updates; each is taken or refused by itself."""

    edits: Annotated[list[EditIn], Field(min_length=1)]


class QueryIn(StrictIn):
    """Questions to one or several arms at the live version."""

    question: Prompt | None = None
    questions: Annotated[list[Prompt], Field(min_length=1)] | None = None
    arms: Annotated[list[AskedArm], Field(min_length=1, max_length=len(ARMS))] | None = None
    """All that the run evaluates, when absent."""
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    as_of: EventTime | None = None
    """Answer with what was true at this time (without a zone UTC): by the arms without edited weights."""
    as_known_at: KnownAt | None = None
    """Answer with what was known in this version (`v12`, digits of a digest, a tag): by the same arms."""

    @model_validator(mode="after")
    def _one_form(self) -> QueryIn:
        if (self.question is None) == (self.questions is None):
            raise ValueError("give one of 'question' and 'questions'")
        if self.arms is not None and len(set(self.arms)) != len(self.arms):
            raise ValueError("an arm is listed twice")
        return self

    @property
    def asked(self) -> list[str]:
        """The questions, one or several."""
        return [self.question] if self.question is not None else list(self.questions or [])


class EvaluationIn(StrictIn):
    """Which edits to evaluate: named ones, or a sample of those applied."""

    ids: Annotated[list[Annotated[str, Field(min_length=1, max_length=300)]], Field(min_length=1, max_length=1000)] | (
        None
    ) = None
    sample: Annotated[int, Field(ge=1, le=1000)] | None = None

    @model_validator(mode="after")
    def _one_form(self) -> EvaluationIn:
        if self.ids is not None and self.sample is not None:
            raise ValueError("give one of 'ids' and 'sample'")
        return self


class PublicationIn(StrictIn):
    """A version to live servers, into the model registry, or both."""

    version: Note = "head"
    """``head``, ``v<number>``, or four or more digits of its digest."""
    to: Annotated[list[Note], Field(min_length=1, max_length=64)] | None = None
    """Servers out of ``publish.to``; all of them where neither these nor an alias are given."""
    alias: Identifier | None = None
    """Register the version in MLflow's model registry and point this alias at it."""
    name: Identifier | None = None
    """Name of the registered model; errata-NAME of the run when absent."""
    format: Literal["delta", "lora", "full", "routed"] = "delta"
    """What is registered."""

    @model_validator(mode="after")
    def _fits(self) -> PublicationIn:
        if self.name is not None and self.alias is None:
            raise ValueError("a name goes with an alias")
        if self.to is not None and len(set(self.to)) != len(self.to):
            raise ValueError("a server is listed twice")
        return self


class ReasonIn(StrictIn):
    """Why something is done; kept in the journal."""

    reason: Note | None = None


class TextPart(StrictIn):
    """A part of a message's content."""

    type: Literal["text"]
    text: Annotated[str, StringConstraints(min_length=1, max_length=20_000, pattern=_BODY)]


class TextTurn(StrictIn):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: (
        Annotated[str, StringConstraints(min_length=1, max_length=20_000, pattern=_BODY)]
        | Annotated[list[TextPart], Field(min_length=1, max_length=16)]
    )
    name: Note | None = None

    def plain(self) -> dict[str, str]:
        """The message with its content as one string."""
        content = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        return {"role": self.role, "content": content}


# ---------------------------------------------------------------- reading

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


# ---------------------------------------------------------------- showing

_SHOWN = ("subject", "prompt", "target_new", "target_true", "relation", "statement", "provenance")


def time_text(value: datetime | None) -> str | None:
    """ISO 8601, or None."""
    return None if value is None else value.isoformat()


def state_of(row: RequestRow) -> str:
    """The state clients see (`shown_state`)."""
    return shown_state(row.state)


def edit_view(row: RequestRow) -> dict[str, Any]:
    """An edit in a list."""
    return {
        "id": row.id,
        "number": row.seq,
        "state": state_of(row),
        "outcome": row.outcome,
        "reason": row.reason,
        "accepted_at": time_text(row.accepted_at),
        "applied_in": row.applied_in,
        "ended_in": row.ended_in,
        "superseded_by": row.superseded_by,
        **{key: row.payload.get(key) for key in _SHOWN},
    }


def edit_story(journal: Journal, row: RequestRow) -> dict[str, Any]:
    """An edit with its probes, the editor's figures and everything that happened to it."""
    fates = [
        {"state": shown_state(fate.state), "sequence": fate.sequence, "reason": fate.reason, "at": time_text(fate.at)}
        for fate in journal.fates(row.id)
    ]
    probes = {key: row.payload.get(key, []) for key in ("paraphrases", "neighborhood", "portability")}
    same = [] if row.fact_key is None else journal.requests_of_facts([row.fact_key])
    before = [one.id for one in same if one.superseded_by == row.id]
    return {
        **edit_view(row),
        "supersedes": before,
        **probes,
        "result": row.result,
        "figures": row.figures,
        "fates": fates,
    }


def accepted_view(answer: Accepted, row: RequestRow | None = None) -> dict[str, Any]:
    """What a client is told of one edit it submitted."""
    if answer.refused is not None:
        return {"id": answer.id, "status": "invalid" if answer.invalid else "conflict", "error": answer.refused}
    status = "duplicate" if answer.duplicate else "accepted"
    view: dict[str, Any] = {"id": answer.id, "status": status, "number": answer.seq}
    return {**view, "state": state_of(row)} if row is not None else view


def version_view(version: Version) -> dict[str, Any]:
    """A version in a list."""
    return {
        "sequence": version.sequence,
        "digest": version.digest,
        "parent": version.parent,
        "kind": version.kind,
        "edits": version.edits,
        "request_ids": list(version.request_ids),
        "seconds": version.seconds,
        "norms": {str(layer): norm for layer, norm in version.norms.items()},
        "delta_norms": {str(layer): norm for layer, norm in version.delta_norms.items()},
        "covariance": version.covariance,
        "figures": version.figures,
        "at": time_text(version.at),
    }


def refresh_view(row: RefreshRow) -> dict[str, Any]:
    """A refresh of the covariance in a list."""
    return {
        "triggered_at": row.triggered_at,
        "from_version": row.from_version,
        "state": row.state,
        "reason": row.reason,
        "covariance": row.covariance,
        "seconds": row.seconds,
        "at": time_text(row.at),
    }


def evaluation_view(row: EvaluationRow) -> dict[str, Any]:
    """The figures of one evaluation."""
    metrics = {key: value for key, value in row.metrics.items() if key not in ("norms", "delta_norms")}
    return {
        "number": row.number,
        "kind": row.kind,
        "version": row.version,
        "edits": row.edits,
        "at": time_text(row.at),
        **metrics,
    }


def answers_view(answers: Answers, questions: list[str]) -> dict[str, Any]:
    """Answers side by side."""
    return {
        "version": answers.version.digest,
        "sequence": answers.version.sequence,
        "edits": answers.version.edits,
        "seconds": round(answers.seconds, 4),
        **moment_view(answers.moment),
        "answers": [
            {"question": question, "arms": {arm: _answer(reply, answers.edits) for arm, reply in by_arm.items()}}
            for question, by_arm in zip(questions, answers.answers, strict=True)
        ],
    }


def moment_view(moment: Moment | None) -> dict[str, Any]:
    """The time that an answer is about; nothing where it is now."""
    if moment is None:
        return {}
    as_of = None if moment.as_of is None else moment.as_of.isoformat()
    return {"as_of": as_of, "as_known_at": None if moment.known is None else f"v{moment.known.sequence}"}


def _answer(reply: ArmAnswer, edits: Mapping[int, str]) -> dict[str, Any]:
    view: dict[str, Any] = {"answer": reply.text, "tokens": reply.tokens}
    if reply.reason is not None:
        view["chosen"] = statement_view(reply.chosen, edits)
        view["reason"] = reply.reason
        view["retrieved"] = [statement_view(statement, edits) for statement in reply.retrieved]
    return view


def statement_view(statement: Retrieved | None, edits: Mapping[int, str]) -> dict[str, Any] | None:
    """A statement with the edit it belongs to."""
    if statement is None:
        return None
    return {
        "edit": edits.get(statement.id),
        "number": statement.id,
        "statement": statement.statement,
        "similarity": round(statement.score, 4),
    }
