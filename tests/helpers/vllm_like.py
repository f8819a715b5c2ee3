"""A small HTTP server with vLLM's adapter calls, and the ways in which a real one fails."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

Failure = Literal["500", "dead", "slow", "done, no answer"]
"""An error; a connection closed before anything happened; a call that is answered, and done, only after `release`; one
that is never answered, though what was asked was done."""


class VllmLike:
    """Adapters by name, loaded and forgotten as vLLM 0.32 does it; answers come from a function.

    Args:
        answer: (path of the adapter, None for the base; prompt) -> what it says.
        max_rank: ``--max-lora-rank``.
    """

    def __init__(self, answer: Callable[[str | None, str], str], *, max_rank: int = 64) -> None:
        self.answer, self.max_rank = answer, max_rank
        self.adapters: dict[str, str] = {}
        self.calls: list[str] = []
        self.fail_at: dict[int, Failure] = {}
        """By number of the call, from 0."""
        self.seen_name: list[str | None] = []
        """What the clients' name led to after every call."""
        self._released, self._late = threading.Event(), threading.Semaphore(0)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def release(self) -> None:
        """Let the slow call be done now, and wait until it is."""
        self._released.set()
        assert self._late.acquire(timeout=60), "no slow call was made"

    def restart(self) -> None:
        """As when the process is killed and started again: adapters loaded meanwhile are gone."""
        self.adapters.clear()

    def _handler(server) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.handle_call({})

            def do_POST(self) -> None:
                self.handle_call(json.loads(self.rfile.read(int(self.headers["content-length"]))))

            def handle_call(self, body: dict[str, Any]) -> None:
                number = len(server.calls)
                server.calls.append(f"{self.path} {body.get('lora_name', body.get('model', ''))}".strip())
                failure = server.fail_at.get(number)
                if failure == "dead":
                    self.connection.close()
                    return
                if failure == "slow":
                    server._released.wait()
                status, answer = (
                    (500, {"error": {"message": "boom"}}) if failure == "500" else server.do(self.path, body)
                )
                server.seen_name.append(server.adapters.get("errata"))
                if failure == "slow":
                    server._late.release()
                if failure == "done, no answer":
                    self.connection.close()
                    return
                data = json.dumps(answer).encode() if isinstance(answer, dict) else str(answer).encode()
                try:
                    self.send_response(status)
                    self.send_header("content-length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:  # a client that no longer waits
                    pass

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def do(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """One call; (status, answer)."""
        if path == "/v1/models":
            base = {"id": "base-model", "root": "/models/base", "parent": None}
            loaded = [{"id": n, "root": root, "parent": "base-model"} for n, root in self.adapters.items()]
            return 200, {"object": "list", "data": [base, *loaded]}
        if path == "/v1/load_lora_adapter":
            return self._load(body["lora_name"], body["lora_path"], bool(body.get("load_inplace")))
        if path == "/v1/unload_lora_adapter":
            if self.adapters.pop(body["lora_name"], None) is None:
                return _error(404, f"The lora adapter '{body['lora_name']}' cannot be found.")
            return 200, f"Success: LoRA adapter '{body['lora_name']}' removed successfully."
        if path == "/v1/completions":
            name = body["model"]
            if name != "base-model" and name not in self.adapters:
                return _error(404, f"The model `{name}` does not exist.")
            texts = [self.answer(self.adapters.get(name), prompt) for prompt in body["prompt"]]
            return 200, {"choices": [{"index": i, "text": text} for i, text in enumerate(texts)][::-1]}
        return 404, {"detail": "Not Found"}

    def _load(self, name: str, path: str, inplace: bool) -> tuple[int, Any]:
        if name in self.adapters and not inplace:
            return _error(400, f"The lora adapter '{name}' has already been loaded.")
        config = Path(path) / "adapter_config.json"
        if not config.is_file():
            return _error(404, f"No adapter found for {path}")
        rank = json.loads(config.read_text())["r"]
        if rank > self.max_rank:
            return _error(500, f"LoRA rank {rank} is greater than max_lora_rank {self.max_rank}.")
        self.adapters[name] = path
        return 200, f"Success: LoRA adapter '{name}' added successfully."


def _error(status: int, message: str) -> tuple[int, Any]:
    return status, {"error": {"message": message, "type": "BadRequestError", "code": status}}
