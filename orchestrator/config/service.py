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
    max_waiting_bytes: int = Field(67_108_864, ge=1024)
    """Bytes of edits that may wait to be written; beyond it new ones get 429 until there is room."""
    max_evaluations: int = Field(8, ge=1)
    """Evaluations that were asked for and are not done at one moment; beyond it 429."""
    max_queued_calls: int = Field(256, ge=1)
    """Submissions and commands that may wait for their turn at the journal at one moment; beyond it 429."""
    max_queries: int = Field(16, ge=1)
    """Questions under way or waiting for an evaluation worker at one moment; beyond it 429."""
    max_questions_per_query: int = Field(64, ge=1)
    """Questions in one ``POST /v1/query``."""
    max_question_tokens: int = Field(2048, ge=1)
    """Longest question or conversation in tokens, the chat template's own among them; the model's context bounds it as
    well. 16 000 tokens take a CPU half a minute and 2 GB."""
    max_answer_tokens: int = Field(256, ge=1)
    """Longest answer a client may ask for."""
    answer_seconds: float = Field(120.0, gt=0, le=3600)
    """How long an answer may take, its wait for a worker included, before it is cut off with 504, or, when streamed,
    with an event that says so."""
    end_seconds: float = Field(540.0, ge=1)
    """How long the batch under way may take once the service was told to end; then it is given up, and done again after
    the next start. Below the time that whoever supervises the process grants it."""
    lock_seconds: float = Field(2.0, gt=0, le=30)
    """How long a call waits where another process has the journal locked, before it gets 503."""
    revert_wait_seconds: float = Field(20.0, ge=0, le=600)
    """How long a ``DELETE`` waits for its commit before it answers 202."""
    poll_seconds: float = Field(0.25, gt=0, le=10)
    """How often the age of a waiting batch and a finished refresh are looked at while nothing else happens."""
    hosts: tuple[str, ...] | None = None
    """Names under which the service may be called, besides those of this machine; null for any."""
    max_connections: int = Field(512, ge=1)
    """Connections at one moment; never more than the process's limit of open files leaves beside a reserve."""
    head_seconds: float = Field(10.0, gt=0, le=600)
    """A connection that has sent no whole request head within this time is closed."""
    calls_per_second: float | None = Field(None, gt=0)
    """Calls that one token (without tokens: one address) may make; beyond it 429. Null for no bound."""
    calls_burst: int = Field(50, ge=1)
    """Calls that may come at once before ``calls_per_second`` holds."""
    audit_reads: bool = False
    """Whether the log also names who read what; changes are in the journal with their caller in any case."""
    open_metrics: bool = False
    """Whether ``/metrics`` is readable without a token."""
