"""What a client asks for: one factual update, and the probes that tell whether it landed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PrivateAttr, ValidationError, field_validator, model_validator

from errata.editing.closed import Closed
from errata.editing.digest import digest_json
from errata.editing.errors import UserError
from errata.editing.scripts import joined, sentence
from errata.editing.texts import SLOT, clean, clean_all, fact_identity, fill, fill_probe, former_identity
from errata.editing.texts import split_slot as _split_slot
from errata.editing.texts import template_of as _template_of

__all__ = ["SLOT", "EditBatch", "EditRequest", "NeighborhoodProbe", "PortabilityProbe", "Provenance", "Retraction"]


EventTime = Annotated[datetime, AfterValidator(lambda at: at if at.tzinfo is not None else at.replace(tzinfo=UTC))]
"""When something happened in the world; a time without a zone is one of UTC."""


class Provenance(Closed):
    """Who asked for the update, when and why."""

    who: str | None = None
    when: datetime | None = None
    why: str | None = None
    source: str | None = None


class NeighborhoodProbe(Closed):
    """A question about another subject whose answer must not change."""

    prompt: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    """The true answer before and after the edit."""


class PortabilityProbe(Closed):
    """A question whose answer follows from the new fact."""

    prompt: str = Field(min_length=1)
    answers: tuple[str, ...] = Field(min_length=1)
    """Any of these is right."""
    kind: str = "one_hop"


class EditRequest(Closed):
    """One factual update: after it, the model continues the prompt, the subject in its slot, with ``target_new``.

    ``prompt`` holds the slot ``{}`` exactly once. A prompt that spells the subject out is accepted and turned
    into a template; one in which the subject does not stand as whole words is refused.
    """

    id: str = ""
    """Idempotency key; when absent, the digest of what is asked for."""
    subject: str = Field(min_length=1)
    prompt: str = Field(min_length=1)
    target_new: str = Field(min_length=1)
    target_true: str | None = None
    relation: str | None = None
    statement: str = ""
    """The fact as a sentence, for the external memory; by default the prompt, completed."""
    paraphrases: tuple[str, ...] = ()
    neighborhood: tuple[NeighborhoodProbe, ...] = ()
    portability: tuple[PortabilityProbe, ...] = ()
    provenance: Provenance | None = None
    event_at: EventTime | None = None
    """When the fact became true, where that is not when the request came: of one fact the newest by this time wins. A
    time without a zone is UTC."""

    _fact_key: str | None = PrivateAttr(None)
    """The name that a journal gave the fact, where it is not the one of this release."""

    @field_validator("subject", "target_new")
    @classmethod
    def _not_blank(cls, value: str) -> str:
        if not value.strip():
            raise ValueError(f"must not be blank, got {value!r}")
        return value.strip()

    @model_validator(mode="before")
    @classmethod
    def _fill_slot(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        prompt, subject = data.get("prompt"), data.get("subject")
        if isinstance(prompt, str) and isinstance(subject, str) and subject.strip():
            data = {**data, "prompt": _template_of(prompt, subject.strip())}
        return data

    @model_validator(mode="after")
    def _complete(self) -> EditRequest:
        _split_slot(self.prompt)
        if not self.statement:
            object.__setattr__(self, "statement", self._plain_statement())
        if not self.id:
            asked = {"subject": self.subject, "prompt": self.prompt, "target_new": self.target_new}
            object.__setattr__(self, "id", digest_json(asked)[:16])
        return self

    def _plain_statement(self) -> str:
        return sentence(joined(self.text, self.target_new))

    @property
    def text(self) -> str:
        """The prompt with the subject filled in; the model continues it with the target."""
        return fill(self.prompt, self.subject)

    @property
    def fact_key(self) -> str:
        """Names the fact: a later edit with the same key overwrites it. By relation, else by prompt."""
        return self._fact_key or fact_identity(self.subject, self.relation or self.prompt)

    @property
    def former_fact_key(self) -> str:
        """The name that journals of earlier releases gave the fact."""
        return former_identity(self.subject, self.relation or self.prompt)

    def named(self, fact_key: str | None) -> EditRequest:
        """The same request about a fact that a journal knows by another name."""
        if fact_key is None or fact_key == self.fact_key:
            return self
        copy = self.model_copy()
        copy._fact_key = fact_key
        return copy

    def spellings(self) -> tuple[EditRequest, ...]:
        """The request as it is, and as an earlier release would have completed it."""
        former = f"{self.prompt.replace(SLOT, self.subject)} {self.target_new}."
        if self.statement != self._plain_statement() or self.statement == former:
            return (self,)
        return self, self.model_copy(update={"statement": former})

    def cleaned(self) -> EditRequest:
        """The request as it is accepted: every text through the gate of `errata.editing.texts`; the id stays.

        Raises:
            UserError: a text that cannot be kept, or nothing is left of one; names the field.
        """
        try:
            clean(self.id)
            given = clean_all(self.model_dump(exclude_defaults=True, exclude={"id"}))
            if self.statement == self._plain_statement():
                given.pop("statement", None)
            subject = given["subject"]
            given["paraphrases"] = tuple(fill_probe(text, subject) for text in given.get("paraphrases", ()))
            for kind in ("neighborhood", "portability"):
                probes = given.get(kind, ())
                given[kind] = tuple({**item, "prompt": fill_probe(item["prompt"], subject)} for item in probes)
            if "" in given["paraphrases"]:
                raise ValueError("paraphrases: must not be blank")
            if any("" in item["answers"] for item in given["portability"]):
                raise ValueError("portability: an answer must not be blank")
            made = EditRequest.model_validate({**given, "id": self.id})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(step) for step in first["loc"])
            message = first["msg"].removeprefix("Value error, ")
            raise UserError(f"{where}: {message}" if where else message) from None
        except ValueError as error:
            raise UserError(str(error)) from None
        return self if made == self else made


class Retraction(Closed):
    """A request taken back by a record of a stream: what it wrote, and older values of its fact, cease to hold."""

    id: str = Field(min_length=1)
    """Idempotency key."""
    retracts: str = Field(min_length=1)
    """Id of the request; it may come later."""
    event_at: EventTime | None = None
    """When the fact ceased to be true, where that is not when this came."""

    @field_validator("id", "retracts")
    @classmethod
    def _kept(cls, value: str) -> str:
        return clean(value)


class EditBatch(Closed):
    """Requests written into the weights by one commit."""

    sequence: int = Field(ge=1)
    """Position in the run, from 1 without gaps; applying the same number twice changes nothing."""
    requests: tuple[EditRequest, ...] = Field(min_length=1)
    old_keys: Any = Field(default_factory=dict, repr=False, exclude=True)
    """Raw keys (d_in,) float32, by request and layer, that leave if these are written: of an editor that does not hold
    them any more (`errata.editing.session.EditSession.keys_wanted`)."""
