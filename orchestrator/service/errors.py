"""What goes wrong between a client and the service, as one kind of exception and one form of answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class ServiceError(Exception):
    """An answer other than success.

    Attributes:
        status: HTTP status code.
        code: short name that a program can tell errors apart by.
        message: one line for a person; printable, never a secret.
        headers: of the answer, ``Retry-After`` for example.
        details: per problem, where there are several.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        headers: Mapping[str, str] | None = None,
        details: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, printable(message)
        self.headers, self.details = dict(headers or {}), list(details)

    def body(self) -> dict[str, Any]:
        """The JSON answer, in the form that OpenAI clients know as well."""
        error: dict[str, Any] = {"type": self.code, "code": self.code, "message": self.message, "param": None}
        if self.details:
            error["details"] = self.details
        return {"error": error}


def busy(message: str, *, retry_after: float) -> ServiceError:
    """429 with the seconds after which trying again makes sense."""
    seconds = str(max(1, min(3600, int(retry_after + 0.999))))
    return ServiceError(429, "busy", message, headers={"Retry-After": seconds})


def unavailable(message: str, *, retry_after: float = 5.0) -> ServiceError:
    """503: starting, stopping or broken."""
    return ServiceError(503, "unavailable", message, headers={"Retry-After": str(max(1, int(retry_after)))})


def not_found(message: str) -> ServiceError:
    """404."""
    return ServiceError(404, "not_found", message)


def conflict(message: str) -> ServiceError:
    """409: what was asked for does not fit what is there."""
    return ServiceError(409, "conflict", message)


def printable(text: str) -> str:
    """The text with control characters and lone surrogates escaped, so that it is safe in JSON, logs and terminals."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
