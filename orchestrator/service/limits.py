"""What every request goes through before anything looks at it: size, form, origin; and what every answer carries."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final
from urllib.parse import urlsplit

from errata.orchestrator.service.cloudevents import BATCH, STRUCTURED
from errata.orchestrator.service.connections import Buckets
from errata.orchestrator.service.errors import ServiceError

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_BODY_SECONDS: Final = 30.0
"""A client that takes longer to send a body is given up."""
_ALWAYS: Final = frozenset({"/healthz", "/readyz"})
"""Probes are answered however often they come."""
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
        caller: who an ``Authorization`` header speaks for, None for nobody; None where there are no tokens. A call with
            a body is refused before the body is read where it speaks for nobody.
        hosts: names that calls may be addressed to; None for any.
        calls: how often a caller may call; None for as often as it likes.
        audit: told of every call that reads: who, method, path. None for no record of reads.
    """

    def __init__(
        self,
        app: App,
        *,
        max_body: int,
        loopback_only: bool,
        answered: Callable[[str, str, int], None],
        caller: Callable[[str | None], str | None] | None = None,
        hosts: frozenset[str] | None = None,
        calls: Buckets | None = None,
        audit: Callable[[str, str, str], None] | None = None,
    ) -> None:
        self._app, self._max_body, self._loopback_only, self._answered = app, max_body, loopback_only, answered
        self._caller, self._hosts, self._calls, self._audit = caller, hosts, calls, audit

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
            self._check_caller(scope, headers)
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
        if self._hosts is not None and name not in self._hosts and name not in _LOOPBACK:
            raise ServiceError(421, "wrong_host", "the service does not answer to this name; see service.hosts")
        origin = headers.get(b"origin")
        if method in _SAFE or origin is None:
            return
        if not _sane(origin) or urlsplit(origin).netloc != host:
            raise ServiceError(403, "cross_origin", "pages of other origins may not change anything here")

    def _check_caller(self, scope: Scope, headers: dict[bytes, str]) -> None:
        """The token before the body: who has none must not make this process read and keep a megabyte."""
        label = None if self._caller is None else self._caller(headers.get(b"authorization"))
        has_body = headers.get(b"content-length", "0") not in ("", "0") or b"transfer-encoding" in headers
        if self._caller is not None and label is None and has_body:
            raise ServiceError(
                401,
                "unauthorized",
                "a valid bearer token is needed",
                headers={"WWW-Authenticate": "Bearer", "Connection": "close"},
            )
        client = scope.get("client")
        who = label or (f"address {client[0]}" if client else "somebody")
        if self._calls is not None and scope["path"] not in _ALWAYS:
            seconds = self._calls.wait(who)
            if seconds > 0:
                after = {"Retry-After": str(max(1, math.ceil(seconds)))}
                raise ServiceError(
                    429, "too_many_calls", "more calls than service.calls_per_second allows", headers=after
                )
        if self._audit is not None and scope["method"] in _SAFE and scope["path"].startswith("/v1/"):
            self._audit(who, scope["method"], scope["path"])

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
