"""What clients may send: closed, strict and bounded. What is not described here is refused."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, StringConstraints, field_validator, model_validator

from errata.editing.closed import Closed
from errata.editing.request import EditRequest
from errata.evaluation.outcomes import ARMS, AskedArm

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
