"""OpenAI's chat completions over the four arms: the name of the model is the name of the arm."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from errata.evaluation.answering import ArmAnswer, Question
from errata.evaluation.outcomes import Arm
from errata.orchestrator.service.asking import Answers
from errata.orchestrator.service.errors import ServiceError, printable
from errata.orchestrator.service.models import ChatIn
from errata.orchestrator.service.views import chosen_statement

_OWNER = "errata"
_WORDS_AT_ONCE = 4


def arm_of(model: str, arms: Sequence[Arm]) -> Arm:
    """The arm a model's name stands for: its own name, with or without ``errata/`` in front.

    Raises:
        ServiceError: 404 for any other name.
    """
    name = model.removeprefix(f"{_OWNER}/")
    for arm in arms:
        if arm == name:
            return arm
    raise ServiceError(
        404, "model_not_found", f"there is no model {printable(model)[:80]!r}; there are: {', '.join(arms)}"
    )


def models_view(arms: Sequence[Arm], created: float) -> dict[str, Any]:
    """``GET /v1/models``."""
    data = [{"id": arm, "object": "model", "created": int(created), "owned_by": _OWNER} for arm in arms]
    return {"object": "list", "data": data}


def question_of(chat: ChatIn) -> Question:
    """A conversation as a question; the memory is asked its last message."""
    messages = tuple(message.plain() for message in chat.messages)
    return Question(messages[-1]["content"], messages)


def headers_of(chat: ChatIn) -> dict[str, str]:
    """What a client should know of settings that have no effect here."""
    unused = [name for name in ("temperature", "top_p", "seed") if getattr(chat, name) is not None]
    return {"x-errata-note": f"answers are greedy; without effect: {', '.join(unused)}"} if unused else {}


def completion(chat: ChatIn, arm: Arm, answers: Answers) -> dict[str, Any]:
    """The whole answer; ``errata`` says which version spoke and which statement it was given."""
    reply = answers.answers[0][arm]
    return {
        **_envelope(chat, "chat.completion"),
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": reply.text},
                "finish_reason": _finish(chat, reply),
                "logprobs": None,
            }
        ],
        "usage": _usage(reply),
        "errata": _errata(arm, answers),
    }


def events(chat: ChatIn, arm: Arm, answers: Answers) -> Iterator[str]:
    """The answer as server-sent events, a few words each.

    The workers answer at once and not token by token, so all of it is there before the first event.
    """
    reply = answers.answers[0][arm]
    frame = _envelope(chat, "chat.completion.chunk")

    def event(delta: dict[str, str], finish: str | None = None, **extra: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return _event({**frame, "choices": [choice], **extra})

    yield event({"role": "assistant", "content": ""})
    words = reply.text.split(" ")
    for start in range(0, len(words), _WORDS_AT_ONCE):
        piece = " ".join(words[start : start + _WORDS_AT_ONCE])
        yield event({"content": piece if start == 0 else f" {piece}"})
    yield event({}, _finish(chat, reply), errata=_errata(arm, answers))
    if chat.stream_options is not None and chat.stream_options.include_usage:
        yield _event({**frame, "choices": [], "usage": _usage(reply)})
    yield "data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def _envelope(chat: ChatIn, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": chat.model}


def _usage(reply: ArmAnswer) -> dict[str, int]:
    return {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.tokens,
        "total_tokens": reply.prompt_tokens + reply.tokens,
    }


def _finish(chat: ChatIn, reply: ArmAnswer) -> str:
    return "length" if chat.limit is not None and reply.tokens >= chat.limit else "stop"


def _errata(arm: Arm, answers: Answers) -> dict[str, Any]:
    reply = answers.answers[0][arm]
    view: dict[str, Any] = {"arm": arm, "version": answers.version.digest, "edits": answers.version.edits}
    if reply.reason is not None:
        view["chosen"] = chosen_statement(answers.answers[0], arm, answers.edits)
        view["reason"] = reply.reason
    return view
