"""A running vLLM server: its adapters, and what it answers under a name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from errata.editing.errors import ErrataError
from errata.editing.extras import Later
from errata.editing.wording import counted
from errata.orchestrator.config.publish import TOKEN

if TYPE_CHECKING:
    import httpx
else:
    httpx = Later("httpx")  # a run that publishes nothing needs none


class ServerError(ErrataError):
    """A server did not answer, or not as it was asked to; the message names it."""


@dataclass(frozen=True, slots=True)
class Served:
    """What a server answers under."""

    base: str
    """Name of the unedited model."""
    adapters: dict[str, str]
    """Name -> path that it was loaded from, as the server sees it."""


class VllmServer:
    """The calls of one server. Each raises `ServerError`; none is tried again here.

    Args:
        url: without ``/v1``.
        timeout: seconds for one answer.
        token: bearer token; None to take it from the environment.
    """

    def __init__(self, url: str, *, timeout: float = 60.0, token: str | None = None) -> None:
        self.url = url
        token = token or os.environ.get(TOKEN)
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.Client(base_url=url, timeout=timeout, headers=headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._client.close()

    def served(self) -> Served:
        """The base model and the adapters."""
        data = self._json("GET", "/v1/models")
        try:
            models = [(str(m["id"]), str(m.get("root") or ""), m.get("parent")) for m in data["data"]]
            base = next(name for name, _, parent in models if parent is None)
        except (KeyError, TypeError, AttributeError, StopIteration) as error:
            raise ServerError(f"{self.url}: its list of models cannot be read") from error
        return Served(base, {name: root for name, root, parent in models if parent is not None})

    def load(self, name: str, path: str, *, inplace: bool = False) -> None:
        """Load an adapter under a name; with ``inplace`` it may be one that is in use."""
        asked: dict[str, Any] = {"lora_name": name, "lora_path": path}
        try:
            self._send("POST", "/v1/load_lora_adapter", {**asked, "load_inplace": True} if inplace else asked)
        except ServerError as error:
            if "max_lora_rank" in str(error):
                raise ServerError(f"{error} Publish with --max-rank, or serve with a larger --max-lora-rank") from error
            raise

    def unload(self, name: str) -> None:
        """Forget an adapter; requests that are being answered with it are answered to their end."""
        self._send("POST", "/v1/unload_lora_adapter", {"lora_name": name})

    def complete(self, model: str, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
        """Greedy continuations under a model's or an adapter's name, up to the end of the line."""
        if not prompts:
            return []
        asked = {
            "model": model,
            "prompt": list(prompts),
            "max_tokens": max_new_tokens,
            "temperature": 0,
            "stop": ["\n"],
        }
        data = self._json("POST", "/v1/completions", asked)
        try:
            choices = sorted(data["choices"], key=lambda choice: choice["index"])
            answers = [str(choice["text"]) for choice in choices]
        except (KeyError, TypeError) as error:
            raise ServerError(f"{self.url}: its completions cannot be read") from error
        if len(answers) != len(prompts):
            raise ServerError(f"{self.url}: {counted(len(answers), 'answer')} to {counted(len(prompts), 'question')}")
        return answers

    def _json(self, method: str, path: str, body: Any = None) -> Any:
        answer = self._send(method, path, body)
        try:
            return answer.json()
        except ValueError as error:
            raise ServerError(f"{self.url}{path}: the answer is not JSON") from error

    def _send(self, method: str, path: str, body: Any = None) -> httpx.Response:
        try:
            answer = self._client.request(method, path, json=body)
        except httpx.TimeoutException as error:
            raise ServerError(f"{self.url}{path}: no answer in time") from error
        except httpx.HTTPError as error:
            raise ServerError(f"{self.url}{path}: {type(error).__name__}: {error}") from error
        if answer.status_code == 404 and path.endswith("_lora_adapter") and not _message(answer):
            raise ServerError(
                f"{self.url}: adapters cannot be loaded while it runs; start it with --enable-lora and "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
            )
        if not answer.is_success:
            raise ServerError(f"{self.url}{path}: status {answer.status_code}: {_message(answer) or answer.text[:200]}")
        return answer


def _message(answer: httpx.Response) -> str:
    """What an OpenAI-style error says; empty for anything else."""
    try:
        data = answer.json()
        error = data.get("error", data)
        return " ".join(str(error.get("message") or "").split())[:300]
    except (ValueError, AttributeError):
        return ""
