"""What OpenAI clients may send: parameters that are honored, and those that are taken as they ask for nothing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, TypeAdapter, model_validator

from errata.editing.model.streaming import Sampling
from errata.editing.request import EventTime
from errata.orchestrator.service.bodies import KnownAt, Note, Prompt, StrictIn, TextTurn
from errata.orchestrator.service.errors import ServiceError

Tokens = Annotated[int, Field(ge=1)]
Stop = Annotated[str, Field(min_length=1, max_length=200)]


def _none(*values: object) -> Callable[[Any], bool]:
    return lambda value: value is None or any(value == neutral and type(value) is type(neutral) for neutral in values)


_NEUTRAL: Final[dict[str, Callable[[Any], bool]]] = {
    "n": _none(1),
    "best_of": _none(1),
    "frequency_penalty": _none(0, 0.0),
    "presence_penalty": _none(0, 0.0),
    "logit_bias": _none({}),
    "logprobs": _none(False, 0),
    "top_logprobs": _none(0),
    "echo": _none(False),
    "suffix": _none(""),
    "tools": _none([]),
    "functions": _none([]),
    "tool_choice": _none("none", "auto"),
    "function_call": _none("none", "auto"),
    "response_format": _none({"type": "text"}),
    "modalities": _none(["text"]),
    "audio": _none(),
    "prediction": _none(),
    "web_search_options": _none(),
}
"""Parameters that would change the answer, and the values at which they do not."""
_ANY: Final = (
    "user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key",
    "reasoning_effort", "verbosity",
)  # fmt: skip
"""Parameters that change nothing about the answer here, whatever they say."""


def _time(value: Any) -> Any:
    """A time from its text: what a validator of the whole body has seen is no JSON any more, and strict of it."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError("a time is a text such as 2026-03-05T00:00:00Z")
    return TypeAdapter(datetime).validate_python(value)


class StreamOptions(StrictIn):
    """Options of ``stream: true``."""

    include_usage: bool = False
    include_obfuscation: bool = False


class _CompletionIn(StrictIn):
    """What both kinds of completion share."""

    model: Note
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """Absent or 0: greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    as_of: Annotated[EventTime | None, BeforeValidator(_time)] = None
    """Not OpenAI's: answer with what was true at this time (without a zone UTC), as `POST /v1/query` does."""
    as_known_at: KnownAt | None = None
    """Not OpenAI's: answer with what was known in this version (`v12`, digits of a digest, a tag)."""

    @model_validator(mode="before")
    @classmethod
    def _asks_for_nothing_else(cls, data: Any) -> Any:
        """Leave out what asks for nothing.

        Raises:
            ServiceError: 400, a parameter that would change the answer and is not honored.
        """
        if not isinstance(data, dict):
            return data
        for name, is_neutral in _NEUTRAL.items():
            if name in data and not is_neutral(data[name]):
                raise ServiceError(400, "unsupported_parameter", f"{name} is not supported here; leave it out")
        return {key: value for key, value in data.items() if key not in _NEUTRAL and key not in _ANY}

    def sampling(self, limit: int) -> Sampling:
        """How the answer is generated, at most ``limit`` tokens of it."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        seed = (self.seed or 0) % (1 << 63)
        return Sampling(limit, self.temperature or 0.0, 1.0 if self.top_p is None else self.top_p, seed, tuple(stop))


class ChatIn(_CompletionIn):
    """A chat completion; ``model`` names the arm that answers."""

    messages: Annotated[list[TextTurn], Field(min_length=1, max_length=64)]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None

    @model_validator(mode="after")
    def _ends_with_a_question(self) -> ChatIn:
        if self.messages[-1].role != "user":
            raise ValueError("the last message must be the user's")
        return self

    @property
    def limit(self) -> int | None:
        """Longest answer asked for, in tokens."""
        return self.max_completion_tokens or self.max_tokens


class TextIn(_CompletionIn):
    """A text completion: the prompt is continued."""

    prompt: Prompt | Annotated[list[Prompt], Field(min_length=1, max_length=1)]
    max_tokens: Tokens | None = 16
    """As OpenAI's default."""

    @property
    def limit(self) -> int | None:
        """Longest answer asked for, in tokens."""
        return self.max_tokens

    @property
    def text(self) -> str:
        """The prompt."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]
