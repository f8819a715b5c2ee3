"""What every request goes through before anything looks at it: size, form, origin; and what every answer carries."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final
from urllib.parse import urlsplit

from errata.orchestrator.service.cloudevents import BATCH, STRUCTURED
from errata.orchestrator.service.errors import ServiceError

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_BODY_SECONDS: Final = 30.0
"""A client that takes longer to send a body is given up."""
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cache-control", b"no-store"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
)


class Limits:
    """ASGI middleware. The whole body is read here, up to the limit, so that nothing behind it meets a larger one.

    Args:
        max_body: bytes.
        loopback_only: without tokens only names of this machine are answered to, so that no web page elsewhere can
            reach the service by pointing a name of its own at it.
        answered: told of every answer: method, route, status; with the name of the route, never the path itself.
    """

    def __init__(
        self, app: App, *, max_body: int, loopback_only: bool, answered: Callable[[str, str, int], None]
    ) -> None:
        self._app, self._max_body, self._loopback_only, self._answered = app, max_body, loopback_only, answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_HEADERS]
                route = getattr(scope.get("route"), "path_format", None)
                self._answered(scope["method"] if route else "other", route or "other", message["status"])
            await send(message)

        try:
            headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
            self._check_origin(scope["method"], headers)
            body = await self._body(headers, receive)
            self._check_type(scope["path"], headers, body)
        except ServiceError as error:
            await _answer(error, guarded)
            return
        await self._app(scope, _replay(body, receive), guarded)

    def _check_origin(self, method: str, headers: dict[bytes, str]) -> None:
        host = headers.get(b"host", "")
        name = urlsplit(f"//{host}").hostname if _sane(host) else None
        if self._loopback_only and name not in _LOOPBACK:
            raise ServiceError(421, "wrong_host", "without tokens the service answers to names of this machine only")
        origin = headers.get(b"origin")
        if method in _SAFE or origin is None:
            return
        if not _sane(origin) or urlsplit(origin).netloc != host:
            raise ServiceError(403, "cross_origin", "pages of other origins may not change anything here")

    async def _body(self, headers: dict[bytes, str], receive: Receive) -> bytes:
        length = headers.get(b"content-length", "0")
        if not (length.isascii() and length.isdecimal()):
            raise ServiceError(400, "bad_request", "Content-Length is not a number")
        if len(length) > 18 or int(length) > self._max_body:
            raise self._too_large()
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ServiceError(400, "bad_request", "the client went away")
                    part = message.get("body", b"")
                    size += len(part)
                    if size > self._max_body:
                        raise self._too_large()
                    parts.append(part)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise ServiceError(408, "timeout", f"no whole body within {_BODY_SECONDS:g} seconds") from None

    def _too_large(self) -> ServiceError:
        # what has not been read of the body would be taken for the next request
        return ServiceError(
            413, "too_large", f"a body has at most {self._max_body} bytes", headers={"Connection": "close"}
        )

    @staticmethod
    def _check_type(path: str, headers: dict[bytes, str], body: bytes) -> None:
        kind = headers.get(b"content-type", "").partition(";")[0].strip().lower()
        if body and kind != "application/json" and not (path == "/v1/edits" and kind in (STRUCTURED, BATCH)):
            raise ServiceError(415, "not_json", "a body is application/json")


def _sane(value: str) -> bool:
    """Whether ``urlsplit`` can take it apart without raising."""
    try:
        _ = urlsplit(f"//{value}").hostname
        _ = urlsplit(value).netloc
    except ValueError:
        return False
    return True


def _replay(body: bytes, receive: Receive) -> Receive:
    done = False

    async def again() -> Message:
        nonlocal done
        if done:
            return await receive()  # the client's going away
        done = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _answer(error: ServiceError, send: Send) -> None:
    body = json.dumps(error.body()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
