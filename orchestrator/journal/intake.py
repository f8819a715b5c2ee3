"""The way into the journal, the same for files, followed streams, Redis and the API: one gate, applied once.

A request is taken as `EditRequest.cleaned` makes it, and only if the model can take in what it asks for. What the
journal knows already is left as it is, also where an earlier release took it in by other rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from errata.editing.checkpoint.load import load_text
from errata.editing.errors import UserError
from errata.editing.limits import check_request
from errata.editing.model.capacity import Capacity
from errata.editing.model.text import TextCodec
from errata.editing.request import EditRequest, Retraction
from errata.orchestrator.journal.journal import Journal
from errata.orchestrator.journal.reading import JournalReader
from errata.orchestrator.journal.rows import Accepted, payload_digest

Admit = Callable[[EditRequest], EditRequest]
"""A request as it is taken; raises UserError for one that is not."""

_BESIDE = 3
"""Tokens of a context prefix beyond the sampled ones: its opening and its end."""


@dataclass(frozen=True)
class Admission:
    """What the run's model can take in, asked before anything is loaded but its tokenizer.

    ``reserved`` positions are kept free for the context prefixes, which are not sampled yet when a request comes; the
    editor counts them exactly.
    """

    text: TextCodec
    capacity: Capacity
    reserved: int = 0

    @classmethod
    def of(cls, model: str, *, context_tokens: int = 0) -> Admission:
        """Of a model by its name, and the length of the context prefixes that will be sampled; 0 for none.

        Raises:
            UserError: its tokenizer cannot be read.
        """
        text, capacity = load_text(model)
        return cls(text, capacity, context_tokens + _BESIDE if context_tokens else 0)

    def __call__(self, request: EditRequest) -> EditRequest:
        kept = request.cleaned()
        check_request(kept, self.text, self.capacity, reserved=self.reserved)
        return kept


class Intake:
    """A journal's side of `errata.orchestrator.sources.base.TakesRequests`, behind the gate.

    Args:
        reader: another connection to the same journal, which never waits for one that writes; the journal itself
            where there is none. Then `gate` may be asked by many threads at once.
    """

    def __init__(
        self, journal: Journal, admit: Admit = EditRequest.cleaned, *, reader: JournalReader | None = None
    ) -> None:
        self._journal, self._admit, self._reader = journal, admit, reader or journal

    def accept(self, requests: Sequence[EditRequest | Retraction]) -> list[Accepted]:
        """As `Journal.accept`; a request that the gate refuses has its reason in the answer, and is ``invalid``."""
        return self.take([r if isinstance(r, Retraction) else self.gate(r) for r in requests])

    def gate(self, request: EditRequest) -> EditRequest | Accepted:
        """The request as it is to be taken, or the answer to one that is not; nothing is written."""
        try:
            return self._known(request) or self._admit(request)
        except (UserError, UnicodeError) as error:
            return Accepted(request.id, None, refused=str(error), invalid=True)

    def take(self, judged: Sequence[EditRequest | Retraction | Accepted]) -> list[Accepted]:
        """Write what the gate let through, in one transaction; an answer to each, in order."""
        answers = {place: item for place, item in enumerate(judged) if isinstance(item, Accepted)}
        taken = {place: item for place, item in enumerate(judged) if isinstance(item, EditRequest)}
        if taken:
            answers |= dict(zip(taken, self._journal.accept(list(taken.values())), strict=True))
        answers |= {n: self._journal.retract(item) for n, item in enumerate(judged) if isinstance(item, Retraction)}
        return [answers[place] for place in range(len(judged))]

    def _known(self, request: EditRequest) -> EditRequest | None:
        """The request as the journal has it, where it was taken in before the gate was what it is."""
        digest = self._reader.payload_digest(request.id)
        if digest is None:
            return None
        return next((form for form in request.spellings() if payload_digest(form) == digest), None)

    def reject(self, record: str, reason: str) -> Accepted:
        """As `Journal.reject`."""
        return self._journal.reject(record, reason)
