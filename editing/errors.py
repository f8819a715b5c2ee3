"""Errors that cross a room's border. Every message names the thing, its value and what is allowed."""

from __future__ import annotations


class ErrataError(Exception):
    """Base of every error the project raises on purpose."""


class UserError(ErrataError):
    """Something the user can put right: one clear line; the command line exits with code 2."""


class DependentKeysError(UserError):
    """Requests whose keys depend linearly on others of their batch, where the method must hit every target.

    ``reasons`` says for each of them, by its id, which others it depends on; without them the batch can be written.
    """

    def __init__(self, reasons: dict[str, str]) -> None:
        super().__init__("; ".join(f"request {request!r}: {reason}" for request, reason in reasons.items()))
        self.reasons = reasons


class NumericalError(ErrataError):
    """A linear system could not be solved to the promised accuracy; the message carries the numbers."""


class DeadlineError(ErrataError):
    """Something took longer than whoever asked for it is willing to wait."""


class AbandonedError(ErrataError):
    """Whoever asked for something does not want it any more."""


class EditorFaultError(ErrataError):
    """The editor fails on a plain edit as well as on what it was given, so that no request is at fault."""


class DamagedFileError(ErrataError):
    """A stored file does not carry the digest it is known by."""


def in_words(error: BaseException) -> str:
    """An error as one line: its own text where it was raised on purpose, else with its type in front."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, ErrataError) and first:
        return first
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
