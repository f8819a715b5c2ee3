"""Batches given to the editor with every attempt in the journal, so that nothing it dies of is tried for ever.

What a request raises is refused by the editor itself. What ends the editor's process, or this one, leaves an attempt in
the journal: after three deaths on one batch its requests are tried in halves until the one at fault stands alone; it is
rejected, and the others are written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from errata.editing.cutting import cut_out_culprits
from errata.editing.errors import EditorFaultError, ErrataError, in_words
from errata.editing.request import EditBatch, EditRequest
from errata.editing.session import CONTROL, EditReceipt
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.rows import AttemptOutcome

logger = logging.getLogger(__name__)

MOST_DEATHS: Final = 3
"""So often the editor may die on one batch before its requests are looked at one by one; a machine may fail as well."""


KEPT: Final = "nothing was written, and the edits still wait"
"""What an editor at fault leaves behind."""


class EditorDiedError(ErrataError):
    """The editor's process ended while it had these requests in hand."""


class Writes(Protocol):
    """What of `errata.actors.parts.EditorPart` is needed."""

    def apply(self, batch: EditBatch, died: Callable[[Exception], None] | None = None) -> EditReceipt: ...

    def rehearse(self, requests: Sequence[EditRequest], died: Callable[[Exception], None] | None = None) -> None: ...


class Attempts:
    """Gives batches to an editor; see the module.

    Args:
        say: told of every request that is set aside.
    """

    def __init__(self, journal: Journal, editor: Writes, say: Callable[[str], None]) -> None:
        self._journal, self._editor, self._say = journal, editor, say
        self._open: int | None = None

    def apply(self, batch: EditBatch) -> EditReceipt | None:
        """Have the editor write a batch, or the part of it that it survives.

        Requests of the batch that the receipt does not name wait for another batch, or have been rejected. Call
        `committed` when the journal has the receipt, and `failed` when it could not take it.

        Returns:
            None where nothing of the batch is left to be written.

        Raises:
            EditorFaultError: the editor fails on, or dies of, whatever it is given; every request still waits.
        """
        requests: Sequence[EditRequest] = batch.requests
        while requests:
            if self._deaths(batch.sequence, requests) >= MOST_DEATHS:
                requests = self._survived(batch.sequence, requests)
                continue
            try:
                return self._given(batch.model_copy(update={"requests": tuple(requests)}))
            except EditorDiedError:
                logger.warning("the editor died %d times on one batch; it is cut", MOST_DEATHS)
        return None

    def committed(self) -> None:
        """The journal has what the last `apply` returned."""
        self._end("committed")

    def failed(self, error: BaseException) -> None:
        """The journal could not take what the last `apply` returned: no death, and no request's fault."""
        self._end("failed", error)

    # --- parts ---

    def _given(self, batch: EditBatch) -> EditReceipt:
        self._open = self._journal.begin_attempt(batch.sequence, [request.id for request in batch.requests])

        def died(error: Exception) -> None:
            self._end("died", error)
            if self._deaths(batch.sequence, batch.requests) >= MOST_DEATHS:
                raise EditorDiedError(in_words(error)) from error
            self._open = self._journal.begin_attempt(batch.sequence, [request.id for request in batch.requests])

        try:
            return self._editor.apply(batch, died)
        except EditorDiedError:
            raise
        except EditorFaultError as error:
            self._end("failed", error)
            raise EditorFaultError(f"{error}; {KEPT}") from error
        except (Exception, KeyboardInterrupt, SystemExit) as error:  # an interruption is no death either
            self._end("failed", error)
            raise

    def _survived(self, sequence: int, requests: Sequence[EditRequest]) -> Sequence[EditRequest]:
        """What the editor survives of requests that it dies of together; those at fault are rejected."""

        def attempt(part: Sequence[EditRequest]) -> None:
            # what has been seen already, by a process that may have died since, is not tried again
            if self._deaths(sequence, part) >= (MOST_DEATHS if len(part) == len(requests) else 1):
                raise EditorDiedError(self._last_words(sequence, part))
            self._rehearse(sequence, part)

        cut = cut_out_culprits(requests, attempt, EditorDiedError)
        if cut.culprits and not cut.kept:
            try:
                self._rehearse(sequence, [CONTROL])
            except EditorDiedError as error:
                raise EditorFaultError(
                    f"the editor dies of every edit, a plain one too: {error}; give it more memory; {KEPT}"
                ) from error
        for request, death in cut.culprits:
            reason = f"the editor's process died every time it had this edit in hand ({death})"
            self._journal.set_aside(request.id, reason)
            self._say(f"edit {request.id} not applied: {reason}")
        return cut.kept

    def _rehearse(self, sequence: int, part: Sequence[EditRequest]) -> None:
        self._open = self._journal.begin_attempt(sequence, [request.id for request in part])

        def died(error: Exception) -> None:
            self._end("died", error)
            raise EditorDiedError(in_words(error)) from error

        try:
            self._editor.rehearse(part, died)
        except EditorDiedError:
            raise
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            self._end("failed", error)
            raise
        self._end("passed")

    def _deaths(self, sequence: int, requests: Sequence[EditRequest]) -> int:
        return len(self._died(sequence, requests))

    def _died(self, sequence: int, requests: Sequence[EditRequest]) -> list[str]:
        """Why, for every death on exactly these requests; one without an end is a death of this process, earlier."""
        names = {request.id for request in requests}
        return [
            row.reason or "this process ended as well"
            for row in self._journal.attempts(sequence)
            if set(row.request_ids) == names and row.outcome in (None, "died") and row.number != self._open
        ]

    def _last_words(self, sequence: int, requests: Sequence[EditRequest]) -> str:
        return self._died(sequence, requests)[-1]

    def _end(self, outcome: AttemptOutcome, error: BaseException | None = None) -> None:
        if self._open is not None:
            self._journal.end_attempt(self._open, outcome, None if error is None else in_words(error))
            self._open = None
