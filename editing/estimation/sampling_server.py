"""Sampling from a model that a server runs elsewhere: token ids in, token ids out, over OpenAI's completions API.

vLLM's server is what this was made for; it takes prompts as token ids and returns the sampled ids.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from pydantic import Field

from errata.editing.closed import Closed
from errata.editing.errors import ErrataError, UserError

logger = logging.getLogger(__name__)

TOKEN: Final = "ERRATA_VLLM_TOKEN"
"""Environment variable with the servers' bearer token; workers that sample must have it too."""

_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""Answers after which another attempt may do better."""


class SamplingServerConfig(Closed):
    """A server that samples from the model whose keys are taken here."""

    url: str = Field(pattern=r"^https?://[^/]+")
    """Up to, and without, ``/v1``, such as ``http://localhost:8000``. A bearer token is taken from
    ERRATA_VLLM_TOKEN."""
    model: str = Field(min_length=1)
    """Name under which it serves the unedited model; a refresh from the live one loads that as an adapter first."""
    parallel: int = Field(32, ge=1)
    """Sequences asked for at once; the server batches them."""
    timeout_seconds: float = Field(300.0, gt=0)
    """For one sequence."""
    retries: int = Field(4, ge=0)
    """Further attempts after a failure that may pass: no connection, a timeout, 408, 409, 425, 429 and 5xx."""


@dataclass(frozen=True)
class Sampled:
    """What a server continued a prompt with."""

    tokens: tuple[int, ...]
    """Without an end-of-text token."""
    nll: float
    """Sum of -log p over ``tokens`` as the server reports it."""


def sample(
    server: SamplingServerConfig,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    *,
    max_new_tokens: int,
    stops: frozenset[int],
    sleep: Callable[[float], None] = time.sleep,
) -> list[Sampled]:
    """Continue each prompt by ancestral sampling (temperature 1, top_p 1, no filter), in the order of the prompts.

    Args:
        prompts: token ids.
        seeds: one per prompt; the same seed gives the same continuation as far as the server keeps to it.
        stops: tokens that end a sequence and do not belong to it.
        sleep: for tests.

    Raises:
        UserError: the server cannot be reached, or refuses what it is asked.
        ErrataError: it fails again and again, or answers with something else than sampled token ids.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"one seed per prompt: got {len(seeds)} for {len(prompts)}")

    def one(pair: tuple[Sequence[int], int]) -> Sampled:
        prompt, seed = pair
        body = {
            "model": server.model,
            "prompt": list(prompt),
            "max_tokens": max_new_tokens,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": -1,
            # what is not said here the server takes from the model's own generation_config.json
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": seed % (1 << 31),
            "logprobs": 0,
            "return_token_ids": True,
            "skip_special_tokens": False,
        }
        return _read(_ask(server, body, sleep), stops, server)

    with ThreadPoolExecutor(min(server.parallel, max(1, len(prompts)))) as pool:
        return list(pool.map(one, zip(prompts, seeds, strict=True)))


def _ask(server: SamplingServerConfig, body: Mapping[str, Any], sleep: Callable[[float], None]) -> Any:
    import httpx
    import tenacity

    headers = {"Content-Type": "application/json"}
    if token := os.environ.get(TOKEN):
        headers["Authorization"] = f"Bearer {token}"
    url = f"{server.url.rstrip('/')}/v1/completions"

    def post() -> httpx.Response:
        answer = httpx.post(url, json=dict(body), headers=headers, timeout=server.timeout_seconds)
        if answer.status_code in _PASSING:
            raise httpx.HTTPStatusError(f"status {answer.status_code}", request=answer.request, response=answer)
        return answer

    def told(state: tenacity.RetryCallState) -> None:
        failure = None if state.outcome is None else state.outcome.exception()
        logger.warning("sampling server %s: %s; asking again", server.url, failure)

    again = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(server.retries + 1),
        wait=tenacity.wait_exponential(multiplier=0.5, max=30.0),
        retry=tenacity.retry_if_exception_type(httpx.HTTPError),
        before_sleep=told,
        sleep=sleep,
        reraise=True,
    )
    try:
        answer = again(post)
    except httpx.HTTPStatusError as error:
        raise ErrataError(f"sampling server {server.url!r} fails again and again: {error}") from error
    except httpx.HTTPError as error:  # no connection, a timeout, a connection cut short
        raise UserError(f"covariance.server {server.url!r} cannot be reached: {error}") from error
    if not answer.is_success:
        raise UserError(
            f"covariance.server {server.url!r} refuses to sample from {server.model!r}: {answer.status_code} "
            f"{answer.text[:300].strip()}"
        )
    try:
        return answer.json()
    except ValueError as error:
        raise ErrataError(f"sampling server {server.url!r} answered with no JSON: {error}") from error


def _read(answer: Any, stops: frozenset[int], server: SamplingServerConfig) -> Sampled:
    try:
        choice = answer["choices"][0]
        ids = [int(token) for token in choice["token_ids"]]
        logprobs = [float(value) for value in choice["logprobs"]["token_logprobs"]]
    except (LookupError, TypeError, ValueError) as error:
        raise ErrataError(
            f"sampling server {server.url!r} gives no token ids with their log-probabilities; vLLM 0.10.2 or newer does"
        ) from error
    if len(ids) != len(logprobs):
        raise ErrataError(f"sampling server {server.url!r}: {len(ids)} tokens with {len(logprobs)} log-probabilities")
    end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
    return Sampled(tuple(ids[:end]), -sum(logprobs[:end]))
