"""Settings of publication."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from errata.editing.closed import Closed
from errata.editing.estimation.sampling_server import TOKEN

_KIND: Final = "vllm="


class PublishConfig(Closed):
    """Live servers that a version is sent to, and when."""

    to: tuple[str, ...] = ()
    """Servers, as ``vllm=http://HOST:PORT``; they are rolled one by one, in this order. A bearer token is taken from
    ERRATA_VLLM_TOKEN."""
    every: int | None = Field(None, ge=1)
    """Commits between two publications of a run or a service, each if the guard holds; null to publish by hand."""
    served_name: str = Field("errata", pattern=r"^[A-Za-z0-9._-]+$")
    """Name of the adapter that clients ask for; it is switched to a version once that has proved itself."""
    max_rank: int | None = Field(None, ge=1)
    """Largest rank the servers take (``--max-lora-rank``); null for as many as the edits need."""
    max_error: float = Field(0.05, ge=0, allow_inf_nan=False)
    """Largest part of the change that may be cut off to keep to ``max_rank``, relative to it, in any layer."""
    sample: int = Field(20, ge=1)
    """Edited facts that a server is asked before it is switched, and as many untouched ones."""
    min_edited: float = Field(0.8, ge=0, le=1, allow_inf_nan=False)
    """Share of the edited facts that must be answered as they were edited."""
    min_untouched: float = Field(0.8, ge=0, le=1, allow_inf_nan=False)
    """Share of the untouched facts that must be answered as the server's base model answers them."""
    max_new_tokens: int = Field(12, ge=1)
    """Length of an answer."""
    timeout_seconds: float = Field(60.0, gt=0, allow_inf_nan=False)
    """For one answer of a server, to whatever it is asked."""
    adapters: str | None = None
    """Directory for the adapters, which the servers must be able to read; null for ``adapters`` in the run's own."""
    adapters_on_server: str | None = None
    """Where the servers see that directory, if elsewhere."""
    inplace: bool = False
    """Switch without the moment in which the name is unknown, by replacing its weights in place. Answers under way
    change weights in their middle, and vLLM 0.32 then reads the adapter anew at every step."""

    @field_validator("to")
    @classmethod
    def _known_servers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for item in value:
            server_url(item)
        if len(set(value)) < len(value):
            raise ValueError(f"a server is named twice: {list(value)}")
        return value

    @model_validator(mode="after")
    def _policy_has_servers(self) -> PublishConfig:
        if self.every is not None and not self.to:
            raise ValueError("publish.every needs a server in publish.to")
        return self


def server_url(item: str) -> str:
    """The address in ``vllm=URL``.

    Raises:
        ValueError: it is none, or it carries a password.
    """
    url = item.removeprefix(_KIND).rstrip("/")
    parts = urlsplit(url)
    if not item.startswith(_KIND) or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"want vllm=http://HOST:PORT, got {item!r}")
    if parts.username or parts.password:
        raise ValueError(f"a password does not belong into an address; put a token into the environment as {TOKEN}")
    return url.removesuffix("/v1")
