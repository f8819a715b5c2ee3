"""Bearer tokens with roles: read from a file or the environment, kept as digests, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from pathlib import Path
from typing import Final

from errata.editing.errors import UserError

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
