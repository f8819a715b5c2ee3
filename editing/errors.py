"""Errors that cross a room's border. Every message names the thing, its value and what is allowed."""

from __future__ import annotations


class ErrataError(Exception):
    """Base of every error the project raises on purpose."""


class UserError(ErrataError):
    """Something the user can put right: one clear line; the command line exits with code 2."""


class NumericalError(ErrataError):
    """A linear system could not be solved to the promised accuracy; the message carries the numbers."""


class DamagedFileError(ErrataError):
    """A stored file does not carry the digest it is known by."""
