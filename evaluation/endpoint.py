"""A chat model behind an OpenAI-compatible endpoint, with a cache on disk and retries."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from errata.editing.closed import Closed
from errata.editing.digest import digest_json
from errata.editing.errors import ErrataError, UserError
from errata.editing.wording import counted

if TYPE_CHECKING:
    import httpx

logger = logging.getLogger(__name__)

Messages = list[dict[str, str]]
_RETRY_STATUS = frozenset({408, 409, 429, 500, 502, 503, 504})


class EndpointError(ErrataError):
    """The endpoint did not answer as it should, after all retries."""


class _Passing(Exception):
    """An answer after which another attempt may do better."""


class EndpointConfig(Closed):
    """Where a chat model is and how it is asked."""

    base_url: str = Field(pattern=r"^https?://")
    """Up to and including the version, such as ``http://localhost:8000/v1``."""
    model: str = Field(min_length=1)
    api_key_env: str | None = None
    """Name of the environment variable with the key; the key itself is never stored."""
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(256, ge=1)
    timeout_seconds: float = Field(60.0, gt=0)
    retries: int = Field(4, ge=0)
    """Further attempts after a failure that may pass (connection, timeout, 408, 409, 429, 5xx)."""
    parallel: int = Field(8, ge=1)
    cache: Path | None = None
    """JSON Lines file of answers; the same question to the same model is asked once."""


class ChatEndpoint:
    """Asks a chat model; answers are cached by model, messages and settings."""

    def __init__(
        self,
        config: EndpointConfig,
        *,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """``transport`` and ``sleep`` are for tests.

        Raises:
            UserError: the environment variable for the key is not set.
        """
        import httpx

        headers = {}
        if config.api_key_env is not None:
            key = os.environ.get(config.api_key_env)
            if not key:
                raise UserError(f"environment variable {config.api_key_env!r} (api_key_env) is not set")
            headers["Authorization"] = f"Bearer {key}"
        self.config = config
        self._sleep = sleep
        self._client = httpx.Client(timeout=config.timeout_seconds, headers=headers, transport=transport)
        self._cache: dict[str, str] = _read_cache(config.cache)
        self.asked = 0
        """Requests sent, retries included."""

    def ask(self, messages: Messages) -> str:
        """The answer's text.

        Raises:
            EndpointError: refused, malformed, or still failing after the retries.
        """
        return self.ask_many([messages])[0]

    def ask_many(self, conversations: Sequence[Messages]) -> list[str]:
        """Answers in order; equal conversations are asked once, at most ``parallel`` at a time."""
        keys = [self._key(messages) for messages in conversations]
        missing = {k: m for k, m in zip(keys, conversations, strict=True) if k not in self._cache}
        if missing:
            with ThreadPoolExecutor(max_workers=min(self.config.parallel, len(missing))) as pool:
                # answers are kept as they come: what was paid for survives a later failure
                for key, text in zip(missing, pool.map(self._request, missing.values()), strict=True):
                    self._keep(key, text)
        return [self._cache[key] for key in keys]

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _key(self, messages: Messages) -> str:
        c = self.config
        return digest_json([c.base_url, c.model, c.temperature, c.max_tokens, messages])

    def _keep(self, key: str, text: str) -> None:
        self._cache[key] = text
        if self.config.cache is not None:
            self.config.cache.parent.mkdir(parents=True, exist_ok=True)
            with self.config.cache.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "text": text}, ensure_ascii=False) + "\n")

    def _request(self, messages: Messages) -> str:
        import httpx
        import tenacity

        url = f"{self.config.base_url.rstrip('/')}/chat/completions"
        body = {
            "model": self.config.model,
            "messages": messages,
            "temperature": self.config.temperature,
            "max_tokens": self.config.max_tokens,
        }
        again = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self.config.retries + 1),
            wait=tenacity.wait_exponential(multiplier=1.0, max=30.0),
            retry=tenacity.retry_if_exception_type((httpx.TransportError, _Passing)),
            sleep=self._sleep,
            reraise=True,
        )
        try:
            response = again(self._post, url, body)
        except (httpx.TransportError, _Passing) as error:
            problem = str(error) if isinstance(error, _Passing) else f"{type(error).__name__}: {error}"
            raise EndpointError(f"{url} failed {counted(self.config.retries + 1, 'time')}, last: {problem}") from error
        if response.status_code != 200:
            raise EndpointError(f"{url} answered HTTP {response.status_code}: {response.text[:200]!r}")
        return _text_of(response.json(), url)

    def _post(self, url: str, body: dict[str, Any]) -> httpx.Response:
        self.asked += 1
        response = self._client.post(url, json=body)
        if response.status_code in _RETRY_STATUS:
            raise _Passing(f"HTTP {response.status_code}")
        return response


def _text_of(answer: Any, url: str) -> str:
    try:
        text = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise EndpointError(f"{url} answered without choices[0].message.content: {str(answer)[:200]!r}") from error
    return text if isinstance(text, str) else ""


def _read_cache(path: Path | None) -> dict[str, str]:
    if path is None or not path.is_file():
        return {}
    kept = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
            kept[str(row["key"])] = str(row["text"])
        except (json.JSONDecodeError, KeyError, TypeError):
            # a line cut off by a crash costs one question, not the cache
            logger.warning("%s:%d: unreadable cache line left out", path, number)
    return kept
