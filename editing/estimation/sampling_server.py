"""Sampling from a model that a server runs elsewhere: token ids in, token ids out, over OpenAI's completions API.

vLLM's server is what this was made for; it takes prompts as token ids and returns the sampled ids. Only the standard
library is used, so that the editing room needs no HTTP package.
"""

from __future__ import annotations

import json
import logging
import os
import time
import urllib.error
import urllib.request
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
    headers = {"Content-Type": "application/json"}
    if token := os.environ.get(TOKEN):
        headers["Authorization"] = f"Bearer {token}"
    url = f"{server.url.rstrip('/')}/v1/completions"
    request = urllib.request.Request(url, data=json.dumps(body).encode(), headers=headers)
    for attempt in range(server.retries + 1):
        try:
            with urllib.request.urlopen(request, timeout=server.timeout_seconds) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            said = error.read(300).decode(errors="replace").strip()
            if error.code not in _PASSING:
                raise UserError(
                    f"covariance.server {server.url!r} refuses to sample from {server.model!r}: {error.code} {said}"
                ) from error
            failure: Exception = error
        except ValueError as error:  # not JSON
            raise ErrataError(f"sampling server {server.url!r} answered with no JSON: {error}") from error
        except OSError as error:  # no connection, a timeout, a connection cut short
            failure = error
        if attempt < server.retries:
            logger.warning("sampling server %s: %s; asking again", server.url, failure)
            sleep(min(30.0, 0.5 * 2**attempt))
    if isinstance(failure, urllib.error.HTTPError):
        raise ErrataError(f"sampling server {server.url!r} fails again and again: {failure}") from failure
    raise UserError(f"covariance.server {server.url!r} cannot be reached: {failure}") from failure


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
