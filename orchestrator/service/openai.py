"""OpenAI's completions over the arms: the name of the model is the way of answering.

An answer says what it rests on, in a field ``errata`` (of the answer, and of the first and last event of a stream)
and in headers, which are there before the first token.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final
from urllib.parse import quote

from errata.evaluation.answering import Question
from errata.evaluation.outcomes import Arm
from errata.evaluation.streaming import TextPiece
from errata.orchestrator.service.asking import Speaking
from errata.orchestrator.service.bodies import moment_view, statement_view
from errata.orchestrator.service.completions import ChatIn, TextIn
from errata.orchestrator.service.errors import ServiceError, printable

_OWNER: Final = "errata"
MODELS: Final[dict[str, Arm]] = {
    "errata": "routed",
    "errata-base": "base",
    "errata-edited": "edited",
    "errata-memory": "memory",
    "errata-edited-memory": "edited_memory",
}
"""Names of models, and the arms they stand for."""

Completion = ChatIn | TextIn


def models_of(arms: Sequence[Arm]) -> dict[str, Arm]:
    """The models of a run that has these arms."""
    return {name: arm for name, arm in MODELS.items() if arm in arms}


def arm_of(model: str, arms: Sequence[Arm]) -> Arm:
    """The arm a model's name stands for; the arm's own name will do, with or without ``errata/`` in front.

    Raises:
        ServiceError: 404 for any other name.
    """
    known = models_of(arms)
    name = model.removeprefix(f"{_OWNER}/")
    arm = known.get(name) or next((arm for arm in arms if arm == name), None)
    if arm is None:
        raise ServiceError(
            404, "model_not_found", f"there is no model {printable(model)[:80]!r}; there are: {', '.join(known)}"
        )
    return arm


def models_view(arms: Sequence[Arm], created: float) -> dict[str, Any]:
    """``GET /v1/models``."""
    return {"object": "list", "data": [model_view(name, created) for name in models_of(arms)]}


def model_view(name: str, created: float) -> dict[str, Any]:
    """One model, as OpenAI clients know it."""
    return {"id": name, "object": "model", "created": int(created), "owned_by": _OWNER}


def question_of(wanted: Completion) -> Question:
    """A conversation or a prompt as a question; of a conversation the memory is asked the last turn."""
    if isinstance(wanted, TextIn):
        return Question(wanted.text)
    messages = tuple(message.plain() for message in wanted.messages)
    return Question(messages[-1]["content"], messages)


def headers_of(said: Speaking) -> dict[str, str]:
    """What an answer rests on, as headers; text that is not plain ASCII is percent-encoded."""
    view = errata_view(said)
    headers = {
        "x-errata-arm": view["arm"],
        "x-errata-version": view["version"],
        "x-errata-edits": str(view["edits"]),
        "x-errata-decision": view.get("decision"),
        "x-errata-router": view.get("router"),
    }
    if chosen := view.get("chosen"):
        headers |= {
            "x-errata-edit": quote(str(chosen["edit"] or ""), safe=":@+=~"),
            "x-errata-similarity": str(chosen["similarity"]),
            "x-errata-statement": quote(chosen["statement"][:500]),
        }
    return {name: value for name, value in headers.items() if value is not None}


def errata_view(said: Speaking) -> dict[str, Any]:
    """What an answer rests on."""
    view: dict[str, Any] = {
        "arm": said.opened.arm,
        "version": said.version.digest,
        "edits": said.version.edits,
        "weights": "edited" if said.opened.edited else "base",
        **moment_view(said.moment),
    }
    if said.opened.reason is not None:
        view["decision"] = "out" if said.opened.chosen is None else "in"
        view["chosen"] = statement_view(said.opened.chosen, said.edits)
        view["reason"] = said.opened.reason
    if said.router is not None:
        view["router"] = said.router
    return view


def completion(wanted: Completion, said: Speaking, text: str, tokens: int, finish: str) -> dict[str, Any]:
    """The whole answer."""
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
    if isinstance(wanted, ChatIn):
        choice["message"] = {"role": "assistant", "content": text, "refusal": None}
    else:
        choice["text"] = text
    return {**_envelope(wanted), "choices": [choice], "usage": _usage(said, tokens), "errata": errata_view(said)}


async def events(wanted: Completion, said: Speaking, pieces: AsyncIterator[TextPiece]) -> AsyncIterator[str]:
    """The answer as server-sent events, each as soon as its text is there."""
    frame = _envelope(wanted, chunk=True)
    chat = isinstance(wanted, ChatIn)
    tokens = 0

    def event(text: str | None, finish: str | None = None, **extra: Any) -> str:
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
        if chat:
            choice["delta"] = {} if text is None else {"content": text}
        else:
            choice["text"] = text or ""
        return _event({**frame, "choices": [choice], **extra})

    if chat:
        first = {"index": 0, "finish_reason": None, "logprobs": None, "delta": {"role": "assistant", "content": ""}}
        yield _event({**frame, "choices": [first], "errata": errata_view(said)})
    finish = "stop"
    try:
        async for piece in pieces:
            tokens += piece.tokens
            finish = piece.finish or finish
            if piece.text:
                yield event(piece.text)
    except ServiceError as error:  # the answer has begun: its end is all that is left to tell
        yield _event(error.body())
        yield "data: [DONE]\n\n"
        return
    yield event(None, finish, errata=errata_view(said))
    if wanted.stream_options is not None and wanted.stream_options.include_usage:
        yield _event({**frame, "choices": [], "usage": _usage(said, tokens)})
    yield "data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def _envelope(wanted: Completion, *, chunk: bool = False) -> dict[str, Any]:
    if isinstance(wanted, ChatIn):
        prefix, kind = "chatcmpl-", "chat.completion.chunk" if chunk else "chat.completion"
    else:
        prefix, kind = "cmpl-", "text_completion"
    return {"id": f"{prefix}{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": wanted.model}


def _usage(said: Speaking, tokens: int) -> dict[str, int]:
    prompt = said.opened.prompt_tokens
    return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}
