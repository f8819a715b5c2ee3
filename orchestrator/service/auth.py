"""Bearer tokens with roles: read from a file or the environment, kept as digests, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
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


class Tokens:
    """The tokens that are accepted. Holds their SHA-256 digests only."""

    def __init__(self, roles: Mapping[str, Role]) -> None:
        """``roles`` by hexadecimal SHA-256 digest of the token."""
        self._roles = tuple((bytes.fromhex(digest), role) for digest, role in roles.items())

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
        granted: Role | None = None
        for known, role in self._roles:
            if hmac.compare_digest(known, digest):
                granted = role
        return None if granted is None else Caller(granted, f"{granted.name}:{digest.hex()[:8]}")


def load_tokens(file: str | None = None, environment: Mapping[str, str] | None = None) -> Tokens:
    """Tokens of ``ERRATA_TOKENS`` (``role:token,...``) and of a file (``ERRATA_TOKENS_FILE``, else ``file``).

    A line of the file is ``role:token`` or ``role:sha256:<64 hex digits>``; empty lines and lines that begin with
    ``#`` are passed over.

    Raises:
        UserError: the file cannot be read, or an entry is not of that form; no message repeats a token.
    """
    environment = os.environ if environment is None else environment
    roles: dict[str, Role] = {}
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


def _add(roles: dict[str, Role], entry: str, where: str) -> None:
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
    known = roles.setdefault(digest, Role[name])
    if known is not Role[name]:
        raise UserError(f"{where}: the same token is listed with the roles {known.name} and {name}")
