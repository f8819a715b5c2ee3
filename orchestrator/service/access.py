"""Who may call and how much: bearer tokens with roles, and what every call goes through before anything looks at it.

Tokens are read from a file or the environment, kept as digests, and compared in constant time. `Limits` stands before
the routes: size, form and origin of a body, a caller's rate, and the headers that every answer carries.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import math
import os
import re
import stat
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from fastapi import Depends, Request

from errata.editing.errors import UserError
from errata.orchestrator.service.cloudevents import BATCH, STRUCTURED
from errata.orchestrator.service.connections import Buckets
from errata.orchestrator.service.errors import ServiceError

logger = logging.getLogger(__name__)

TOKENS_VARIABLE: Final = "ERRATA_TOKENS"
FILE_VARIABLE: Final = "ERRATA_TOKENS_FILE"
_MIN_LENGTH: Final = 16
# RFC 6750: what a bearer token may be made of
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/=-]+")


class Role(IntEnum):
    """What a token allows; each role may do everything the ones below it may."""

    read = 1
    write = 2
    admin = 3


@dataclass(frozen=True)
class Caller:
    """Who asks: the role, and a label for the journal that does not give the token away."""

    role: Role
    label: str


@dataclass(frozen=True)
class Grant:
    """What one token allows, and until when."""

    role: Role
    until: datetime | None = None

    def holds(self, now: datetime) -> bool:
        """Whether it has not expired."""
        return self.until is None or now < self.until


class Tokens:
    """The tokens that are accepted. Holds their SHA-256 digests only."""

    def __init__(
        self, roles: Mapping[str, Role | Grant], *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        """``roles`` by hexadecimal SHA-256 digest of the token."""
        grants = {digest: g if isinstance(g, Grant) else Grant(g) for digest, g in roles.items()}
        self._roles = tuple((bytes.fromhex(digest), grant) for digest, grant in grants.items())
        self._clock = clock

    def __bool__(self) -> bool:
        return bool(self._roles)

    def __len__(self) -> int:
        return len(self._roles)

    def __repr__(self) -> str:
        return f"Tokens({len(self)})"

    def caller(self, authorization: str | None) -> Caller | None:
        """Who an ``Authorization`` header speaks for; None if nobody.

        Every known digest is compared whatever the outcome, so the time taken says nothing about a near miss.
        """
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            return None
        digest = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        granted: Grant | None = None
        for known, grant in self._current():
            if hmac.compare_digest(known, digest):
                granted = grant
        if granted is None or not granted.holds(self._clock()):
            return None
        return Caller(granted.role, f"{granted.role.name}:{digest.hex()[:8]}")

    def _current(self) -> tuple[tuple[bytes, Grant], ...]:
        return self._roles


class WatchedTokens(Tokens):
    """Tokens that are read again when their file changes, so that one is added or taken away without a restart.

    A file that cannot be read, or holds an entry that is none, changes nothing: the tokens of before stay in force and
    the log says so. Tokens cannot all be taken away: a service that began with tokens would then be open.
    """

    def __init__(
        self,
        read: Callable[[], Tokens],
        path: Path,
        *,
        every: float = 1.0,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        super().__init__({}, clock=clock)
        self._read, self._path, self._every = read, path, every
        self._roles = read()._current()
        self._stamp = self._state()
        self._looked_at = time.monotonic()

    def _state(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _current(self) -> tuple[tuple[bytes, Grant], ...]:
        now = time.monotonic()
        if now - self._looked_at < self._every:
            return self._roles
        self._looked_at = now
        stamp = self._state()
        if stamp == self._stamp:
            return self._roles
        self._stamp = stamp
        try:
            roles = self._read()._current()
        except UserError as error:
            logger.warning("%s; the tokens of before stay in force", error)
            return self._roles
        if not roles:
            logger.warning("tokens file %s holds no token; the tokens of before stay in force", self._path)
            return self._roles
        logger.info("tokens file %s was read again: %d tokens", self._path, len(roles))
        self._roles = roles
        return self._roles


def watched_tokens(file: str | None = None, environment: Mapping[str, str] | None = None) -> Tokens:
    """`load_tokens`, read again when the file changes; without a file, or without tokens, as they are.

    Raises:
        UserError: as `load_tokens`.
    """
    environment = os.environ if environment is None else environment
    first = load_tokens(file, environment)
    path = environment.get(FILE_VARIABLE) or file
    if not path or not first:
        return first
    return WatchedTokens(lambda: load_tokens(file, environment), Path(path).expanduser())


def load_tokens(file: str | None = None, environment: Mapping[str, str] | None = None) -> Tokens:
    """Tokens of ``ERRATA_TOKENS`` (``role:token,...``) and of a file (``ERRATA_TOKENS_FILE``, else ``file``).

    A line of the file is ``role:token`` or ``role:sha256:<64 hex digits>``, then perhaps ``until=2027-01-31`` or a time
    with its zone; empty lines and lines that begin with ``#`` are passed over.

    Raises:
        UserError: the file cannot be read, or an entry is not of that form; no message repeats a token.
    """
    environment = os.environ if environment is None else environment
    roles: dict[str, Grant] = {}
    for number, entry in enumerate(environment.get(TOKENS_VARIABLE, "").split(","), start=1):
        if entry.strip():
            _add(roles, entry.strip(), f"{TOKENS_VARIABLE}, entry {number}")
    path = environment.get(FILE_VARIABLE) or file
    if path:
        for number, line in enumerate(_lines(Path(path).expanduser()), start=1):
            if line.strip() and not line.lstrip().startswith("#"):
                _add(roles, line.strip(), f"tokens file {path!r}, line {number}")
    return Tokens(roles)


def _lines(path: Path) -> list[str]:
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"tokens file {str(path)!r} cannot be read: {type(error).__name__}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        logger.warning("tokens file %s can be read by others; chmod 600 it", path)
    return text.splitlines()


def _add(roles: dict[str, Grant], entry: str, where: str) -> None:
    entry, until = _until(entry, where)
    name, _, rest = entry.partition(":")
    if name not in Role.__members__:
        raise UserError(f"{where}: want role:token with role one of {', '.join(Role.__members__)}")
    token = rest.strip()
    kind, _, digest = token.partition(":")
    if kind == "sha256":
        if not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
            raise UserError(f"{where}: sha256: wants 64 hexadecimal digits, got {len(digest)} characters")
        digest = digest.lower()
    else:
        if len(token) < _MIN_LENGTH or not _TOKEN.fullmatch(token):
            raise UserError(
                f"{where}: a token has at least {_MIN_LENGTH} characters out of A-Z a-z 0-9 . _ ~ + / = -; "
                f"got {len(token)} characters"
            )
        digest = hashlib.sha256(token.encode()).hexdigest()
    grant = Grant(Role[name], until)
    known = roles.setdefault(digest, grant)
    if known.role is not grant.role:
        raise UserError(f"{where}: the same token is listed with the roles {known.role.name} and {name}")
    if known.until != grant.until:
        raise UserError(f"{where}: the same token is listed with two ends")


def _until(entry: str, where: str) -> tuple[str, datetime | None]:
    """An entry without its ``until=``, and the moment; a day ends with it, in UTC."""
    entry, mark, text = entry.partition(" until=")
    if not mark:
        return entry, None
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise UserError(f"{where}: until= wants a day or a time in ISO 8601, such as 2027-01-31") from None
    if len(text.strip()) == len("2027-01-31"):
        moment += timedelta(days=1)
    return entry.strip(), moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


LOCAL = Caller(Role.admin, "local")
"""Who calls where there are no tokens."""


def check_parameters(request: Request) -> None:
    """Refuse a parameter that the route does not have: misspelled, it would silently not filter.

    Raises:
        ServiceError: 400; it names what is allowed.
    """
    route = request.scope.get("route")
    dependant = getattr(route, "dependant", None)
    if dependant is None or not request.query_params:
        return
    known = sorted({field.alias for field in dependant.query_params})
    for name in request.query_params:
        if name not in known:
            allowed = ", ".join(known) or "none"
            raise ServiceError(400, "bad_request", f"there is no parameter {name[:80]!r} here; allowed: {allowed}")


def needs(tokens: Tokens, role: Role) -> Any:
    """A dependency that lets callers of a role, or a higher one, through."""

    def check(request: Request) -> Caller:
        if not tokens:
            check_parameters(request)
            return LOCAL
        caller = tokens.caller(request.headers.get("authorization"))
        if caller is None:
            raise ServiceError(
                401, "unauthorized", "a valid bearer token is needed", headers={"WWW-Authenticate": "Bearer"}
            )
        if caller.role < role:
            raise ServiceError(403, "forbidden", f"this needs the role {role.name}; the token has {caller.role.name}")
        check_parameters(request)
        return caller

    return Depends(check)


# ---------------------------------------------------------------- before the routes

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
