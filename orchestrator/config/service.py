"""Settings of ``errata serve``: bounds of what clients may ask for, and where tokens are read from."""

from __future__ import annotations

from pydantic import Field

from errata.editing.closed import Closed


class ServiceConfig(Closed):
    """The HTTP service. Tokens themselves are never part of a configuration."""

    tokens_file: str | None = None
    """File of ``role:token`` lines; ``ERRATA_TOKENS_FILE`` and ``ERRATA_TOKENS`` in the environment come first."""
    max_body_bytes: int = Field(1_048_576, ge=1024, le=1 << 30)
    """Largest request body, however it is sent."""
    max_edits_per_request: int = Field(1000, ge=1, le=100_000)
    """Edits in one ``POST /v1/edits``."""
    max_waiting: int = Field(10_000, ge=1)
    """Edits that may wait to be written; beyond it new ones get 429 until there is room."""
    max_queued_calls: int = Field(256, ge=1)
    """Submissions and commands that may wait for their turn at the journal at one moment; beyond it 429."""
    max_queries: int = Field(16, ge=1)
    """Questions under way or waiting for an evaluation worker at one moment; beyond it 429."""
    max_questions_per_query: int = Field(64, ge=1)
    """Questions in one ``POST /v1/query``."""
    max_answer_tokens: int = Field(256, ge=1)
    """Longest answer a client may ask for."""
    revert_wait_seconds: float = Field(20.0, ge=0, le=600)
    """How long a ``DELETE`` waits for its commit before it answers 202."""
    poll_seconds: float = Field(0.25, gt=0, le=10)
    """How often the age of a waiting batch and a finished refresh are looked at while nothing else happens."""
    open_metrics: bool = False
    """Whether ``/metrics`` is readable without a token."""
