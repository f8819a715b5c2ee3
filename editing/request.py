"""What a client asks for: one factual update, and the probes that tell whether it landed."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field, field_validator, model_validator

from errata.editing.closed import Closed
from errata.editing.digest import digest_json

SLOT = "{}"


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
    """One factual update: after it, the model continues ``prompt.format(subject)`` with ``target_new``.

    ``prompt`` holds the slot ``{}`` exactly once. A prompt that spells the subject out is accepted and turned
    into a template; one in which the subject does not occur is refused.
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
        if isinstance(prompt, str) and isinstance(subject, str) and subject.strip() and SLOT not in prompt:
            at = prompt.rfind(subject.strip())
            if at < 0:
                raise ValueError(f"prompt {prompt!r} contains neither the slot {SLOT!r} nor the subject {subject!r}")
            data = {**data, "prompt": prompt[:at] + SLOT + prompt[at + len(subject.strip()) :]}
        return data

    @model_validator(mode="after")
    def _complete(self) -> EditRequest:
        if self.prompt.count(SLOT) != 1:
            raise ValueError(f"prompt must contain {SLOT!r} exactly once, got {self.prompt!r}")
        if not self.statement:
            object.__setattr__(self, "statement", f"{self.text} {self.target_new}.")
        if not self.id:
            asked = {"subject": self.subject, "prompt": self.prompt, "target_new": self.target_new}
            object.__setattr__(self, "id", digest_json(asked)[:16])
        return self

    @property
    def text(self) -> str:
        """The prompt with the subject filled in; the model continues it with the target."""
        return self.prompt.replace(SLOT, self.subject)

    @property
    def fact_key(self) -> str:
        """Names the fact: a later edit with the same key overwrites it. By relation, else by prompt."""
        return digest_json([self.subject.casefold(), (self.relation or self.prompt).casefold()])[:16]


class EditBatch(Closed):
    """Requests written into the weights by one commit."""

    sequence: int = Field(ge=1)
    """Position in the run, from 1 without gaps; applying the same number twice changes nothing."""
    requests: tuple[EditRequest, ...] = Field(min_length=1)
