"""Whether a model can take in what a request asks for: the edit in its contexts, and its probes.

Asked when a request is accepted, and once more by `errata.editing.session.EditSession` before it is written, so that
nothing reaches a pass that the pass cannot run.
"""

from __future__ import annotations

from collections.abc import Sequence

from errata.editing.errors import UserError
from errata.editing.model.capacity import Capacity
from errata.editing.model.text import TextCodec
from errata.editing.request import EditRequest
from errata.editing.values import KL_TEMPLATE


def check_request(
    request: EditRequest,
    text: TextCodec,
    capacity: Capacity,
    *,
    contexts: Sequence[str] = ("",),
    reserved: int = 0,
    probes: bool = True,
) -> None:
    """Raise unless the model can take in the edit, and its probes.

    Args:
        contexts: what is put in front of the prompt while the edit is made.
        reserved: positions kept free for contexts that are not known yet.
        probes: look at the questions and the statement too, which are asked and not written.

    Raises:
        UserError: names what does not fit, its tokens, and how many there may be.
    """
    target = text.encode_target(request.target_new)
    for context in contexts:
        ids, _ = text.encode_with_subject(context, request.prompt, request.subject)
        what = "prompt and target_new" if not context else f"prompt and target_new after the context {context!r}"
        _require(capacity.problem(text, [*ids, *target], reserved=reserved), what)
    ids, _ = text.encode_with_subject("", KL_TEMPLATE, request.subject)
    _require(capacity.problem(text, ids), "subject")
    if not probes:
        return
    if request.target_true is not None:
        rival = text.encode_target(request.target_true) if request.target_true.strip() else []
        _require(capacity.problem(text, [*text.encode_prompt(request.text), *rival]), "prompt and target_true")
    for number, prompt in enumerate(request.paraphrases):
        _require(capacity.problem(text, [*text.encode_prompt(prompt), *target]), f"paraphrases.{number} and target_new")
    for number, near in enumerate(request.neighborhood):
        asked = [*text.encode_prompt(near.prompt), *text.encode_target(near.answer)]
        _require(capacity.problem(text, asked), f"neighborhood.{number}")
    for number, follows in enumerate(request.portability):
        prompt_ids = text.encode_prompt(follows.prompt)
        for answer in follows.answers:
            _require(capacity.problem(text, [*prompt_ids, *text.encode_target(answer)]), f"portability.{number}")
    _require(capacity.problem(text, text.encode_prompt(request.statement)), "statement")


def _require(problem: str | None, what: str) -> None:
    if problem is not None:
        raise UserError(f"{what}: {problem}")
